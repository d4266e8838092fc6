"""The commands `rwc results` and `rwc data`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from rwclib.app.cli_options import AsJson, DataDir, Results
from rwclib.errors import ArchiveError
from rwclib.runs.config import RunConfig

results_app = typer.Typer(
    help="Look at and check the archive of finished runs.", no_args_is_help=True, rich_markup_mode=None
)
data_app = typer.Typer(help="Image sets: what is here, and fetching them.", no_args_is_help=True, rich_markup_mode=None)


@results_app.command("ls")
def results_ls(results: Results = None, as_json: AsJson = False) -> None:
    """List the finished runs."""
    from rwclib.runs import archive

    rows = []
    for place in archive.directories(archive.existing(results)):
        run = archive.read_dir(place)
        last = run.epochs.iloc[-1] if len(run.epochs) else None
        rows.append({
            "run": f"{run.config.study}/{place.name}", "status": run.record["status"], "epochs": len(run.epochs),
            "iterations": run.config.iterations, "test_top1": None if last is None else round(float(last["test_top1"]), 2),
            "device": run.record["provenance"]["device"],
        })  # fmt: skip
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            length = f"{row['iterations']} iterations" if row["iterations"] else f"{row['epochs']} epochs"
            accuracy = "-" if row["test_top1"] is None else f"{row['test_top1']}%"
            print(f"{row['run']}  {row['status']}  {length}  test top-1 {accuracy}  {row['device']}")
        print(f"runs: {len(rows)}")


@results_app.command("verify")
def results_verify(results: Results = None) -> None:
    """Check every finished run against its checksums.

    Exit code 1 if one is damaged, or if there is none to check.
    """
    from rwclib.runs import archive

    folder = archive.existing(results)
    damages = [archive.damage(place) for place in archive.directories(folder)]
    if not damages:
        raise ArchiveError(f"no finished runs in {folder}; name the folder that holds the studies' folders")
    for problem in (problem for problems in damages for problem in problems):
        print(problem, file=sys.stderr)
    damaged = sum(map(bool, damages))
    print(f"runs ok: {len(damages) - damaged}, damaged: {damaged}")
    raise typer.Exit(1 if damaged else 0)


@results_app.command("recheck")
def results_recheck(
    sample: Annotated[int, typer.Option(min=1, help="How many runs to draw.")] = 2,
    seed: Annotated[int | None, typer.Option(help="Of the draw [default: a new one, printed].")] = None,
    study: Annotated[list[str] | None, typer.Option(help="Only these studies; repeat for more.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Whose runs [default: the cheapest that the archive has].")
    ] = None,
    longest: Annotated[
        float, typer.Option(min=0, help="Draw no run that took more seconds, with those it starts from.")
    ] = 20.0,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Every bit must be the same: this machine and these versions trained the archive."
        ),
    ] = False,
    results: Results = None,
    data_dir: DataDir = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at once [default: one per core].")] = None,
) -> None:
    """Train some archived runs again and compare.

    They are drawn at random and trained in a temporary folder; a run that starts from another's weights needs that one trained first,
    which is compared too. docs/results.md says what may differ; with --strict nothing may.
    Exit code 1 if a run differs, or if none could be compared.
    """
    import random

    from rwclib.runs import archive
    from rwclib.sweeps import recheck
    from rwclib.sweeps.progress import SweepProgress

    folder = archive.existing(results)
    seed = random.randrange(10**6) if seed is None else seed  # noqa: S311 (a draw of runs)
    name, configs = _archived(folder, study, profile)
    choice = recheck.choose(configs, folder, sample, seed, data_dir=data_dir, longest=longest)
    more = len(choice.runs) - len(choice.drawn)
    print(
        f"profile {name}, seed {seed}: {len(choice.drawn)} of {len(configs)} archived runs"
        + (f", and {more} that these start from" if more else "")
    )
    for reason, count in choice.left_out.items():
        print(f"not drawn, {reason}: {count}")
    if not choice.runs:
        raise ArchiveError("none of the archived runs can be trained again here; see above what they need")
    with SweepProgress(choice.runs) as tell:
        comparisons = recheck.recheck(choice.runs, folder, data_dir=data_dir, jobs=jobs, progress=tell, strict=strict)
    problems = [comparison.problem for comparison in comparisons if comparison.problem]
    print("\n".join(comparison.line() for comparison in comparisons))
    if problems:
        print("\n".join(problems), file=sys.stderr)
    if all(comparison.skipped for comparison in comparisons):
        raise ArchiveError("none of the drawn runs could be compared; see above why")
    raise typer.Exit(1 if problems else 0)


def _archived(folder: Path, study: list[str] | None, profile: str | None) -> tuple[str, list[RunConfig]]:
    """The profile, by default the cheapest that the archive has, and its archived runs."""
    from rwclib import studies
    from rwclib.runs import archive
    from rwclib.runs.config import PROFILES, check_profile

    there = {config for config, _ in archive.records(folder)}
    for name in [check_profile(profile)] if profile else PROFILES:
        planned = (config for part in study or studies.STUDIES for config in studies.runs(part)(name))
        configs = [config for config in planned if config in there]
        if configs:
            return name, configs
    kind = f"profile {profile}" if profile else "any profile"
    raise ArchiveError(f"no runs of {kind} in {folder}; name another folder or profile")


@results_app.command("clean")
def results_clean(results: Results = None) -> None:
    """Delete what only unfinished or dependent runs need.

    Checkpoints, and the weights that other runs start from. A run in progress keeps its own.
    """
    from rwclib.runs import archive

    kept = archive.clean(archive.existing(results))
    print(f"cleaned; runs in progress, left alone: {len(kept)}")


@data_app.command("status")
def data_status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Which image sets are on this machine.

    Where they are from, and how they differ from the official files.
    """
    from rwclib.runs import data

    rows = []
    for name in data.DATASETS:
        file = data.path(name, data_dir)
        row = {"name": name, "file": str(file), "here": file.exists(), "source": None, "note": None}
        if file.exists():
            images = data.load(name, data_dir)
            row |= {
                "train": len(images.y_train),
                "test": len(images.y_test),
                "source": images.source,
                "note": images.note,
            }
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        if row["here"]:
            print(f"{row['name']:<22}{row['train']:,} + {row['test']:,} images; {row['note']} ({row['source']})")
        else:
            print(f"{row['name']:<22}not here: expected {row['file']}; `rwc data fetch {row['name']}`")


@data_app.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="An image set.")], data_dir: DataDir = None) -> None:
    """Download an image set into the data folder.

    Through torchvision, digests checked.
    """
    from rwclib.runs import data

    images = data.fetch(name, data_dir)
    print(f"{name}: {len(images.y_train):,} + {len(images.y_test):,} images in {data.path(name, data_dir)}")
