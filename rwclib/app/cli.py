"""The command `rwc`: claims, report, bench, and what the modules `cli_train`, `cli_reproduce`, `cli_compare` and `cli_stores` add."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from rwclib.app.cli_compare import compare
from rwclib.app.cli_options import PROFILE_HELP, Results
from rwclib.app.cli_reproduce import join_parameters, reproduce
from rwclib.app.cli_stores import data_app, results_app
from rwclib.app.cli_train import sweep, train, with_settings
from rwclib.errors import ConfigError, RwcError, one_line
from rwclib.studies import STUDIES

app = typer.Typer(
    help="Relative weight change of neural networks: train and track, re-run the studies, judge their claims.\n\n"
    "Errors are one sentence; `--debug` anywhere shows the traceback. Exit codes: 0 ok, 1 something failed, 2 bad usage.",
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None,
)  # fmt: skip
app.command()(with_settings(train))
app.command()(sweep)
app.command()(reproduce)
app.command()(compare)
app.add_typer(results_app, name="results")
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point of `rwc` and of `python -m rwclib`."""
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that a sweep ends its workers
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does
    sys.argv = join_parameters([argument for argument in sys.argv if argument != "--debug"])
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


@app.command()
def claims(
    study: Annotated[list[str] | None, typer.Option(help="Only these studies; repeat for more.")] = None,
    profile: Annotated[str, typer.Option(help="best, or " + PROFILE_HELP)] = "best",
    results: Results = None,
    form: Annotated[str, typer.Option("--format", help="table, json or md.")] = "table",
    into: Annotated[
        list[Path] | None,
        typer.Option(
            help="Put it between this file's <!-- claims --> or <!-- tally --> (verdicts alone) marks; repeat for more."
        ),
    ] = None,
) -> None:
    """Print the scorecard: every claim, its verdicts.

    Studies 1 and 2 are judged under both definitions of relative weight change, 3 under three meanings of
    *changed*, 4 under two readings of its paper.
    """
    import pandas as pd

    from rwclib import studies
    from rwclib.analysis import scorecard as scorecards
    from rwclib.runs import archive

    if form not in ("table", "json", "md"):
        raise ConfigError(f"unknown format {form!r}; known: table, json, md")
    folder = archive.existing(results)
    table = pd.concat([studies.get(name).scorecard(folder, profile) for name in study or STUDIES])
    for file in into or []:
        text = file.read_text()
        mark = "claims" if "<!-- claims -->" in text else "tally"
        before, marks, rest = text.partition(f"<!-- {mark} -->")
        _, end, after = rest.partition(f"<!-- /{mark} -->")
        content = scorecards.to_markdown(table) if mark == "claims" else scorecards.tally_to_markdown(table)
        if not marks or not end:
            raise ConfigError(f"{file} has no place for the table; mark it with <!-- claims --> and <!-- /claims -->")
        archive.write_atomically(file, f"{before}{marks}\n{content}\n{end}{after}".encode())
    if into:
        return
    if form == "json":
        print(table.to_json(orient="records", indent=1))
    else:
        print(scorecards.to_markdown(table) if form == "md" else scorecards.to_text(table))


@app.command()
def report(
    file: Annotated[Path, typer.Argument(help="The page to write.")] = Path("report.html"),
    profile: Annotated[str, typer.Option(help="best, or " + PROFILE_HELP)] = "best",
    results: Results = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder of executed notebooks, as reproduce's OUTPUT [default: the repository's notebooks]."),
    ] = None,
) -> None:
    """Write one HTML page to send to a colleague.

    It is self-contained: scorecard, accuracies, all figures, provenance.
    """
    from rwclib.app.report import page
    from rwclib.runs import archive

    content = page(archive.existing(results), profile, figures).encode()
    archive.write_atomically(file, content)
    print(f"{file}: {len(content) / 1e6:.1f} MB")


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="tracker, training, engines, sweep, scheduling, clustering, memory, compare or gpu.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Toy size: shows that it runs, measures nothing.")] = False,
    into: Annotated[Path | None, typer.Option("--json", help="Write the environment and the rows here too.")] = None,
) -> None:
    """Measure speed or memory, ours beside the alternative."""
    import subprocess

    folder = Path(__file__).parents[2] / "benchmarks"
    known = sorted(
        file.stem for file in folder.glob("[a-z]*.py") if file.stem not in ("readme", "judgement", "recompute")
    )
    if not known:
        raise ConfigError("the benchmarks come with the repository, not with the package; call this from a clone")
    if name not in known:
        raise ConfigError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    words = [*(["--quick"] if quick else []), *(["--json", str(into)] if into else [])]
    paths = os.pathsep.join([str(folder.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, folder / f"{name}.py", *words]
    raise typer.Exit(subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}).returncode)
