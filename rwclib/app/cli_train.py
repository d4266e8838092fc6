"""`rwc train` and `rwc sweep`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import MISSING, asdict, fields, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated

import typer

import rwclib
from rwclib import studies
from rwclib.app.cli_options import PROFILE_HELP, AsJson, Checkpoint, DataDir, Device, Engine, Jobs, Results, TimeBudget
from rwclib.errors import ConfigError
from rwclib.runs.config import PRIORITIES, RunConfig
from rwclib.sweeps.report import Report

Executor = Annotated[
    str,
    typer.Option(
        help="Where to train. local: processes of this machine; dask: workers of a Dask cluster; slurm: Slurm jobs, "
        "submitted from here. All machines must share the results folder and the data."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="With dask: tcp://host:8786 of a running scheduler [default: --jobs workers on this machine]."),
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="With slurm; repeat for more: partition=gpu, gpus_per_node=1, mem_gb=16, timeout_min=240, ...; a job at its "
        "time limit is queued again. cluster=local tries it on this machine without Slurm.",
    ),
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Train nothing: say what is left and how long it will take, at the archive's speeds on this kind of device, or "
        "where it has none at that of a few batches, op by op.",
    ),
]
Priority = Annotated[str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in PRIORITIES.items()))]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every field of `RunConfig` but the study, which reach it as keywords; None: not given."""
    kinds = {"str": str, "int": int, "int | None": int, "float": float, "bool": bool}
    options = []
    for field in fields(RunConfig):
        if field.name != "study":
            kind = Annotated[kinds[field.type] | None, typer.Option(help=field.metadata["help"])]
            default = Parameter.empty if field.default is MISSING else None
            options.append(Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kind))
    known = signature(command, eval_str=True)
    own = [parameter for parameter in known.parameters.values() if parameter.kind is Parameter.KEYWORD_ONLY]
    command.__signature__ = known.replace(parameters=[*options, *own])
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*options, *own]}
    return command


def train(
    *,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    engine: Engine = "eager",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads [default: all cores].")] = None,
    time_budget: TimeBudget = None,
    checkpoint_seconds: Checkpoint = 20.0,
    **settings: object,
) -> None:
    """Train one run, or go on where it stopped.

    The last line printed is the run's directory.

    What is not given is as in study 1 (its learning rate, weight decay, batch size and augmentation; 150 epochs, 20 on
    MNIST and Fashion-MNIST), for a network that study 1 does not have with learning rate 0.01 and weight decay 1e-4.
    """
    from rwclib.runs import archive, data, models, training
    from rwclib.studies import layerwise
    from rwclib.sweeps.progress import progress_line

    given = {name: value for name, value in settings.items() if value is not None}
    model, dataset = given["model"], given["dataset"]
    if "iterations" in given:
        given.setdefault("epochs", 1)
    models.get(model), data.get(dataset)
    base = layerwise.run_config("paper", model if model in layerwise.NETWORKS else "resnet18", dataset, 0)
    if model not in layerwise.NETWORKS:
        base = replace(base, lr=0.01)
    config = replace(base, **{"study": "custom", "precision": "fp32"} | given)
    _warn([config], device)
    place = training.run(
        config, results=results or archive.default_results(), data_dir=data_dir, device=device, engine=engine,
        threads=threads, deadline=rwclib.STARTED + time_budget if time_budget is not None else None, checkpoint_seconds=checkpoint_seconds,
        progress=lambda values: print(progress_line(config.name, values), file=sys.stderr, flush=True),
    )  # fmt: skip
    print(place)


def sweep(
    study: Annotated[str, typer.Argument(help=", ".join(studies.STUDIES))],
    profile: Annotated[str, typer.Option(help=PROFILE_HELP)] = "quick",
    only: Annotated[
        list[str] | None, typer.Option("--model", "--only", help="Only these models; repeat for more.")
    ] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Only these data sets; repeat for more.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only these seeds; repeat for more.")] = None,
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    engine: Engine = "eager",
    jobs: Jobs = None,
    executor: Executor = "local",
    scheduler: Scheduler = None,
    slurm: Slurm = None,
    priority: Priority = "seeds",
    chunk: Annotated[int, typer.Option(min=1, help="Runs per job, one after the other.")] = 1,
    plan: Plan = False,
    time_budget: TimeBudget = None,
    checkpoint_seconds: Checkpoint = 20.0,
    as_json: AsJson = False,
) -> None:
    """Train the runs of a study that the archive lacks.

    Several machines: --executor dask or slurm, with the packages of the extra `cluster` (docs/cluster.md says how).
    """
    from rwclib.sweeps import pools

    if local := executor == "local":  # elsewhere the machines, and how many there are, are not known
        pools.start_server()  # imports PyTorch while this process does
    from rwclib.runs import archive, steps
    from rwclib.sweeps import forecast as planning
    from rwclib.sweeps.executors import open_executor
    from rwclib.sweeps.progress import SweepProgress
    from rwclib.sweeps.sweep import run_all

    folder = results or archive.default_results()
    configs = planning.order(studies.runs(study)(profile, models=only, datasets=dataset, seeds=seed), priority)
    steps.check_engine(engine, steps.resolve_device(device))
    if plan:
        return _print_plan(configs, folder, device, jobs, as_json, local)
    opened = open_executor(executor, results=results, jobs=jobs, device=device, scheduler=scheduler, slurm=slurm or [])
    telling = _telling_outlook(configs, folder, device, jobs) if local else contextlib.nullcontext()
    with opened as (pool, at_once), SweepProgress(configs) as tell, telling:
        budget = None if time_budget is None else max(0.0, rwclib.STARTED + time_budget - time.time())
        report = run_all(
            configs, results=results, data_dir=data_dir, device=device, engine=engine, jobs=at_once, executor=pool, chunk=chunk,
            time_budget=budget, checkpoint_seconds=checkpoint_seconds, progress=tell,
        )  # fmt: skip
    _print_end(report, configs, folder, device, jobs, as_json, local)
    raise typer.Exit(0 if report.ok else 1)


def _print_end(
    report: Report, configs: list[RunConfig], folder: Path, device: str, jobs: int | None, as_json: bool, local: bool
) -> None:  # fmt: skip
    """What a sweep did, and what is left and how long that will take."""
    from rwclib.sweeps import forecast as planning
    from rwclib.sweeps import pools

    for problem in report.problems():
        print(problem, file=sys.stderr)
    print(json.dumps(asdict(report), indent=1) if as_json else report.summary())
    if report.left:
        left = [config for config in configs if config.name in report.left]
        with pools.one_answer() if local else contextlib.nullcontext() as pool:  # has imported what counts operations
            about = pool.submit(planning.outlook, left, folder, device, jobs).result() if pool else ""
        print(f"runs left: {len(left)}{about}; the same command goes on", file=sys.stderr)


def _warn(configs: list[RunConfig], device: str) -> None:
    """One sentence if these runs need bf16 and the processor has no instructions for it."""
    from rwclib.runs import steps

    if any(config.precision == "bf16" for config in configs) and not steps.has_bf16(steps.resolve_device(device)):
        print("this processor has no bf16 instructions: bf16 is emulated, and fp32 would be faster", file=sys.stderr)


def _print_plan(
    configs: list[RunConfig], results: Path, device: str, jobs: int | None, as_json: bool, local: bool
) -> None:
    from rwclib.sweeps import forecast as planning
    from rwclib.sweeps import pools

    if not local:
        raise ConfigError(
            "--plan speaks of this machine: give it without --executor, on a machine like those that train"
        )
    _warn(configs, device)
    with pools.one_answer() as pool:
        found = pool.submit(planning.plan, configs, results, device, jobs).result()
    if as_json:
        return print(json.dumps(found, indent=1))
    for row in found["networks"]:
        print(f"{row['network']}: {row['runs']} run{'s' * (row['runs'] > 1)}, {planning.about(row['hours_each'])} each")
    total = f", {planning.about(found['hours'])} with {found['jobs']} at once" if found["runs"] else ""
    print(f"runs left: {found['runs']}{total}")


@contextlib.contextmanager
def _telling_outlook(configs: list[RunConfig], results: Path, device: str, jobs: int | None) -> Iterator[None]:
    """Say how many runs are left and, as soon as a process of its own has worked it out, how long they will take."""
    from rwclib.sweeps import forecast as planning
    from rwclib.sweeps import pools

    def tell(done: Future) -> None:
        if not done.cancelled() and not done.exception() and done.result():
            print(f"expected{done.result()}".replace(",", ":"), file=sys.stderr)

    left = planning.unfinished(configs, results)
    _warn(left, device)
    print(f"runs to train: {len(left)}", file=sys.stderr)
    if not left:
        return (yield)
    pool = pools.local_pool()
    pool.submit(planning.outlook, left, results, device, jobs).add_done_callback(tell)
    processes = list(pool._processes.values())
    pool.shutdown(wait=False)  # it ends when it has answered
    try:
        yield
    finally:
        for process in processes:  # where the runs were faster
            process.terminate()
