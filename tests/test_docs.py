"""The snippets of README and docs/tracker.md run as they stand."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import rwclib

ROOT = Path(__file__).parents[1]
PAGES = {
    page: re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    for page in ("README.md", "docs/tracker.md")
}
X, Y = torch.randn(16, 6), torch.randint(0, 3, (16,))


def surroundings(folder: Path) -> dict[str, object]:
    """What the snippets take for granted: a model, its training, and trainers' parts."""
    lightning, transformers = pytest.importorskip("lightning.pytorch"), pytest.importorskip("transformers")

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(X), Y).backward()
        optimizer.step()

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(6, 3)

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            return functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    ids = torch.arange(6)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return {
        "rwclib": rwclib, "model": model, "optimizer": optimizer, "epochs": 3, "global_step": 3, "train_step": train_step,
        "train_one_epoch": lambda model: train_step(), "before": {n: w.clone() for n, w in model.state_dict().items()},
        "module": Module(), "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4),
        "trainer_options": quiet | {"accelerator": "cpu"}, "hf_model": transformers.GPT2LMHeadModel(config),
        "args": transformers.TrainingArguments(str(folder), max_steps=4, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True),
        "data": [{"input_ids": ids, "labels": ids}] * 8,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, ran = surroundings(tmp_path), 0
    if "tracker" in page:
        names["tracker"] = rwclib.RWCTracker(names["model"])
    for snippet in PAGES[page]:
        modules = re.findall(r"^(?:import|from) (\w+)", snippet, re.M)
        if all(find_spec(module) for module in modules):
            exec(snippet, names)
            ran += 1
    assert ran >= len(PAGES[page]) - 3  # wandb, mlflow and trackio may be missing
    assert len(names["tracker"].table()) > 0
