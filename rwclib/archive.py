"""The archive: one directory per finished run, written atomically, checked when read, loaded as tidy tables.

<results>/<study>/<name>-<hash12>/run.json        config, provenance, status, digests of the tables; written last
                                  layers.parquet  one row per (epoch, layer)
                                  epochs.parquet  one row per epoch
                                  *.parquet, *.npy  what else the run measured, for example snapshots.parquet
<results>/.cache/                                 locks and checkpoints of runs in progress; never committed
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, RunLockedError, RwcError, one_line
from rwclib.locks import Lock
from rwclib.metrics import METRICS

TABLES = ("layers.parquet", "epochs.parquet")
FINAL = ("done", "diverged")
EXTRA = re.compile(r"[a-z][a-z0-9_]{0,99}\.(parquet|npy)")  # names of a run's files besides run.json
_CELLS = 2**26  # numbers in a table
_NUMBERS = {"layers.parquet": ("epoch", "depth", "size", *METRICS), "epochs.parquet": ("epoch", "test_top1")}


@dataclass(frozen=True)
class Run:
    """A finished run as read from the archive: its config, its record (run.json) and its tables.

    `extra` holds what else it measured, by file name without ending: tables and arrays.
    """

    config: RunConfig
    record: dict
    layers: pd.DataFrame
    epochs: pd.DataFrame
    extra: dict[str, pd.DataFrame | np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """Finished runs as tidy tables; all but `runs` carry the run's model, dataset, width, seed and hash.

    `extra` holds the runs' further tables, by file name without ending; `arrays` theirs, by (hash, file name without ending).
    """

    runs: pd.DataFrame
    layers: pd.DataFrame
    epochs: pd.DataFrame
    extra: dict[str, pd.DataFrame] = field(default_factory=dict)
    arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


def last_epochs(epochs: pd.DataFrame) -> pd.DataFrame:
    """Of the table `Tables.epochs`, the row of each run's last epoch."""
    return epochs[epochs["epoch"] == epochs.groupby("hash")["epoch"].transform("max")] if len(epochs) else epochs


def default_results() -> Path:
    """`data/results` of the repository, or of the working directory when the package is installed elsewhere."""
    beside = Path(__file__).parents[1] / "data" / "results"
    return beside if beside.is_dir() else Path("data/results")


def run_dir(results: Path, config: RunConfig) -> Path:
    return Path(results) / config.study / config.name


def cache_dir(results: Path, config: RunConfig) -> Path:
    """Where the run's checkpoint lies while it is in progress: beside the results, so that a shared folder shares it."""
    return Path(results) / ".cache" / config.name


def lock_path(results: Path, config: RunConfig) -> Path:
    return Path(results) / ".cache" / f"{config.name}.lock"


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write beside `path`, sync and rename; `ArchiveError` if the folder cannot be written or the disk is full.

    `content` may come in pieces, none of which is kept.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as handle:
            for piece in [content] if isinstance(content, bytes) else content:
                handle.write(piece)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ArchiveError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error


def remove_parts(results: Path, config: RunConfig) -> None:
    """Delete what a killed process left half-written of this run (its lock must be held)."""
    for folder in (run_dir(results, config), cache_dir(results, config)):
        for part in folder.glob(".*.part"):
            part.unlink()


def tidy(results: Path, config: RunConfig, *, checkpoint: bool = True) -> None:
    """Delete what a process that died just after it had finished this run left in the cache; nothing if one is at it."""
    if lock_path(results, config).exists() or (checkpoint and cache_dir(results, config).exists()):
        with contextlib.suppress(RunLockedError, ArchiveError), Lock(lock_path(results, config)):
            if checkpoint:
                shutil.rmtree(cache_dir(results, config), ignore_errors=True)


def write(
    results: Path,
    config: RunConfig,
    record: dict,
    layers: pd.DataFrame,
    epochs: pd.DataFrame,
    extra: Mapping[str, pd.DataFrame | np.ndarray] | None = None,
) -> Path:
    """Put a finished run into the archive; run.json, which makes it count, comes last. Returns its directory."""
    place = run_dir(results, config)
    contents = {"layers.parquet": _parquet(layers), "epochs.parquet": _parquet(epochs)}
    for name, found in (extra or {}).items():
        is_table = isinstance(found, pd.DataFrame)
        contents[f"{name}.parquet" if is_table else f"{name}.npy"] = _parquet(found) if is_table else _npy(found)
    for name, content in contents.items():
        write_atomically(place / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    record = {"config": config.to_dict(), **record, "sha256": digests}
    write_atomically(place / "run.json", _text({**record, "checksum": _checksum(record)}))
    return place


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _checksum(record: dict) -> str:
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(record: dict) -> bytes:
    """`run.json`, byte for byte."""
    return json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"


def is_finished(results: Path, config: RunConfig) -> bool:
    """Whether the run is in the archive (`run.json` is written last)."""
    return (run_dir(results, config) / "run.json").exists()


def _printable(value: object) -> bool:
    if isinstance(value, dict):
        return _printable([*value, *value.values()])
    if isinstance(value, list):
        return all(map(_printable, value))
    return not isinstance(value, str) or value.isprintable()


def _record(read: Callable[[str], bytes], where: str) -> tuple[RunConfig, dict]:
    try:
        content = read("run.json")
        record = json.loads(content)
        config = RunConfig.from_dict(record["config"])
        status, digests, known = (record[key] for key in ("status", "sha256", "provenance"))
        genuine = record["checksum"] == _checksum(record) and content == _text(record)
        named = digests.keys() >= set(TABLES) and all(EXTRA.fullmatch(name) for name in digests)
        times = known["n_train"], known["train_and_test_seconds"]
        named = named and _printable(record)  # all of it may be shown in a terminal
        named = named and type(known["device"]) is str and all(type(number) in (int, float) for number in times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RwcError) as error:
        raise ArchiveError(
            f"{where}/run.json cannot be read ({one_line(error)}); delete the directory and train the run again"
        ) from error
    if not genuine or status not in FINAL or not named:
        raise ArchiveError(
            f"{where}/run.json was edited or damaged (it differs from its checksum); restore it or train the run again"
        )
    if PurePosixPath(where).name != config.name:
        raise ArchiveError(
            f"{where} holds the run {config.name}, says its run.json; put the right one back or train the run again"
        )
    return config, record


def _file(read: Callable[[str], bytes], name: str, digest: str, where: str) -> pd.DataFrame | np.ndarray:
    try:
        content = read(name)
    except OSError as error:
        raise ArchiveError(f"{where}/{name} cannot be read ({error.strerror}); train the run again") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArchiveError(
            f"{where}/{name} was truncated or edited (its SHA-256 differs); restore it or train the run again"
        )
    try:
        return _parsed(content, name)
    except Exception as error:  # made so, digest and all: NumPy and Arrow raise anything then
        raise ArchiveError(
            f"{where}/{name} is nothing that a run writes ({one_line(error)}); delete the run"
        ) from error


def _parsed(content: bytes, name: str) -> pd.DataFrame | np.ndarray:
    from pyarrow import parquet

    buffer = io.BytesIO(content)
    if name.endswith(".npy"):
        array = np.load(buffer, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is no array")
        return array
    file = parquet.ParquetFile(buffer)
    about = file.metadata
    rows = sum(about.row_group(i).num_rows for i in range(about.num_row_groups))
    if max(rows, about.num_rows) * about.num_columns > _CELLS:
        raise ValueError("it has too many rows")
    # The files are small: half the time of pandas.read_parquet.
    table = file.read(use_threads=False).to_pandas(use_threads=False)
    for column in _NUMBERS.get(name, ()):
        if table[column].dtype.kind not in "if":
            raise ValueError(f"its column {column} holds no numbers")
    return table


def parse(read: Callable[[str], bytes], where: str) -> Run:
    """The run whose files `read` gives by name, checksums verified; `where` names it in an `ArchiveError`."""
    config, record = _record(read, where)
    found = {
        name.partition(".")[0]: _file(read, name, digest, where) for name, digest in sorted(record["sha256"].items())
    }
    return Run(config, record, found.pop("layers"), found.pop("epochs"), found)


def read_dir(place: Path) -> Run:
    """The run in the directory `place`, checksums verified; `ArchiveError` names what is damaged."""
    return parse(lambda name: (place / name).read_bytes(), place.as_posix())


def read(results: Path, config: RunConfig) -> Run:
    """The finished run of `config`; `ArchiveError` if it is missing or damaged."""
    return read_dir(run_dir(results, config))


def set_aside(place: Path) -> Path:
    """Rename a damaged run directory so that it is kept but no longer counts; returns its new name."""
    aside = place.with_name(f"{place.name}.damaged-{secrets.token_hex(3)}")
    place.rename(aside)
    return aside


def directories(results: Path) -> list[Path]:
    """Every run directory below `results` that has a run.json, sorted; damaged ones set aside are left out."""
    found = (file.parent for file in Path(results).glob("*/*/run.json"))
    return sorted(place for place in found if not place.parent.name.startswith(".") and ".damaged-" not in place.name)


def records(results: Path) -> list[tuple[RunConfig, dict]]:
    """Config and record of every finished run, without its tables; `ArchiveError` if a `run.json` is damaged."""
    return [
        _record(lambda name, place=place: (place / name).read_bytes(), str(place)) for place in directories(results)
    ]


def load(configs: Iterable[RunConfig], results: Path, status: str | None = None) -> Tables:
    """The finished runs among `configs` as tidy tables; runs not in the archive are simply absent.

    `status` keeps only the runs of that status, `done` or `diverged`.

    Raises:
        ArchiveError: a run directory is damaged.
    """
    runs = [read(results, config) for config in configs if is_finished(results, config)]
    runs = [run for run in runs if status in (None, run.record["status"])]
    keys = ("study", "model", "dataset", "width", "seed")

    def together(frames: list[tuple[RunConfig, pd.DataFrame]]) -> pd.DataFrame:
        """One table, with whose run each row is."""
        lengths = [len(table) for _, table in frames]
        of = {key: np.repeat([getattr(config, key) for config, _ in frames], lengths) for key in (*keys, "hash")}
        return pd.concat([table for _, table in frames], ignore_index=True).assign(**of)

    def tidy(part: str) -> pd.DataFrame:
        frames = [(run.config, getattr(run, part)) for run in runs]
        columns = dict.fromkeys([*keys, "hash", "group", "layer"], "str") | {
            "epoch": "int32", "depth": "int32", "size": "int64", "seed": "int64"
        }  # fmt: skip
        columns |= dict.fromkeys(METRICS, "float64")
        empty = pd.DataFrame(columns=list(columns)).astype(columns)
        return together(frames) if frames else empty

    rows = [
        run.record["provenance"]
        | {"images": run.record["provenance"]["n_train"], "status": run.record["status"], "hash": run.config.hash}
        | run.config.to_dict()
        for run in runs
    ]
    extra: dict[str, list[tuple[RunConfig, pd.DataFrame]]] = {}
    arrays = {}
    for run in runs:
        for name, found in run.extra.items():
            if isinstance(found, pd.DataFrame):
                extra.setdefault(name, []).append((run.config, found))
            else:
                arrays[run.config.hash, name] = found
    return Tables(
        pd.DataFrame(rows, columns=None if rows else list(keys)), tidy("layers"), tidy("epochs"),
        {name: together(frames) for name, frames in extra.items()}, arrays,
    )  # fmt: skip


def damage(place: Path) -> list[str]:
    """One sentence per damaged file of the run in the directory `place`; if it is run.json, for it alone."""

    def read_file(name: str) -> bytes:
        return (place / name).read_bytes()

    try:
        _, record = _record(read_file, place.as_posix())
    except ArchiveError as error:
        return [str(error)]
    problems = []
    for name, digest in sorted(record["sha256"].items()):
        try:
            _file(read_file, name, digest, place.as_posix())
        except ArchiveError as error:
            problems.append(str(error))
    return problems


def verify(results: Path) -> list[str]:
    """One sentence per damaged file below `results`; empty if all is well."""
    return [problem for place in directories(results) for problem in damage(place)]
