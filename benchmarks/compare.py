"""Time and memory of comparing two checkpoints of 500 MB, beside the dozen lines that one would write for it.

The tensors have the names and shapes of GPT-2 (124 M weights); `b` is `a` with every weight moved by about a thousandth.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import _table
from memory import peak_of

READS, ROOM, KINDS = 1.5, 200, ("safetensors", "pt")
TARGET = f"<= {READS} times the reading, no slower than the loop, <= two tensors and {ROOM} MB"
READ, OURS, PLAIN = "reading both files once", "rwclib.compare", "load both, loop over the tensors"
NOTE = f"""Seconds: median of fresh processes, interleaved, imports apart, files in the system's cache, all cores. over_reading: over the time of
reading both files in pieces of 16 MB; this_over_compare: over that of {OURS}. mb: the most that the process holds over what it held before (a process of its own);
mb_with_file_pages: pages of files that it has mapped included, which the system takes back at will. The plain loop computes
the same seven metrics and three shares with PyTorch. Target of {OURS}: at most {READS} times the reading, no slower than
the plain loop, and at most the two largest tensors and {ROOM} MB held."""


def make(folder: str, width: int, blocks: int, words: int) -> int:
    """Write `a` and `b` as .safetensors and .pt; bytes of the largest tensor."""
    import torch
    from safetensors.torch import save_file

    shapes = {"wte.weight": (words, width), "wpe.weight": (1024, width)}
    for i in range(blocks):
        sides = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
        shapes |= {f"h.{i}.{name}.weight": (m * width, n * width) for name, (m, n) in sides.items()}
    torch.manual_seed(0)
    state = {name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    for side in "ab":
        save_file(state, f"{folder}/{side}.safetensors")
        torch.save(state, f"{folder}/{side}.pt")
        state = {name: w + 2e-5 * torch.randn_like(w) for name, w in state.items()}
    return max(w.nbytes for w in state.values())


def read(a: str, b: str) -> None:
    """Both files through one buffer."""
    buffer = bytearray(2**24)
    for path in (a, b):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def plain(a: str, b: str) -> object:
    """What one would write."""
    import pandas as pd
    import torch
    from safetensors.torch import load_file

    before, after = (load_file(p) if p.endswith("safetensors") else torch.load(p, weights_only=True) for p in (a, b))
    rows = []
    for name, w in after.items():
        p = before[name]
        d = (w - p).abs()
        r = (d / p.abs()).nan_to_num(nan=0.0, posinf=torch.inf)
        row = {"rwc": d.sum() / p.abs().sum(), "rwc_elementwise": r.mean(), "rwc_median": r.flatten()[::1001].median()}
        row |= {"l2_ratio": d.norm() / p.norm(), "cosine": (w * p).sum() / (w.norm() * p.norm())}
        row |= {"l1_norm": w.abs().sum(), "l2_norm": w.norm(), "changed": (d > 0).float().mean()}
        row |= {"changed_0.1%": (r > 0.001).float().mean(), "changed_1%": (r > 0.01).float().mean()}
        rows.append({"layer": name, **{key: value.item() for key, value in row.items()}})
    return pd.DataFrame(rows)


def ours(a: str, b: str) -> object:
    """`rwclib.compare`."""
    from rwclib import compare

    return compare(a, b)


WAYS = {READ: read, OURS: ours, PLAIN: plain}


def warmed(what: str, folder: str, kind: str) -> object:
    """A call of that way, after one on tiny files that imports what it needs."""
    import torch
    from safetensors.torch import save_file

    tiny = f"{folder}/tiny-{os.getpid()}.{kind}"
    state = {"w": torch.ones(8, 8)}
    save_file(state, tiny) if kind == "safetensors" else torch.save(state, tiny)
    WAYS[what](tiny, tiny)
    os.remove(tiny)
    return lambda: WAYS[what](f"{folder}/a.{kind}", f"{folder}/b.{kind}")


def seconds(what: str, folder: str, kind: str) -> float:
    """Of one call."""
    return _table.seconds(warmed(what, folder, kind))


def held(what: str, folder: str, kind: str) -> float:
    """Peak MB of one call, mapped pages of files apart."""
    return peak_of(warmed(what, folder, kind)) / 2**20


def resident(what: str, folder: str, kind: str) -> float:
    """Peak MB of one call, mapped pages of files included."""
    call = warmed(what, folder, kind)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def kilobytes(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    before = kilobytes("VmRSS:")
    call()
    return (kilobytes("VmHWM:") - before) / 1024


def main() -> None:
    args = _table.options(__doc__)
    size, repetitions = ((16, 2, 500), 1) if args.quick else ((768, 12, 50_257), 5)
    cores = 1 if args.quick else os.cpu_count()
    evidence, rows = _table.environment(str(cores)), []
    with tempfile.TemporaryDirectory() as folder:

        def fresh(function: object, *words: object) -> float:
            return _table.in_fresh_process(cores, function, *words)

        largest = fresh(make, folder, *size) / 2**20
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(repetitions):
            for kind, what in itertools.product(KINDS, WAYS):
                times.setdefault((kind, what), []).append(fresh(seconds, what, folder, kind))
        typical = {key: sorted(values)[repetitions // 2] for key, values in times.items()}
        os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(2**18)  # as in memory.py
        for (kind, what), s in typical.items():
            mb = fresh(held, what, folder, kind)
            row = {"file": f".{kind}", "what": what, "s": s, "over_reading": s / typical[kind, READ]}
            row |= {"this_over_compare": s / typical[kind, OURS], "mb": mb}
            row["mb_with_file_pages"] = fresh(resident, what, folder, kind)
            if what == OURS:
                met = s <= min(READS * typical[kind, READ], typical[kind, PLAIN]) and mb <= 2 * largest + ROOM
                row |= _table.verdict(met, TARGET)
            rows.append(row)
    _table.report(rows, evidence, NOTE, args.json)


if __name__ == "__main__":
    main()
