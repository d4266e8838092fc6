"""`python -m tests.bombs FOLDER LIMIT`: small files that ask for much memory, each of which must be refused within `LIMIT` bytes."""

import gzip
import io
import pickle
import resource
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from rwclib import archive, data
from rwclib.errors import RwcError
from rwclib.studies import weightscale_release

MEMBER = "custom/resnet18-mnist-w8-e1-s0-000000000000/{}"


def zeros(count: int) -> bytes:
    """A gzip of so many times 16 MiB of zeros: gzips one behind the other."""
    return gzip.compress(bytes(2**24)) * count


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def npz(header: bytes, blocks: int) -> bytes:
    """A zip of one member, a header and so many MiB of zeros: one deflated block, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = first + block * blocks + packer.flush()
    checksum = zlib.crc32(header)
    for _ in range(blocks):
        checksum = zlib.crc32(bytes(2**20), checksum)
    info = zipfile.ZipInfo("x_train.npy")
    info.CRC, info.compress_size, info.file_size, info.compress_type = checksum, len(packed), len(header) + (blocks << 20), 8
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.start_dir = len(info.FileHeader(zip64=False)) + len(packed)
        file.filelist.append(info)
        file.NameToInfo[info.filename] = info
        file.fp.write(info.FileHeader(zip64=False) + packed)
        file._didModify = True
        for name in ("y_train", "x_test", "y_test"):
            file.writestr(f"{name}.npy", b"")
    return buffer.getvalue()


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def parquet(rows: int) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame({"epoch": np.zeros(rows, np.int8)}).to_parquet(buffer)
    return buffer.getvalue()


def bombs() -> dict[str, tuple]:
    """By name: the function that reads it, and its content."""
    pickled = header((), "|O") + b"\x80\x04"
    half = tar_header(MEMBER.format("layers.parquet"), 2**33)
    ten = b"".join(tar_header(MEMBER.format(f"a{i}.npy"), 2**26) + bytes(2**26) for i in range(1))
    return {
        "a tar of zeros, 64 GiB": (tarred, zeros(4096)),
        "a tar with a name of 8 GiB": (tarred, gzip.compress(tar_header("name", 2**33, tarfile.GNUTYPE_LONGNAME)) + zeros(512)),
        "a tar with a file of 8 GiB": (tarred, gzip.compress(half) + zeros(512)),
        "a tar of files of 64 MiB": (tarred, gzip.compress(ten) * 16),
        "a tar of empty files": (tarred, gzip.compress(tar_header(MEMBER.format("a.npy"), 0) * 2**20)),
        "a tar of many files": (tarred, gzip.compress(b"".join(tar_header(MEMBER.format(f"a{i}.npy"), 0) for i in range(120_000)), 1)),
        "images of 4 GiB": (images, npz(header((2**22, 32, 32, 1)), 4096 - 1)),
        "an array of 1 PiB": (images, npz(header((2**50,)), 1)),
        "texts of 1 TiB": (images, npz(header((2**20,), "<U262144"), 1)),
        "a memo of 2^31": (weightscale_release.read_pickled, pickled + b"}r\xff\xff\xff\x7f."),
        "a memo of 10^10": (weightscale_release.read_pickled, pickled + b"}p10000000000\n."),
        "bytes of 2^62": (weightscale_release.read_pickled, pickled + b"\x8e" + (2**62).to_bytes(8, "little") + b"a."),
        "bytes of 2^36": (weightscale_release.read_pickled, pickled + b"\x8e" + (2**36).to_bytes(8, "little") + b"a."),
        "lists of lists": (weightscale_release.read_pickled, header((), "|O") + pickle.dumps(nested(), protocol=4)),
        "a table of 2^31 rows": (table, parquet(2**31)),
    }


def nested() -> dict:
    inner: list = [0.0]
    for _ in range(30):
        inner = [inner, inner]
    return {"conv1.weight": inner}


def tarred(content: bytes) -> object:
    Path(sys.argv[1], "in.tar").write_bytes(content)
    return archive.import_(Path(sys.argv[1], "in.tar"), Path(sys.argv[1], "results"))


def images(content: bytes) -> object:
    Path(sys.argv[1], "mnist.npz").write_bytes(content)
    return data.load("mnist", sys.argv[1], download=False)


def table(content: bytes) -> object:
    return archive._file(lambda name: content, "layers.parquet", archive.hashlib.sha256(content).hexdigest(), "run")


if __name__ == "__main__":
    print("see main")
