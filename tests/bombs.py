"""`python -m tests.bombs FOLDER BYTES`: small files that ask for much memory, each refused within so many bytes."""

import contextlib
import gzip
import hashlib
import io
import pickle
import resource
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, data, exchange
from rwclib.errors import RwcError
from rwclib.studies.weightscale_release import read_pickled

RUN = "custom/resnet18-mnist-w8-e1-s0-000000000000/"
MIB = gzip.compress(bytes(2**20))  # gzips one behind the other are a gzip


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(RUN + name)
    info.size, info.type = size, kind
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT), 1)


def npy(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    """The header of such an array."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def npz(header: bytes, mib: int = 0) -> bytes:
    """An image file whose first array has this header and so many MiB of zeros behind it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("x_train.npy", "w") as stream:
            stream.write(header)
            for _ in range(mib):
                stream.write(bytes(2**20))
        for name in ("y_train", "x_test", "y_test"):
            file.writestr(f"{name}.npy", npy((0,)))
    return buffer.getvalue()


def nested() -> dict:
    numbers: list = [0.0]
    for _ in range(40):
        numbers = [numbers, numbers]
    return {"conv1.weight": numbers}


def parquet() -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"epoch": np.zeros(2**26 + 1, np.int8)}).to_parquet(buffer)
    return buffer.getvalue()


def bombs() -> Iterator[tuple[str, Callable, bytes]]:
    """Each with the function that reads it."""
    yield "tar of zeros, 64 GiB", tar, MIB * 2**16
    yield "tar with a name of 8 GiB", tar, member("a.npy", 2**33, tarfile.GNUTYPE_LONGNAME) + MIB * 2**13
    yield "tar with a file of 8 GiB", tar, member("a.npy", 2**33) + MIB * 2**13
    yield "tar of eight files of 64 MiB", tar, b"".join(member(f"a{i}.npy", 2**26) + MIB * 64 for i in range(8))
    yield "tar of seven files of 64 MiB", tar, b"".join(member(f"a{i}.npy", 2**26) + MIB * 64 for i in range(7))
    yield "tar of one empty file a million times", tar, member("a.npy", 0) * 2**10
    yield "images of 1 GiB", images, npz(npy((2**20, 32, 32, 1)), 1024)
    yield "array of 1 PiB", images, npz(npy((2**50,)))
    yield "array of 8 GiB", images, npz(npy((2**33,)))
    yield "texts of 1 TiB", images, npz(npy((2**20,), "<U262144"))
    yield "table of many rows", lambda content: table(content, "layers.parquet"), parquet()
    yield "array in a run of 8 GiB", lambda content: table(content, "filters.npy"), npy((2**33,))
    start = npy((), "|O") + b"\x80\x04}"
    yield "memo of 2^31", read_pickled, start + b"r\xff\xff\xff\x7f."
    yield "memo of 10^10", read_pickled, start + b"p10000000000\n."
    yield "bytes of 2^62", read_pickled, start + b"\x8e" + (2**62).to_bytes(8, "little") + b"."
    yield "bytes of 2^36", read_pickled, start + b"\x96" + (2**36).to_bytes(8, "little") + b"."
    yield "lists of lists", read_pickled, npy((), "|O") + pickle.dumps(nested(), protocol=4)


def tar(content: bytes) -> object:
    Path(sys.argv[1], "in.tar").write_bytes(content)
    return exchange.import_(Path(sys.argv[1], "in.tar"), Path(sys.argv[1], "results"))


def images(content: bytes) -> object:
    Path(sys.argv[1], "mnist.npz").write_bytes(content)
    return data.load("mnist", sys.argv[1], download=False)


def table(content: bytes, name: str) -> object:
    return archive._file(lambda _: content, name, hashlib.sha256(content).hexdigest(), "run")


def memory(key: str) -> int:
    """Of /proc/self/status, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    for name, read, content in bombs():
        before = memory("VmRSS")
        resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + int(sys.argv[2]), resource.RLIM_INFINITY))
        with contextlib.suppress(RwcError):
            read(content)
            sys.exit(f"{name}: it was taken")
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(f"{name}: {len(content)} bytes, peak {memory('VmHWM') - before >> 20} MiB")
