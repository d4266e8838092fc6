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
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import _places
from rwclib.errors import ArchiveError, ConfigError, RunLockedError, RwcError, one_line
from rwclib.metrics import METRICS
from rwclib.runs import locks
from rwclib.runs.config import RunConfig

FINAL = ("done", "diverged")
KEYS = ("study", "model", "dataset", "width", "seed")  # of a run, in every table


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
    """`$RWC_RESULTS`, else `data/results` of the repository, or of the working directory where there is none."""
    return _places.results()


def existing(results: str | Path | None = None) -> Path:
    """The archive folder, by default `default_results()`; `ConfigError` if it does not exist."""
    folder = Path(results or default_results())
    if not folder.is_dir():
        raise ConfigError(f"results folder {folder} does not exist; train something first, or name another")
    return folder


def run_dir(results: Path, config: RunConfig) -> Path:
    return Path(results) / config.study / config.name


def cache_dir(results: Path, config: RunConfig) -> Path:
    """Where the run's checkpoint lies while it is in progress: beside the results, so that a shared folder shares it."""
    return Path(results) / ".cache" / config.name


def lock_path(results: Path, config: RunConfig) -> Path:
    return Path(results) / ".cache" / f"{config.name}.lock"


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Write `content`, or its pieces, beside `path`, sync and rename; `ArchiveError` if the folder or disk does not allow it."""
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


def remove_leftovers(results: Path, config: RunConfig) -> None:
    """Delete what a process that died just after it had finished this run left in the cache; nothing if one is at it."""
    if lock_path(results, config).exists() or cache_dir(results, config).exists():
        with contextlib.suppress(RunLockedError, ArchiveError), locks.hold(lock_path(results, config)):
            shutil.rmtree(cache_dir(results, config), ignore_errors=True)


def clean(results: Path) -> list[str]:
    """Delete the cache: checkpoints, logs, and weights kept for dependent runs.

    Returns the names of the runs in progress, whose files stay, and while there are any the weights too.
    """
    cache = Path(results) / ".cache"
    busy = [path.stem for path in cache.glob("*.lock") if locks.owner(path)]
    kept = (*busy, "weights") if busy else ()
    for path in cache.glob("*"):
        if path.name.startswith(kept):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return busy


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
    contents = {}
    for name, measured in {"layers": layers, "epochs": epochs, **(extra or {})}.items():
        ending = "parquet" if isinstance(measured, pd.DataFrame) else "npy"
        contents[f"{name}.{ending}"] = _encoded(measured)
    for name, content in contents.items():
        write_atomically(place / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    record = {"config": config.to_dict(), **record, "sha256": digests}
    write_atomically(place / "run.json", _text({**record, "checksum": _checksum(record)}))
    return place


def _encoded(measured: pd.DataFrame | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    if isinstance(measured, pd.DataFrame):
        measured.to_parquet(buffer, index=False, compression="zstd")
    else:
        np.save(buffer, measured, allow_pickle=False)
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


def _record(place: Path) -> tuple[RunConfig, dict]:
    try:
        content = (place / "run.json").read_bytes()
        record = json.loads(content)
        config = RunConfig.from_dict(record["config"])
        genuine = record["checksum"] == _checksum(record) and content == _text(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RwcError) as error:
        raise ArchiveError(
            f"{place}/run.json cannot be read ({one_line(error)}); delete the directory and train the run again"
        ) from error
    if not genuine or record["status"] not in FINAL:
        raise ArchiveError(
            f"{place}/run.json was edited or damaged (it differs from its checksum); restore it or train the run again"
        )
    if place.name != config.name:
        raise ArchiveError(
            f"{place} holds the run {config.name}, says its run.json; put the right one back or train the run again"
        )
    return config, record


def _file(place: Path, name: str, digest: str) -> pd.DataFrame | np.ndarray:
    from pyarrow import parquet

    try:
        content = (place / name).read_bytes()
    except OSError as error:
        raise ArchiveError(f"{place}/{name} cannot be read ({error.strerror}); train the run again") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArchiveError(
            f"{place}/{name} was truncated or edited (its SHA-256 differs); restore it or train the run again"
        )
    if name.endswith(".npy"):
        return np.load(io.BytesIO(content), allow_pickle=False)
    # The files are small: half the time of pandas.read_parquet.
    return parquet.ParquetFile(io.BytesIO(content)).read(use_threads=False).to_pandas(use_threads=False)


def read_dir(place: Path) -> Run:
    """The run in the directory `place`, checksums verified; `ArchiveError` names what is damaged."""
    config, record = _record(place)
    files = {name.partition(".")[0]: _file(place, name, digest) for name, digest in sorted(record["sha256"].items())}
    return Run(config, record, files.pop("layers"), files.pop("epochs"), files)


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
    places = (file.parent for file in Path(results).glob("*/*/run.json"))
    return sorted(place for place in places if not place.parent.name.startswith(".") and ".damaged-" not in place.name)


def records(results: Path) -> list[tuple[RunConfig, dict]]:
    """Config and record of every finished run, without its tables; `ArchiveError` if a `run.json` is damaged."""
    return [_record(place) for place in directories(results)]


def load(configs: Iterable[RunConfig], results: Path, status: str | None = None) -> Tables:
    """The finished runs among `configs` as tidy tables, all or those of one `status`; runs not in the archive are simply absent.

    A metric that did not exist when a run was made is missing (NaN) in its rows.

    Raises:
        ArchiveError: a run directory is damaged.
    """
    runs = [read(results, config) for config in configs if is_finished(results, config)]
    runs = [run for run in runs if status in (None, run.record["status"])]
    rows = [
        run.record["provenance"]
        | {"images": run.record["provenance"]["n_train"], "status": run.record["status"], "hash": run.config.hash}
        | run.config.to_dict()
        for run in runs
    ]
    extra, arrays = {}, {}
    for run in runs:
        for name, measured in run.extra.items():
            if isinstance(measured, pd.DataFrame):
                extra.setdefault(name, []).append((run.config, measured))
            else:
                arrays[run.config.hash, name] = measured
    return Tables(
        pd.DataFrame(rows, columns=None if rows else list(KEYS)),
        _concatenated([(run.config, run.layers) for run in runs]),
        _concatenated([(run.config, run.epochs) for run in runs]),
        {name: _concatenated(tables) for name, tables in extra.items()},
        arrays,
    )


def _concatenated(tables: list[tuple[RunConfig, pd.DataFrame]]) -> pd.DataFrame:
    """One table, with the run that each row is of."""
    if not tables:
        kinds = dict.fromkeys([*KEYS, "hash", "group", "layer"], "str") | dict.fromkeys(METRICS, "float64")
        kinds |= {"epoch": "int32", "depth": "int32", "size": "int64", "seed": "int64"}
        return pd.DataFrame(columns=list(kinds)).astype(kinds)
    lengths = [len(table) for _, table in tables]
    run_of_row = {key: np.repeat([getattr(config, key) for config, _ in tables], lengths) for key in (*KEYS, "hash")}
    return pd.concat([table for _, table in tables], ignore_index=True).assign(**run_of_row)


def damage(place: Path) -> list[str]:
    """One sentence per damaged file of the run in the directory `place`; if it is run.json, for it alone."""
    try:
        _, record = _record(place)
    except ArchiveError as error:
        return [str(error)]
    problems = []
    for name, digest in sorted(record["sha256"].items()):
        try:
            _file(place, name, digest)
        except ArchiveError as error:
            problems.append(str(error))
    return problems


def verify(results: Path) -> list[str]:
    """One sentence per damaged file below `results`; empty if all is well."""
    return [problem for place in directories(results) for problem in damage(place)]
