"""RWCCallback in the real Trainer of transformers against loops written out, and against itself undisturbed."""

from __future__ import annotations

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import pandas as pd
import pytest
import torch
from torch.utils.data import IterableDataset

from rwclib import RWCTracker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks say of each other when imported
    import peft
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    from rwclib.callbacks.transformers import RWCCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # by peft
]
STEPS, BATCH = 6, 4  # steps in an epoch
TEXTS = [f"the weights of layer {i} move {'fast' if i % 3 else 'slowly'}" for i in range(STEPS * BATCH)]
DATA = [{"input_ids": list(text.encode()[-12:]), "labels": int("fast" in text)} for text in TEXTS]


def bert(dropout: float = 0.1) -> BertForSequenceClassification:
    """A small network, always with the same weights."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 128,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return BertForSequenceClassification(
        BertConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **sizes)
    )


def lora() -> peft.PeftModel:
    return peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], init_lora_weights=False))


def trainer(folder, model, data=DATA, **options) -> Trainer:
    settings = {
        "num_train_epochs": 3, "per_device_train_batch_size": BATCH, "learning_rate": 0.01, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, **options,
    }  # fmt: skip
    how = {"model_init": model} if callable(model) and not isinstance(model, torch.nn.Module) else {"model": model}
    return Trainer(args=TrainingArguments(str(folder), **settings), train_dataset=data, **how)


def fit(folder, every=None, model=bert, resume=None, tracker=None, **options) -> pd.DataFrame:
    """Train, and return the callback's table."""
    training = trainer(folder, model(), **options)
    callback = RWCCallback(every, **(tracker or {})).attach(training)
    training.train(resume_from_checkpoint=resume)
    return callback.tracker.table()


class ByHand(TrainerCallback):
    """What a user would write into the loop: a step of a tracker made before training, after every so many steps."""

    def __init__(self, model, every) -> None:
        self.tracker, self.every = RWCTracker(model), every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.tracker.step(at=state.global_step)


def by_hand(folder, every, **options) -> pd.DataFrame:
    model = bert()
    training, callback = trainer(folder, model, **options), ByHand(model, every)
    training.add_callback(callback)
    training.train()
    return callback.tracker.table()


def assert_same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(expected)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 4}, {"bf16": True}], ids=str)
@pytest.mark.parametrize("every", [None, 1, 2])
def test_the_table_is_that_of_a_step_written_into_the_loop(tmp_path, every, options):
    in_epoch = -(-STEPS // options.get("gradient_accumulation_steps", 1))
    table = fit(tmp_path, every, **options)
    assert_same(table, by_hand(tmp_path, every or in_epoch, **options))
    assert table["step"].max() == 3 * in_epoch


def test_the_table_is_that_of_a_plain_loop(tmp_path):
    plain = {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "train_sampling_strategy": "sequential",
    }
    table = fit(tmp_path, 2, lambda: bert(0), num_train_epochs=1, **plain)
    model = bert(0)
    training = trainer(tmp_path, model, **plain)
    tracker, optimizer = RWCTracker(model), torch.optim.SGD(model.parameters(), 0.01)
    for step in range(1, STEPS + 1):
        batch = training.data_collator(DATA[BATCH * (step - 1) : BATCH * step])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 0:
            tracker.step(at=step)
    assert_same(table, tracker.table())


@pytest.mark.parametrize(
    ("saved", "every", "bf16"),
    [("epoch", None, False), ("steps", None, True), ("within", None, False), ("epoch", 1, True), ("within", 5, True)],
)
def test_a_resumed_training_has_the_undisturbed_table(tmp_path, saved, every, bf16):
    save = {"save_strategy": saved if saved == "epoch" else "steps", "save_steps": 4 if saved == "within" else 6}
    table = fit(tmp_path, every, bf16=bf16, **save)
    checkpoint = tmp_path / f"checkpoint-{8 if saved == 'within' else 12}"
    assert (checkpoint / "rwc.safetensors").is_file()
    assert_same(fit(tmp_path, every, resume=str(checkpoint), bf16=bf16), table)
    moved = checkpoint.rename(tmp_path / "moved")
    for elsewhere in ({"tracker": {"resume_from": moved}}, {"resume_from_checkpoint": str(moved)}):
        assert_same(fit(tmp_path / "other", every, resume=str(moved), bf16=bf16, **elsewhere), table)


def test_the_last_checkpoint_is_found_and_lora_layers_are_tracked(tmp_path):
    options = {"model": lora, "tracker": {"layers": lambda name, p: p.requires_grad and p.dim() > 1}}
    table = fit(tmp_path, 1, save_strategy="steps", save_steps=8, **options)
    assert {name.split(".")[-3] for name in table["layer"]} == {"lora_A", "lora_B"}
    for name in ("checkpoint-16", "checkpoint-18"):
        (tmp_path / name).rename(tmp_path / f"away-{name}")
    assert_same(fit(tmp_path, 1, resume=True, **options), table)


def test_a_checkpoint_without_the_tracker_is_a_warning_that_names_the_file(tmp_path):
    training = trainer(tmp_path, bert(), save_strategy="epoch")
    training.train()
    with pytest.warns(UserWarning, match=r"no .*checkpoint-12.rwc\.safetensors: rows of .* begin at step 12"):
        table = fit(tmp_path, resume=str(tmp_path / "checkpoint-12"))
    assert list(table["step"].unique()) == [18]


@pytest.mark.parametrize("attached", [True, False])
def test_rows_reach_the_log_beside_the_losses(tmp_path, attached):
    training, callback, reported = trainer(tmp_path, lambda: bert()), RWCCallback(2, by="layer", prefix="change"), []
    reporter = type(
        "Reporter", (TrainerCallback,), {"on_log": lambda self, *_, logs, **__: reported.append(dict(logs))}
    )
    training.callback_handler.callbacks.insert(0, reporter())
    callback.attach(training) if attached else training.add_callback(callback)
    training.train()
    table = callback.tracker.table()
    layer = table["layer"].iloc[0]
    expected = table[table["layer"] == layer].set_index("step")["rwc"].to_dict()
    key = f"change/{layer}"
    assert {row["step"]: row[key] for row in training.state.log_history if key in row} == expected
    assert [row["step"] for row in training.state.log_history if "loss" in row] == list(range(1, 3 * STEPS + 1))
    assert sum(key in logs for logs in reported) == (len(expected) if attached else 0)


def test_epochs_of_unknown_length_end_in_a_row(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(DATA)

    assert list(fit(tmp_path, data=Stream(), max_steps=15)["step"].unique()) == [6, 12, 15]
