"""`rwc reproduce`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rwclib.app.cli_options import PROFILE_HELP, Device, Jobs, Results
from rwclib.errors import ConfigError
from rwclib.runs.config import PROFILES
from rwclib.studies import STUDIES


def join_parameters(arguments: list[str]) -> list[str]:
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


def reproduce(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Numbers of notebooks, as with --only.")] = None,
    profile: Annotated[str | None, typer.Option(help="best, or " + PROFILE_HELP)] = None,
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
    from rwclib.app import notebooks as books
    from rwclib.runs import archive, data
    from rwclib.runs.config import check_profile

    profile = profile or ("quick" if retrain else "best")
    if check_profile(profile, "best") == "best" and retrain:
        raise ConfigError(f"--retrain needs a profile to train: {', '.join(PROFILES)}")
    if results is None:
        results = output / f"results-{profile}" if retrain else archive.default_results()
    if not retrain:
        archive.existing(results)
    paths = books.find([*(only or []), *(notebooks or [])])
    if not paths:
        raise ConfigError(f"no notebooks in {books.folder()}")
    shared = {
        "profile": profile, "retrain": retrain, "device": device, "jobs": jobs or 0,
        "results": str(results.absolute()), "figures": str((output / "figures").absolute()),
    }  # fmt: skip
    defaults = {path: books.parameters(path) for path in paths}
    given = _pairs(parameter or [])
    _check_names(given, shared, {name for known in defaults.values() for name in known})
    if retrain and (there := len(archive.directories(results))):
        print(f"runs in {results} already, not trained again: {there}; delete the folder to start from scratch")
    for path in paths:
        known = defaults[path]
        values = {name: value for name, value in shared.items() if name in known}
        values |= {name: books.parse_value(name, text, known[name]) for name, text in given.items() if name in known}
        began = time.time()
        page = books.execute(path, output, values)
        print(f"{path.name}: {page} ({time.time() - began:.0f} s)", flush=True)
    _judge(results, profile, output, only=paths if len(paths) < len(books.find()) else None)
    absent = [name for name in data.DATASETS if not data.path(name).exists()]
    if absent:
        print(
            f"\nNot on this machine: {', '.join(absent)} (nothing is put in their place; `rwc data fetch NAME` gets one)."
        )


def _judge(results: Path, profile: str, output: Path, only: list[Path] | None) -> None:
    """Write every study's claims and print them; of some notebooks `only`, their studies' claims and in short."""
    from rwclib import studies
    from rwclib.analysis import scorecard as scorecards
    from rwclib.app import notebooks as books

    print()
    numbers = {books.study_number(path) for path in only or books.find()}
    for number, study in enumerate(STUDIES, 1):
        if number in numbers:
            table = studies.get(study).scorecard(results, profile)
            (output / f"claims_{study}.md").write_text(scorecards.to_markdown(table) + "\n")
            if only:
                print("\n".join([f"{output / f'claims_{study}.md'}:", *scorecards.tallies(table)]))
            else:
                print(scorecards.to_text(table))


def _check_names(given: dict[str, str], shared: dict[str, object], known: set[str]) -> None:
    for name in given:
        if name in shared:
            raise ConfigError(
                f"parameter {name} is an option of this command: write --{'output' if name == 'figures' else name}"
            )
        if name not in known:
            raise ConfigError(f"no notebook has a parameter {name!r}; known: {', '.join(sorted(known))}")


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise ConfigError(f"-p {word!r} lacks a name or a value; write -p NAME VALUE")
        pairs[name] = value
    return pairs
