"""A character-level transformer (nanoGPT's recipe for a CPU) on the text of Python's help pages, layer by layer, with and without weight decay.

Other than there the learning rate stays constant after its warm-up, since an equilibrium belongs to one rate; input and output
embedding are not tied, layers have biases, and all matrices start with one standard deviation.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from rwclib.studies.stored import stored
from rwclib.tracker import RWCTracker

BLOCKS, WIDTH, HEADS, CONTEXT, BATCH = 4, 128, 4, 64, 12
LR, WARMUP, BETAS, CLIP = 1e-3, 100, (0.9, 0.99), 1.0
DECAYS = (0.1, 0.0)
SEEDS = (0, 42, 123)
SIZES = {"smoke": (100, 25), "quick": (2_000, 100), "reduced": (10_000, 500)}  # steps, and those of a window
KINDS = {  # by the end of a weight tensor's name
    "in_proj_weight": "attention in", "out_proj.weight": "attention out", "linear1.weight": "MLP in", "linear2.weight": "MLP out",
}  # fmt: skip
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


class Transformer(nn.Module):
    """Characters (batch, length) int64 to logits (batch, length, characters): pre-norm blocks with causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(len(ALPHABET), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(ALPHABET), bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.characters(ids) + self.places.weight[: ids.shape[1]]
        mask = self.mask[: ids.shape[1], : ids.shape[1]]
        return self.head(self.blocks(x, mask=mask, is_causal=True))


def text() -> tuple[Tensor, Tensor]:
    """Characters of the help pages, (characters,) int64: nine tenths to train on, one to test on."""
    pages = pydoc_data.topics.topics
    ids = torch.tensor([ALPHABET.index(c) for name in sorted(pages) for c in pages[name] if c in ALPHABET])
    return ids.tensor_split([int(0.9 * len(ids))])


def _batches(ids: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random places of the text: characters and those that follow, (BATCH, CONTEXT) each."""
    chosen = torch.Generator().manual_seed(seed)
    while True:
        places = torch.randint(len(ids) - CONTEXT, (BATCH, 1), generator=chosen) + torch.arange(CONTEXT + 1)
        yield ids[places[:, :-1]], ids[places[:, 1:]]


def _loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(network(x).flatten(0, 1), y.flatten())


@stored
def language(profile: str, weight_decay: float, seed: int) -> pd.DataFrame:
    """One training, a row per layer, window of steps and span.

    Columns: step; span (`window`: over the steps since the window before; `step`: over the last step alone); layer, depth, size; rwc,
    rwc_elementwise, l2_ratio (ratios); l2_norm; loss (on 50 batches of held-out text, nats a character).
    """
    steps, window = SIZES[profile]
    torch.manual_seed(seed)
    network, (train, test) = Transformer(), text()
    vectors = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    matrices = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    trackers, parts = {"window": RWCTracker(network), "step": RWCTracker(network, every=window)}, []
    for step, (x, y) in zip(range(1, steps + 1), _batches(train, seed), strict=False):
        optimizer.zero_grad()
        _loss(network, x, y).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        rates.step()
        trackers["step"].step()
        if step % window == 0:
            trackers["window"].step(at=step)
            held_out = _batches(test, 0)
            with torch.no_grad():
                loss = sum(_loss(network, *next(held_out)).item() for _ in range(50)) / 50
            parts += [tracker.last().assign(step=step, span=span, loss=loss) for span, tracker in trackers.items()]
    columns = ["step", "span", "layer", "depth", "size", "rwc", "rwc_elementwise", "l2_ratio", "l2_norm", "loss"]
    return pd.concat(parts, ignore_index=True)[columns]
