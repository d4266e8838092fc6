"""compare: two checkpoints of every kind give what the tracker measured, and bad ones give one sentence."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DataParallel

from rwclib import RWCTracker, clustering, compare, metrics, plotting
from rwclib.errors import ConfigError
from rwclib.metrics import METRICS

CHANGED = ["changed", "changed_0.1%", "changed_1%"]


def move(model: nn.Module, by: float = 0.01) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def net() -> nn.Module:
    """A conv net with a middle layer of more weights than the median's sample."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 20, 3), nn.Sequential(nn.Conv2d(20, 40, 3), nn.BatchNorm2d(40)), nn.Linear(4, 5))


@pytest.fixture
def moved():
    """A model after a step, its state before, and the tracker's rows."""
    model = net()
    before, tracker = {name: value.clone() for name, value in model.state_dict().items()}, RWCTracker(model)
    move(model)
    tracker.step()
    return model, before, tracker.table()


def assert_equals_tracker(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    columns = ["layer", "size", *METRICS]
    pd.testing.assert_frame_equal(table[columns], expected[columns], rtol=1e-6)
    assert set(table["status"]) == {"both"}


def lightning_checkpoint(model: nn.Module, folder) -> object:
    lightning = pytest.importorskip("lightning")
    lit = lightning.LightningModule()
    lit.model = model
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
                                enable_progress_bar=False)  # fmt: skip
    trainer.strategy.connect(lit)
    trainer.save_checkpoint(folder / "after.ckpt")
    return folder / "after.ckpt"


def saved(value: object, path) -> object:
    torch.save(value, path)
    return path


KINDS = {
    "module": lambda model, folder: model,
    "state_dict": lambda model, folder: model.state_dict(),
    "pt": lambda model, folder: str(saved(model.state_dict(), folder / "after.pt")),
    "legacy": lambda model, folder: (
        torch.save(model.state_dict(), folder / "b.pth", _use_new_zipfile_serialization=False) or folder / "b.pth"
    ),
    "safetensors": lambda model, folder: (
        save_file(model.state_dict(), folder / "b.safetensors") or folder / "b.safetensors"
    ),
    "lightning": lightning_checkpoint,
    "loop": lambda model, folder: saved({"epoch": 1, "model_state_dict": model.state_dict()}, folder / "c.pt"),
    "own": lambda model, folder: saved({"epoch": 1, "net": model.state_dict(), "optimizer": {}}, folder / "c.bin"),
    "data parallel": lambda model, folder: DataParallel(model).state_dict(),
    "compiled": lambda model, folder: saved({"model": torch.compile(model).state_dict()}, folder / "c.pt"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_trackers_whatever_the_checkpoint(moved, tmp_path, kind):
    model, before, expected = moved
    after = KINDS[kind](model, tmp_path)
    table = compare(before, after)
    assert_equals_tracker(table, expected)
    assert list(table["shape"]) == ["20x3x3x3", "40x20x3x3", "5x4"]
    assert list(table.columns) == ["layer", "size", *METRICS, *CHANGED, "dtype", "shape", "status"]
    back = compare(after, before)
    assert sorted(back["layer"]) == sorted(table["layer"])


def gpt(folder, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=11, n_head=2, vocab_size=200, n_positions=16)
    )
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder / "before", **options)
    move(model)
    model.save_pretrained(folder / "after", **options)
    return model


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}])
def test_folders_and_indices_of_hugging_face(tmp_path, options):
    model = gpt(tmp_path, **options)
    files = sorted(file.name for file in (tmp_path / "after").glob("model*"))
    assert (len(files) > 3) == bool(options)
    assert ("model.safetensors.index.json" in files) == bool(options)
    table = compare(tmp_path / "before", tmp_path / "after")
    state = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    assert sorted(table["layer"]) == sorted(state)
    layers = [name for name in table["layer"] if "attn.c_attn" in name]
    assert layers == [f"transformer.h.{i}.attn.c_attn.weight" for i in range(11)]  # 2 before 10
    if options:
        index = compare(*(tmp_path / side / "model.safetensors.index.json" for side in ("before", "after")))
        pd.testing.assert_frame_equal(table, index)
    with_head = compare(tmp_path / "before", model).set_index("layer")["status"]
    assert with_head.pop("lm_head.weight") == "only in b"  # tied to the embedding, which alone is saved
    assert set(with_head) == {"both"}
    headless = compare(model.transformer, tmp_path / "before")
    assert list(headless["layer"][:2]) == ["wte.weight", "wpe.weight"]


def test_bin_shards_with_an_index(moved, tmp_path):
    model, before, expected = moved
    names, shards = list(model.state_dict()), {}
    for i, some in enumerate((names[:3], names[3:])):
        saved({name: model.state_dict()[name] for name in some}, tmp_path / f"pytorch_model-{i}.bin")
        shards |= dict.fromkeys(some, f"pytorch_model-{i}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert_equals_tracker(compare(before, tmp_path), expected)


def test_a_block_is_one_long_vector(moved):
    model, before, _ = moved
    table = compare(before, model, by=lambda name: "all")
    w, p = (torch.cat([v.flatten() for v in side.values() if v.dim() > 1]) for side in (model.state_dict(), before))
    found = table[["rwc", "rwc_elementwise", "l2_ratio", "cosine"]].iloc[0]
    assert list(found) == pytest.approx([getattr(metrics, name)(w, p) for name in found.index], rel=1e-6)
    relative = (w - p).abs() / p.abs()
    assert table["rwc_median"].item() == pytest.approx(relative.median().item(), rel=0.05)
    assert list(table[CHANGED].iloc[0]) == pytest.approx(
        [(relative > t).double().mean().item() for t in (0, 0.001, 0.01)], abs=1e-5
    )
    assert (table["size"].item(), table["shape"].item()) == (len(w), "3 tensors")
    assert list(compare(before, model, by="block")["layer"]) == ["0", "1", "2"]


def test_differences_are_told_not_skipped():
    a = {
        "x": torch.ones(2, 3),
        "y": torch.ones(2, 3),
        "z": torch.ones(2, 2),
        "u": torch.ones(1, 1),
        "n": torch.ones(3, 3, dtype=int),
    }
    b = {
        "x": torch.ones(3, 2),
        "y": torch.full((2, 3), 1.5, dtype=torch.bfloat16),
        "z": torch.zeros(2, 2),
        "v": torch.ones(1, 1),
    }
    table = compare(a, b).set_index("layer")
    assert table["status"].to_dict() == {
        "x": "other shape",
        "y": "other dtype",
        "z": "both",
        "u": "only in a",
        "v": "only in b",
    }
    assert list(table.loc["y", ["rwc", "dtype", "changed"]]) == [0.5, "float32 -> bfloat16", 1]
    assert table.loc["x", "shape"] == "2x3 -> 3x2"
    assert table.loc[["x", "u", "v"], list(METRICS)].isna().all(axis=None)
    assert compare(a, b, by=lambda name: "all")["status"].item().startswith("other shape: 1, other dtype: 1, both: 1")


@pytest.mark.parametrize(
    ("dtype", "change"),
    [(torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float64, 1e-12), (torch.complex128, 1e-12)],
)
def test_narrow_and_wide_weights_are_compared_exactly(tmp_path, dtype, change):
    a = torch.ones(50, 100, dtype=dtype)
    b = a.clone()
    b[0] += change
    table = compare({"w": a}, saved({"w": b}, tmp_path / "b.pt"))
    assert table["rwc"].item() == pytest.approx(change / 50, rel=1e-3)
    assert table["changed"].item() == 1 / 50
    assert table["size"].item() == 5000


def test_zero_infinite_and_empty_weights():
    a = {"zero": torch.zeros(2, 2), "bad": torch.full((2, 2), torch.nan), "empty": torch.ones(0, 2)}
    table = compare(a, {"zero": torch.ones(2, 2), "bad": torch.ones(2, 2), "empty": torch.ones(0, 2)}).set_index(
        "layer"
    )
    assert np.isnan(table["rwc"]).all()
    assert table.loc["zero", CHANGED].to_list() == [1, 1, 1]
    assert np.isnan(table.loc["bad", "changed"])
    assert table.loc["empty", "size"] == 0


def test_layers_are_globs_and_names(moved):
    model, before, _ = moved
    assert list(compare(before, model, "1.*")["layer"]) == ["1.0.weight"]
    assert list(compare(before, model, ["2.*", "1.1.bias"])["layer"]) == ["1.1.bias", "2.weight"]
    with pytest.raises(ConfigError, match="no weight tensor matches 'head.*'"):
        compare(before, model, ["1.*", "head.*"])


def test_a_list_is_a_history_like_the_trackers(tmp_path):
    model, paths = net(), []
    tracker = RWCTracker(model)
    for step in range(4):
        if step:
            move(model)
            tracker.step()
        paths.append(
            saved(
                {"state_dict": {f"net.{k}" if step == 2 else k: v for k, v in model.state_dict().items()}},
                tmp_path / f"{step}.ckpt",
            )
        )
    table = compare(paths)
    pd.testing.assert_frame_equal(table[tracker.table().columns], tracker.table(), rtol=1e-6)
    curves = table.pivot(index="layer", columns="step", values="rwc")
    assert sum(clustering.cluster(curves.to_numpy(), k=2).sizes) == 3
    assert len(plotting.layer_lines(table).axes[0].lines) == 3
    with pytest.raises(ConfigError, match="from checkpoint 1 to 2 not in both alike: 1.0.weight \\(only in b\\), 2"):
        compare([{"0.weight": torch.ones(20, 3, 3, 3)}, model])


def test_an_empty_tensor_in_a_block_counts_for_nothing():
    before = {"h.0.empty": torch.ones(0, 3), "h.0.weight": torch.ones(2, 3)}
    after = {"h.0.empty": torch.ones(0, 3), "h.0.weight": 1.5 * torch.ones(2, 3)}
    assert compare(before, after, by="block")["rwc"].item() == pytest.approx(0.5)


def test_the_folder_of_an_adapter_gives_its_weights(tmp_path):
    """As PEFT and the Trainer write it: the optimizer's state and a tracker's lie beside them."""
    for name in ("adapter_model.safetensors", "rwc.safetensors"):
        save_file({"lora_A.weight": torch.ones(2, 3)}, tmp_path / name)
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert compare(tmp_path, {"lora_A.weight": 2 * torch.ones(2, 3)})["rwc"].tolist() == [1.0]
