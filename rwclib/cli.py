"""The command `rwc`: train, sweep, reproduce, claims, report; `results` and `data` are in `cli_stores`."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import rwclib
from rwclib.cli_stores import AsJson, DataDir, Results, data_app, existing, results_app
from rwclib.config import ENGINES, PRIORITIES, PROFILES
from rwclib.errors import ConfigError, RwcError, one_line
from rwclib.studies import STUDIES

START = rwclib.STARTED

app = typer.Typer(
    help="Relative weight change of neural networks: train and track, re-run the studies, judge their claims.\n\n"
    "Errors are one sentence; `--debug` anywhere shows the traceback. Exit codes: 0 ok, 1 something failed, 2 bad usage.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None,
)  # fmt: skip
app.add_typer(results_app, name="results")
app.add_typer(data_app, name="data")

_PROFILE_HELP = "; ".join(f"{name}: {what}" for name, what in PROFILES.items())
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at once [default: one per core, or 2 on a GPU].")]
TimeBudget = Annotated[
    float | None, typer.Option(min=0, help="Seconds, start-up included, after which to stop cleanly.")
]
Engine = Annotated[str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in ENGINES.items()))]
Checkpoint = Annotated[float, typer.Option(min=0, help="Least seconds between checkpoints.")]


def main() -> None:
    """Entry point of `rwc` and of `python -m rwclib`."""
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    sys.argv = _join_parameters([argument for argument in sys.argv if argument != "--debug"])
    try:
        app()
    except RwcError as error:
        if debug:
            raise
        print(f"rwc: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (
        OSError,
        RuntimeError,
        UnicodeError,
    ) as error:  # a full disk, GPU memory, torch.compile, a file that is no text
        if debug:
            raise
        print(f"rwc: {type(error).__name__}: {one_line(error)}; --debug shows where", file=sys.stderr)
        sys.exit(1)


def _join_parameters(arguments: list[str]) -> list[str]:
    """`-p NAME VALUE` as `-p NAME=VALUE`, which is what the option parser can take."""
    joined, rest = [], iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument in ("-p", "--parameter"):
            name = next(rest, "")
            value = "" if "=" in name else next(rest, "")
            option = [value] if value.startswith("--") else []  # the value is missing, which `_pairs` says
            joined += [name if "=" in name else f"{name}={'' if option else value}", *option]
    return joined


@app.command()
def train(
    model: Annotated[
        str, typer.Option(help="resnet18, resnet34, resnet50, vgg19_bn, alexnet, lenet5, ...; a wrong name lists all.")
    ],
    dataset: Annotated[str, typer.Option(help="mnist, fashion_mnist, cifar10, cifar100, svhn, fashion_mnist_sample")],
    width: Annotated[int | None, typer.Option(help="Channels of the first stage, a multiple of 8.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    seed: Annotated[int, typer.Option(help="Of initialisation, order and augmentation.")] = 0,
    n_train: Annotated[int | None, typer.Option(help="Training images used [default: all].")] = None,
    n_test: Annotated[int | None, typer.Option(help="Test images used [default: all].")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, constant.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty, as in torch.optim.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adam.")] = None,
    crop_padding: Annotated[int | None, typer.Option(help="Zero padding of the random crop; 0: no crop.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Random horizontal flip.")] = None,
    normalize: Annotated[str | None, typer.Option(help="imagenet or none.")] = None,
    shuffle: Annotated[bool | None, typer.Option("--shuffle/--no-shuffle", help="New order in every epoch.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    results: Results = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    engine: Engine = "eager",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads [default: all cores].")] = None,
    time_budget: TimeBudget = None,
    checkpoint_seconds: Checkpoint = 20.0,
) -> None:
    """Train one run, or go on where it stopped.

    The last line printed is the run's directory.

    What is not given is as in study 1 (its learning rate, weight decay, batch size and augmentation; 150 epochs), for a
    network that study 1 does not have with learning rate 0.01 and weight decay 1e-4.
    """
    from rwclib import archive, data, models, training
    from rwclib.progress import progress_line
    from rwclib.studies import layerwise

    models.get(model), data.get(dataset)
    given = {
        "width": width, "epochs": epochs, "n_train": n_train, "n_test": n_test, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "batch_size": batch_size, "optimizer": optimizer, "crop_padding": crop_padding,
        "flip": flip, "normalize": normalize, "shuffle": shuffle, "precision": precision,
    }  # fmt: skip
    base = layerwise.run_config("paper", model if model in layerwise.MODELS else "resnet18", dataset, seed)
    if model not in layerwise.MODELS:
        base = replace(base, model=model, lr=0.01)
    config = replace(base, study="custom", **{key: value for key, value in given.items() if value is not None})
    place = training.run(
        config, results=results or archive.default_results(), data_dir=data_dir, device=device, engine=engine,
        threads=threads, deadline=START + time_budget if time_budget is not None else None, checkpoint_seconds=checkpoint_seconds,
        progress=lambda values: print(progress_line(config.name, values), file=sys.stderr, flush=True),
    )  # fmt: skip
    print(place)


@app.command()
def sweep(
    study: Annotated[str, typer.Argument(help=", ".join(STUDIES))],
    profile: Annotated[str, typer.Option(help=_PROFILE_HELP)] = "quick",
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
    executor: Annotated[
        str,
        typer.Option(
            help="Where to train. local: processes of this machine; dask: workers of a Dask cluster; slurm: Slurm jobs, "
            "submitted from here. All machines must share the results folder and the data."
        ),
    ] = "local",
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="With dask: tcp://host:8786 of a running scheduler [default: --jobs workers on this machine]."
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="With slurm; repeat for more: partition=gpu, gpus_per_node=1, mem_gb=16, timeout_min=240, ...; a job at its "
            "time limit is queued again. cluster=local tries it on this machine without Slurm.",
        ),
    ] = None,
    priority: Annotated[
        str, typer.Option(help="; ".join(f"{name}: {what}" for name, what in PRIORITIES.items()))
    ] = "seeds",
    chunk: Annotated[int, typer.Option(min=1, help="Runs per job, one after the other.")] = 1,
    time_budget: TimeBudget = None,
    checkpoint_seconds: Checkpoint = 20.0,
    as_json: AsJson = False,
) -> None:
    """Train the runs of a study that the archive lacks.

    Several machines: --executor dask or slurm, with the packages of the extra `cluster` (README says how).
    """
    from dataclasses import asdict

    from rwclib import archive, planning, studies
    from rwclib.executors import open_executor
    from rwclib.progress import SweepProgress
    from rwclib.sweep import run_all

    configs = planning.order(studies.get(study).runs(profile, models=only, datasets=dataset, seeds=seed), priority)
    opened = open_executor(executor, results=results, jobs=jobs, device=device, scheduler=scheduler, slurm=slurm or [])
    with opened as (pool, at_once), SweepProgress(configs) as tell:
        budget = None if time_budget is None else max(0.0, START + time_budget - time.time())
        report = run_all(
            configs, results=results, data_dir=data_dir, device=device, engine=engine, jobs=at_once, executor=pool, chunk=chunk,
            time_budget=budget, checkpoint_seconds=checkpoint_seconds, progress=tell,
        )  # fmt: skip
    by_message: dict[str, list[str]] = {}
    for name, message in (report.failed | report.diverged).items():
        by_message.setdefault(message, []).append(name)
    for message, names in by_message.items():
        print(f"{names[0] if len(names) == 1 else f'{len(names)} runs'}: {message}", file=sys.stderr)
    print(json.dumps(asdict(report), indent=1) if as_json else report.summary())
    if report.left:
        left = [config for config in configs if config.name in report.left]
        here = executor == "local"  # elsewhere the machines, and how many there are, are not known
        about = planning.outlook(left, results or archive.default_results(), device, jobs) if here else ""
        print(f"runs left: {len(left)}{about}; the same command goes on", file=sys.stderr)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def reproduce(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Numbers of notebooks, as with --only.")] = None,
    profile: Annotated[str | None, typer.Option(help="best, or " + _PROFILE_HELP)] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only the notebooks whose names begin so, e.g. 01.")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train the runs instead of reading the archive.")] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="NAME VALUE or NAME=VALUE: a parameter of the notebooks."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for executed notebooks, pages, figures, new runs.")] = Path(
        "output"
    ),
    results: Results = None,
    device: Device = "auto",
    jobs: Jobs = None,
) -> None:
    """Execute the notebooks: pages, figures, claims.

    Reads the archive's best runs, or with --retrain trains the profile's (default quick) into OUTPUT/results-PROFILE.
    """
    from rwclib import archive, data, scorecards, studies
    from rwclib import notebooks as books
    from rwclib.config import check_profile

    profile = profile or ("quick" if retrain else "best")
    if check_profile(profile, "best") == "best" and retrain:
        raise ConfigError(f"--retrain needs a profile to train: {', '.join(PROFILES)}")
    if results is None:
        results = output / f"results-{profile}" if retrain else archive.default_results()
    if not retrain:
        existing(results)
    paths = books.find([*(only or []), *(notebooks or [])])
    if not paths:
        raise ConfigError(f"no notebooks in {books.folder()}")
    shared = {
        "profile": profile, "retrain": retrain, "device": device, "jobs": jobs or 0,
        "results": str(results.absolute()), "figures": str((output / "figures").absolute()),
    }  # fmt: skip
    wanted = _pairs(parameter or [])
    defaults = {path: books.parameters(path) for path in paths}
    for name in wanted:
        if name in shared:
            raise ConfigError(
                f"parameter {name} is an option of this command: write --{'output' if name == 'figures' else name}"
            )
        if not any(name in known for known in defaults.values()):
            known = sorted({name for known in defaults.values() for name in known})
            raise ConfigError(f"no notebook has a parameter {name!r}; known: {', '.join(known)}")
    if retrain and (there := len(archive.directories(results))):
        print(f"runs in {results} already, not trained again: {there}; delete the folder to start from scratch")
    for path in paths:
        known = defaults[path]
        values = {name: value for name, value in shared.items() if name in known}
        values |= {name: books.parse_value(name, text, known[name]) for name, text in wanted.items() if name in known}
        began = time.time()
        page = books.execute(path, output, values)
        print(f"{path.name}: {page} ({time.time() - began:.0f} s)", flush=True)
    print()
    for study in STUDIES:
        table = studies.get(study, "claims").scorecard(results, profile)
        (output / f"claims_{study}.md").write_text(scorecards.to_markdown(table) + "\n")
        if len(paths) == len(books.find()):
            print(scorecards.to_text(table))
        else:
            print("\n".join([f"{output / f'claims_{study}.md'}:", *scorecards.tallies(table)]))
    absent = [name for name in data.DATASETS if not data.path(name).exists()]
    if absent:
        print(
            f"\nNot on this machine: {', '.join(absent)} (nothing is put in their place; `rwc data fetch NAME` gets one)."
        )


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise ConfigError(f"-p {word!r} lacks a name or a value; write -p NAME VALUE")
        pairs[name] = value
    return pairs


@app.command()
def claims(
    study: Annotated[list[str] | None, typer.Option(help="Only these studies; repeat for more.")] = None,
    profile: Annotated[str, typer.Option(help="best, or " + _PROFILE_HELP)] = "best",
    results: Results = None,
    form: Annotated[str, typer.Option("--format", help="table, json or md.")] = "table",
    into: Annotated[
        Path | None, typer.Option(help="Put the md table between this file's <!-- claims --> marks.")
    ] = None,
) -> None:
    """Print the scorecard: every claim, its verdicts.

    Studies 1 and 2 are judged under both definitions of relative weight change, 3 under three meanings of
    *changed*, 4 under two readings of its paper.
    """
    import pandas as pd

    from rwclib import archive, scorecards, studies

    if form not in ("table", "json", "md"):
        raise ConfigError(f"unknown format {form!r}; known: table, json, md")
    folder = existing(results or archive.default_results())
    table = pd.concat([studies.get(name, "claims").scorecard(folder, profile) for name in study or STUDIES])
    if into:
        before, marks, rest = into.read_text().partition("<!-- claims -->")
        _, end, after = rest.partition("<!-- /claims -->")
        if not marks or not end:
            raise ConfigError(f"{into} has no place for the table; mark it with <!-- claims --> and <!-- /claims -->")
        archive.write_atomically(into, f"{before}{marks}\n{scorecards.to_markdown(table)}\n{end}{after}".encode())
    elif form == "json":
        print(table.to_json(orient="records", indent=1))
    else:
        print(scorecards.to_markdown(table) if form == "md" else scorecards.to_text(table))


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="The page to write.")] = Path("report.html"),
    profile: Annotated[str, typer.Option(help="best, or " + _PROFILE_HELP)] = "best",
    results: Results = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder of executed notebooks, as reproduce's OUTPUT [default: the repository's notebooks]."),
    ] = None,
) -> None:
    """Write one HTML page to send to a colleague.

    It is self-contained: scorecard, accuracies, all figures, provenance.
    """
    from rwclib import archive
    from rwclib.report import page

    content = page(existing(results or archive.default_results()), profile, figures).encode()
    archive.write_atomically(file, content)
    print(f"{file}: {len(content) / 1e6:.1f} MB")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="tracker, training, sweep, scheduling, clustering, memory or gpu.")],
    quick: Annotated[bool, typer.Option("--quick", help="Toy size: shows that it runs, measures nothing.")] = False,
    into: Annotated[Path | None, typer.Option("--json", help="Write the environment and the rows here too.")] = None,
) -> None:
    """Measure speed or memory, ours beside the alternative."""
    import subprocess

    folder = Path(__file__).parents[1] / "benchmarks"
    known = sorted(
        file.stem for file in folder.glob("[a-z]*.py") if file.stem not in ("readme", "judgement", "recompute")
    )
    if not known:
        raise ConfigError("the benchmarks come with the repository, not with the package; call this from a clone")
    if name not in known:
        raise ConfigError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    words = ["--quick"] * quick + (["--json", str(into)] if into else [])
    paths = os.pathsep.join([str(folder.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, folder / f"{name}.py", *words]
    raise typer.Exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}).returncode)
