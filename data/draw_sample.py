"""Draw the bundled class-balanced sample of Fashion-MNIST: `python data/draw_sample.py` (needs the full set)."""

from pathlib import Path

import numpy as np

from rwclib import data

full = data.load("fashion_mnist")
rng = np.random.default_rng(2020)
arrays = {}
for split, per_class in (("train", 600), ("test", 100)):
    x, y = getattr(full, f"x_{split}"), getattr(full, f"y_{split}")
    rows = np.sort(
        np.concatenate([rng.choice(np.flatnonzero(y == label), per_class, replace=False) for label in range(10)])
    )
    arrays |= {f"x_{split}": x[rows], f"y_{split}": y[rows].astype(np.uint8)}
np.savez_compressed(
    Path(__file__).with_name("fashion_mnist_sample.npz"),
    **arrays,
    source="Fashion-MNIST (Zalando SE, MIT licence)",
    note="pixel-exact class-balanced sample: 600 training and 100 test images of each class",
)
