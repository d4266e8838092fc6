"""RWCCallback in Lightning's real Trainer against loops written out, and against itself undisturbed."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rwclib import RWCTracker
from rwclib.errors import ConfigError
from tests.conftest import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks say of each other when imported
    import lightning.pytorch as pl
    import pytorch_lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from rwclib.callbacks import transformers
    from rwclib.callbacks.lightning import RWCCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),  # Lightning's own, of PyTorch
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
]
BATCHES = 6  # in an epoch
DATA = torch.randn(BATCHES * 4, 5, generator=torch.Generator().manual_seed(1))


def loader(data: torch.Tensor = DATA) -> DataLoader:
    return DataLoader(TensorDataset(data, data.sum(1, keepdim=True)), batch_size=4)


def module(base: type = pl.LightningModule) -> pl.LightningModule:
    """A network of two layers, always with the same weights."""

    class Module(base):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))

        def training_step(self, batch, batch_idx):
            x, y = (part.to(self.net[0].weight.dtype) for part in batch)
            return (self.net(x) - y).square().mean()

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    return Module()


def fit(tmp_path, callback, *others, epochs=3, ckpt_path=None, framework=pl, data=DATA, **options):
    """Train, and return the callback's table."""
    trainer = framework.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[callback, *others], default_root_dir=tmp_path, barebones=False,
        enable_progress_bar=False, enable_model_summary=False, **{"logger": False, "enable_checkpointing": bool(others), **options},
    )  # fmt: skip
    trainer.fit(module(framework.LightningModule), loader(data), loader(data), ckpt_path=ckpt_path)
    return callback.tracker.table()


def by_hand(every: int, epochs: int = 3, accumulate: int = 1, dtype=torch.float32) -> pd.DataFrame:
    """The table of a plain loop that measures every so many optimizer steps."""
    model = module().to(dtype)
    tracker, optimizer, steps = RWCTracker(model), model.configure_optimizers(), 0
    for _ in range(epochs):
        for i, batch in enumerate(loader()):
            (model.training_step(batch, i) / accumulate).backward()
            if (i + 1) % accumulate and i + 1 < BATCHES:
                continue
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps % every == 0:
                tracker.step(at=steps)
    return tracker.table()


def assert_same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(expected)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


@pytest.mark.parametrize("framework", [pl, pytorch_lightning])
@pytest.mark.parametrize("every", [None, 1, 5])
def test_the_table_is_that_of_a_plain_loop(tmp_path, every, framework):
    table = fit(tmp_path, RWCCallback(every), framework=framework)
    assert_same(table, by_hand(every or BATCHES))


@pytest.mark.parametrize(("accumulate", "every"), [(2, 2), (4, 1), (4, None)])
def test_accumulated_gradients_count_once(tmp_path, accumulate, every):
    table = fit(tmp_path, RWCCallback(every), accumulate_grad_batches=accumulate)
    assert_same(table, by_hand(every or -(-BATCHES // accumulate), accumulate=accumulate))


def test_bf16_weights(tmp_path):
    assert_same(fit(tmp_path, RWCCallback(2), precision="bf16-true"), by_hand(2, dtype=torch.bfloat16))


SAVED = {  # when, and the file
    "epoch's end": ({}, "epoch=1-step=12.ckpt"),
    "validation's end": ({"save_on_train_epoch_end": False}, "epoch=1-step=12.ckpt"),
    "last step of an epoch": ({"every_n_train_steps": 6}, "epoch=1-step=12.ckpt"),
    "within an epoch": ({"every_n_train_steps": 4}, "epoch=1-step=8.ckpt"),
}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("every", [None, 1, 5])
@pytest.mark.parametrize("saved", SAVED)
def test_a_resumed_training_has_the_undisturbed_table(tmp_path, saved, every, precision):
    options, name = SAVED[saved]
    same = {"data": DATA[:4].repeat(BATCHES, 1), "precision": precision}  # within an epoch Lightning skips no batches
    whole = fit(tmp_path, RWCCallback(every), ModelCheckpoint(tmp_path, save_top_k=-1, **options), **same)
    assert torch.load(tmp_path / name, weights_only=True)["callbacks"]["RWCCallback(rwc)"]
    resumed = fit(tmp_path, RWCCallback(every), ckpt_path=tmp_path / name, **same)
    assert_same(resumed, whole)


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
@pytest.mark.parametrize(("every", "rows"), [(None, [6, 12, 18]), (5, [5, 10, 15])])
def test_rows_reach_the_logger(tmp_path, every, rows):
    logger = CSVLogger(tmp_path)
    callback = RWCCallback(every, by="layer", prefix="change")
    table = fit(tmp_path, callback, logger=logger)
    logged = pd.read_csv(f"{logger.log_dir}/metrics.csv")
    assert list(logged["step"]) == rows
    first = table[table["layer"] == "net.0.weight"]["rwc"].astype("float32")
    assert list(logged["change/net.0.weight"].astype("float32")) == list(first)


def test_two_callbacks_and_their_states_live_together(tmp_path):
    first, last = (RWCCallback(layers=f"net.{i}.*", prefix=f"net{i}") for i in (0, 2))
    keep = ModelCheckpoint(tmp_path, save_top_k=-1)
    tables = fit(tmp_path, first, last, keep), last.tracker.table()
    again = [RWCCallback(layers=f"net.{i}.*", prefix=f"net{i}") for i in (0, 2)]
    fit(tmp_path, *again, enable_checkpointing=False, ckpt_path=tmp_path / "epoch=1-step=12.ckpt")
    for callback, table in zip(again, tables, strict=True):
        assert_same(callback.tracker.table(), table)


@pytest.mark.parametrize("callback", [RWCCallback, transformers.RWCCallback])
@pytest.mark.parametrize("every", [0, -1, 1.5, True, "10"])
def test_a_wrong_interval_is_an_error_that_names_it(every, callback):
    with pytest.raises(ConfigError, match="every_n_steps must be a whole number from 1") as error:
        callback(every_n_steps=every)
    assert repr(every) in str(error.value)


@pytest.mark.parametrize(
    ("name", "missing"), [("lightning", "lightning pytorch_lightning"), ("transformers", "transformers")]
)
def test_a_missing_framework_is_one_sentence_and_rwclib_imports_none(name, missing):
    code = f"""
import sys, rwclib
from rwclib import RWCTracker
import rwclib.callbacks
assert not {{"lightning", "pytorch_lightning", "transformers"}} & set(sys.modules)
sys.modules.update(dict.fromkeys("{missing}".split()))  # as if they were not installed
import rwclib.callbacks.{name}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1].endswith("install rwclib[callbacks]"), done.stderr
