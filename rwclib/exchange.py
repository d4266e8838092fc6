"""Moving finished runs: out of an archive into one tar file, and from such a file into an archive."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from rwclib import archive
from rwclib.config import RunConfig
from rwclib.errors import ArchiveError, one_line
from rwclib.locks import Lock

_MEMBER = re.compile(rf"(?P<run>\w+/[\w-]+)/(?P<file>run\.json|{archive.EXTRA.pattern})", re.ASCII)
_LARGEST = 64 * 2**20  # bytes of one file that import accepts
_LARGEST_TAR = 512 * 2**20  # bytes of all, unpacked
_MOST = 100_000  # files


def export(results: Path, file: Path, wanted: Callable[[RunConfig], bool] = lambda config: True) -> int:
    """Write the finished runs below `results` into the gzipped tar `file`; returns how many.

    Raises:
        ArchiveError: there are none, or one is damaged; no file is written.
    """
    buffer, count = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for place in archive.directories(results):
            run = archive.read_dir(place)
            if not wanted(run.config):
                continue
            for name in (*run.record["sha256"], "run.json"):
                tar.add(place / name, f"{run.config.study}/{place.name}/{name}", recursive=False)
            count += 1
    if not count:
        raise ArchiveError(f"no finished runs to export in {results}; name another folder or another study")
    archive.write_atomically(Path(file), buffer.getvalue())
    return count


def _unpacked(file: Path) -> io.BytesIO:
    """The tar in a file, which may be gzipped; `ValueError` if it is too large."""
    content = io.BytesIO()
    with open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        while piece := stream.read(2**20):
            content.write(piece)
            if content.tell() > _LARGEST_TAR:
                raise ValueError(f"it has more than {_LARGEST_TAR >> 20} MiB unpacked; export fewer runs, by --study")
    content.seek(0)
    return content


def import_(file: Path, results: Path) -> tuple[int, int]:
    """Take the runs of the tar `file` into `results`; returns (new, already there).

    Nothing is unpacked by tar: the files of each run are read, checked as a whole, and written like a new run.

    Raises:
        ArchiveError: the file is not a tar of runs, or a run in it is damaged; nothing has been written then.
    """
    contents: dict[str, dict[str, bytes]] = {}
    try:
        unpacked = _unpacked(Path(file))
        with tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for count, member in enumerate(tar):
                known = _MEMBER.fullmatch(member.name)
                if not (known and member.isreg() and 0 <= member.size <= _LARGEST and count < _MOST):
                    raise ArchiveError(f"{file} holds {member.name!r}, which is no file of a run; nothing was imported")
                files = contents.setdefault(known["run"], {})
                if known["file"] in files:
                    raise ArchiveError(f"{file} holds {member.name!r} twice; nothing was imported")
                files[known["file"]] = tar.extractfile(member).read()
            with unpacked.getbuffer()[tar.offset :] as rest:
                whole = len(rest) >= 2 * tarfile.BLOCKSIZE and not re.search(rb"[^\0]", rest)
            if not whole:
                raise ValueError("it is damaged or was cut off")
    except ArchiveError:
        raise
    except Exception as error:  # tarfile and zlib raise anything at a damaged file
        if isinstance(error, OSError) and error.errno:
            raise ArchiveError(
                f"cannot read {file}: {error.strerror}; name a tar that `rwc results export` wrote"
            ) from error
        raise ArchiveError(
            f"{file} is damaged, or no tar that `rwc results export` wrote ({one_line(error)}); export it again"
        ) from error

    def reader(files: dict[str, bytes]) -> Callable[[str], bytes]:
        def read_member(name: str) -> bytes:
            if name not in files:
                raise FileNotFoundError(2, "missing in the tar")
            return files[name]

        return read_member

    runs = [(archive.parse(reader(files), where), files) for where, files in contents.items()]
    for (run, _), where in zip(runs, contents, strict=True):
        if where != f"{run.config.study}/{run.config.name}":
            raise ArchiveError(f"{file} holds {where}, a run of {run.config.study}; nothing was imported")
    new = [(run, files) for run, files in runs if not archive.is_finished(results, run.config)]
    for run, _ in runs:
        if archive.is_finished(results, run.config):
            archive.tidy(results, run.config, checkpoint=False)
    for run, files in new:
        with Lock(archive.lock_path(results, run.config)):
            if archive.is_finished(results, run.config):  # another process was faster
                continue
            archive.remove_parts(results, run.config)
            for name in (*run.record["sha256"], "run.json"):
                archive.write_atomically(archive.run_dir(results, run.config) / name, files[name])
    return len(new), len(runs) - len(new)
