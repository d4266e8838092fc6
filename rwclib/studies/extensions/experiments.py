"""Claims of our own about a language model (N) and freezing (F), fixed before their runs, and their values from the stored tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd

from rwclib.analysis import claims, theory
from rwclib.analysis.claims import DEFINITIONS, INFINITY, RATIO_MARGIN, Cell, Claim, Comparison, level, ratio
from rwclib.studies.extensions import freezing, language

TRANSFORMER, TEXT, FROZEN, IMAGES = "transformer", "help pages", "resnet18, layers frozen", "cifar10"
BLOCKS = [f"block{i + 1}" for i in range(language.BLOCKS)]
KINDS = tuple(language.KINDS.values())
SAME_TIME = f"{freezing.ALL}, same time"
FACTOR, POINT = float(np.log(1.25)), 1.0
WALK = theory.adamw(language.LR, language.DECAYS[0], language.BETAS[0])


def _kinds(quantity: str, low: float, high: float, margin: float | None) -> tuple[Comparison, ...]:
    return tuple(level(Cell(TRANSFORMER, TEXT, kind, quantity), f"{kind}: {quantity}", low, high, unit="ratio", margin=margin) for kind in KINDS)  # fmt: skip


def _arms(schedule: str, a: str, b: str, **settings: object) -> tuple[Comparison, ...]:
    """Test accuracy of arm `a` minus that of `b`, at each share."""
    cells = [(_setting(schedule, share), share) for share in freezing.SHARES]
    return tuple(
        Comparison(f"{schedule}, {share:.0%} spared: {a} - {b}",
                   ((1.0, Cell(FROZEN, IMAGES, a, name)), (-1.0, Cell(FROZEN, IMAGES, b, name))),
                   unit="points", **settings)
        for name, share in cells
    )  # fmt: skip


def _setting(schedule: str, share: float) -> str:
    return f"top-1, {schedule}, {share:.0%}"


CLAIMS = (
    Claim("N1", "Later layers change more in a language model too: block1 < block2 < block3 < block4 (weight decay 0.1)",
          tuple(ratio(Cell(TRANSFORMER, TEXT, b), Cell(TRANSFORMER, TEXT, a)) for a, b in itertools.pairwise(BLOCKS))),
    Claim("N2", "Its single steps lie within a factor of 1.25 of AdamW's equilibrium in the second half of training (weight decay 0.1)",
          _kinds("step over equilibrium", -FACTOR, FACTOR, None), ("-",)),
    Claim("N3", "Without weight decay it changes less than with it in the second half of training",
          tuple(Comparison(f"{kind}: with / without weight decay", ((1.0, Cell(TRANSFORMER, TEXT, kind, "with decay")),
                (-1.0, Cell(TRANSFORMER, TEXT, kind, "without decay")))) for kind in KINDS)),
    Claim("N4", "Over a window of steps it goes less far than theory's random walk (weight decay 0.1)",
          _kinds("window over theory", -INFINITY, 0.0, RATIO_MARGIN), ("-",)),
    Claim("F1", "Constant learning rate: freezing the lowest RWC first is no better than at random (gains less than a point of accuracy)",
          _arms("constant", "lowest RWC", "random", low=-INFINITY, high=POINT, margin=None), ("-",)),
    Claim("F2", "Cosine learning rate: freezing the lowest RWC first is better than at random",
          _arms("cosine", "lowest RWC", "random", margin=POINT), ("-",)),
    Claim("F3", "Constant learning rate: at equal time freezing from the bottom up gains less than a point over training all layers",
          _arms("constant", "bottom up", SAME_TIME, low=-INFINITY, high=POINT, margin=None), ("-",)),
)  # fmt: skip


def values() -> pd.DataFrame:
    """What `claims.details` judges: ratios as logarithms, accuracies in percent."""
    return pd.DataFrame([*_of_language(), *_of_freezing()], columns=claims.VALUES)


def layers(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """The matrices of the blocks in a table of `language.language`, from the second window on.

    Columns beside those there: `kind`, `block`, `growth` (ρ over the row's steps), `expected` (L2 ratio of a random walk of
    AdamW's steps that has grown so), `late` (in the second half of training).
    """
    table = table[table["layer"].str.startswith("blocks.")].sort_values(["span", "layer", "step"])
    growth = table["l2_norm"] / table.groupby(["span", "layer"])["l2_norm"].shift()
    steps, window = language.SIZES[profile]
    table = table.assign(
        kind=table["layer"].str.split(".", n=3).str[3].str.removeprefix("self_attn.").map(language.KINDS),
        block="block" + (table["layer"].str.split(".").str[2].astype(int) + 1).astype(str),
        growth=growth.where(table["span"] == "window", growth ** (1 / window)),
        late=table["step"] > steps / 2,
    ).dropna(subset="growth")
    lengths = table["span"].map({"window": window, "step": 1})
    expected = [WALK.change(n, growth) for n, growth in zip(lengths, table["growth"], strict=True)]
    return table.assign(expected=expected)


def _of_language() -> Iterator[tuple]:
    for profile, seed, decay in itertools.product(language.SIZES, language.SEEDS, language.DECAYS):
        stored = language.language.known(profile, decay, seed)
        if stored is None:
            continue
        table = layers(stored, profile)
        window, step = (table[table["span"] == span] for span in ("window", "step"))
        late = window[window["late"]]
        parts = [
            (f"{'with' if decay else 'without'} decay", "kind", definition, late[column])
            for column, definition in DEFINITIONS.items()
        ]
        if decay:
            parts += [("change", "block", definition, window[column]) for column, definition in DEFINITIONS.items()]
            parts += [("step over equilibrium", "kind", "-", step.loc[step["late"], "l2_ratio"] / WALK.step)]
            parts += [("window over theory", "kind", "-", late["l2_ratio"] / late["expected"])]
        for quantity, by, definition, ratios in parts:
            for group, median in ratios.groupby(table.loc[ratios.index, by]).median().items():
                yield profile, definition, TRANSFORMER, quantity, TEXT, group, seed, np.log(median)


def runs_of_freezing(profile: str, dataset: str, schedule: str, share: float, seed: int) -> dict[str, pd.DataFrame]:
    """The stored tables of `freezing.freezing`, by arm."""
    arms = {freezing.ALL: 0.0} | dict.fromkeys(freezing.ARMS, share)
    tables = {
        arm: freezing.freezing.known(profile, dataset, schedule, arm, spared, seed) for arm, spared in arms.items()
    }
    return {arm: table for arm, table in tables.items() if table is not None}


def accuracies(tables: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Test top-1 (percent) by arm, mean of the last epochs; and that of training all layers at the times at which `bottom up` had these.

    Time is in first epochs of the same run, in which nothing is frozen: the machine was not always as busy.
    """
    found = {arm: float(table["top1"].iloc[-freezing.LAST :].mean()) for arm, table in tables.items()}
    if {freezing.ALL, "bottom up"} <= set(tables):
        times = {arm: tables[arm]["seconds"] / tables[arm]["seconds"].iloc[0] for arm in (freezing.ALL, "bottom up")}
        ends = times["bottom up"].iloc[-freezing.LAST :]
        found[SAME_TIME] = float(np.interp(ends, times[freezing.ALL], tables[freezing.ALL]["top1"]).mean())
    return found


def _of_freezing() -> Iterator[tuple]:
    every = itertools.product(("smoke", "quick", "reduced"), freezing.SCHEDULES, freezing.SHARES, freezing.SEEDS)
    for profile, schedule, share, seed in every:
        tables = runs_of_freezing(profile, IMAGES, schedule, share, seed)
        for arm, top1 in accuracies(tables).items():
            yield profile, "-", FROZEN, _setting(schedule, share), IMAGES, arm, seed, top1


def train(profile: str = "reduced") -> None:
    """Train what the stored tables of a profile lack, the first seed of everything first; with `RWC_STORE_TABLES=1` each is stored when done."""
    for seed in language.SEEDS:
        for decay in language.DECAYS:
            language.language(profile, decay, seed)
        for schedule, share in itertools.product(freezing.SCHEDULES, freezing.SHARES):
            freezing.freezing(profile, IMAGES, schedule, freezing.ALL, 0.0, seed)
            freezing.resets(profile, IMAGES, schedule, seed)
            for arm in freezing.ARMS:
                freezing.freezing(profile, IMAGES, schedule, arm, share, seed)
