"""`rwc compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rwclib.app.cli_options import AsJson
from rwclib.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 30
FORMATS = (".png", ".pdf", ".svg")
COLUMNS = {
    "rwc": "rwc", "rwc_elementwise": "elementwise", "rwc_median": "median", "cosine": "cosine",
    "changed": "changed", "changed_0.1%": "by 0.1%", "changed_1%": "by 1%",
}  # fmt: skip


def compare(
    a: Annotated[Path, typer.Argument(help="Checkpoint before: a file, an index of shards, or the folder of one.")],
    b: Annotated[Path, typer.Argument(help="Checkpoint after.")],
    layers: Annotated[
        list[str] | None, typer.Option(help="Only tensors whose names match this glob; repeat for more.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="block: a row per block instead of per tensor.")] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw rwc too, into this .png, .pdf or .svg file.")] = None,
) -> None:
    """Compare the weights of two checkpoints, largest change first.

    Reads safetensors and what torch.save wrote, sharded or not, tensor by tensor; builds no model and runs no code. JSON
    and CSV have all rows and metrics, in network order.
    """
    if as_json and as_csv:
        raise ConfigError("--json and --csv exclude one another; choose one")
    if plot and plot.suffix.lower() not in FORMATS:
        raise ConfigError(f"cannot draw into {plot}; end the name with one of {', '.join(FORMATS)}")
    if plot and not plot.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {plot.absolute().parent} to draw into; make it first")
    import rwclib

    table = rwclib.compare(a, b, layers or None, by)
    if plot:
        from rwclib.analysis.plotting_compare import differences

        differences(table, title=f"{a} → {b}").savefig(plot, dpi=150)
        print(f"drawn: {plot}", file=sys.stderr)
    if as_json:
        print(table.to_json(orient="records", indent=1))
    elif as_csv:
        print(table.to_csv(index=False, lineterminator="\n"), end="")
    else:
        print(_readable(table))


def _readable(table: pd.DataFrame) -> str:
    """The largest changes, how many rows are not shown, and what could not be compared."""
    compared = table[table["size"] > 0].sort_values("rwc", ascending=False, na_position="first", kind="stable")
    shown = compared.head(SHOWN)
    cells = shown[["layer", "size", *COLUMNS, "dtype"]].rename(columns=COLUMNS)
    form = dict.fromkeys(("changed", "by 0.1%", "by 1%"), "{:.1%}".format) | {"size": "{:,}".format}
    form |= {"layer": f"{{:<{max(map(len, shown['layer']), default=0)}}}".format, "cosine": "{:.6f}".format}
    lines = [cells.to_string(index=False, formatters=form, float_format="{:.3g}".format)] if len(shown) else []
    if len(compared) > len(shown):
        lines.append(f"and {len(compared) - len(shown)} more, which changed less; --csv or --json prints all")
    for status, rows in table[table["status"] != "both"].groupby("status", sort=False):
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        lines.append(f"{status}: {', '.join((rows['layer'] + ' (' + rows['shape'] + ')')[:3])}{more}")
    return "\n".join([*lines, f"rows: {len(table)}, compared: {len(compared)}"])
