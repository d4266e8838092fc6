"""`rwc compare`: table, JSON, CSV and figure; and one sentence for every checkpoint that cannot be compared."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from rwclib import compare
from rwclib.analysis.plotting_compare import differences
from rwclib.errors import ConfigError, DataError
from tests.app.test_cli import run


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints of 41 layers, one per block, the later the larger their change; one layer is in the second alone."""
    a = {f"layer{i}.weight": torch.ones(4, 4) for i in range(41)}
    b = {f"layer{i}.weight": torch.full((4, 4), 1 + 2.0**-i) for i in range(41)} | {"head.weight": torch.ones(2, 2)}
    torch.save(a, tmp_path / "a.pt")
    save_file(b, tmp_path / "b.safetensors")
    return tmp_path / "a.pt", tmp_path / "b.safetensors"


def test_the_table_has_the_largest_changes_first_and_says_what_it_leaves_out(capsys, pair):
    code, out, err = run(capsys, "compare", *pair)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in lines[:4]] == ["layer", "layer0.weight", "layer1.weight", "layer2.weight"]
    assert lines[-3:] == [
        "and 11 more, which changed less; --csv or --json prints all",
        "only in b: head.weight (2x2)",
        "rows: 42, compared: 41",
    ]
    out = run(capsys, "compare", *pair, "--layers", "layer1?.*", "--layers", "layer2.*", "--by", "block")[1]
    assert out.splitlines()[1].split()[:3] == ["layer2", "16", "0.25"]
    assert out.endswith("rows: 11, compared: 11\n")


def test_json_and_csv_are_the_whole_table(capsys, pair):
    table = compare(*pair)
    rows = json.loads(run(capsys, "compare", *pair, "--json")[1])
    assert [row["layer"] for row in rows] == list(table["layer"])
    assert rows[0]["rwc"] == 1
    assert rows[-1]["rwc"] is None
    csv = pd.read_csv(io.StringIO(run(capsys, "compare", *pair, "--csv")[1]))
    pd.testing.assert_frame_equal(csv, table, check_dtype=False)


def test_the_figure_is_drawn(capsys, pair, tmp_path):
    code, _, err = run(capsys, "compare", *pair, "--plot", tmp_path / "figure.png", "--by", "block")
    assert (code, err) == (0, f"drawn: {tmp_path / 'figure.png'}\n")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    table = compare(*pair)
    axes = differences(table).axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["layer0.weight", "layer1.weight"]
    many = pd.DataFrame({"layer": [f"l{i}" for i in range(101)], "rwc": [*np.linspace(1, 2, 100), np.nan]})
    figure = differences(many)
    assert len(figure.axes[0].get_yticks()) == 60
    assert figure._supxlabel.get_text() == "not drawn: 40 smaller, 1 without a finite value"
    for column in ("cosine", "changed"):
        differences(table, column)
    assert differences(table.head(0)).axes[0].get_visible()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--by", "stage"], "unknown by 'stage'; known: block"),
        (["--layers", "conv*"], "no weight tensor matches 'conv*'"),
        (["--json", "--csv"], "exclude one another"),
        (["--plot", "figure.docx"], "cannot draw into figure.docx"),
        (["--plot", "none/figure.png"], "there is no folder"),
    ],
)
def test_bad_usage_is_one_sentence(capsys, pair, words, message):
    code, out, err = run(capsys, "compare", *pair, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


class Evil:
    """Runs code when unpickled."""

    def __reduce__(self):
        return print, ("ran",)


def shards(folder):
    """Write a sharded checkpoint; its index and second file."""
    folder.mkdir()
    for i in range(2):
        save_file({f"{i}.w": torch.ones(4, 4)}, folder / f"model-{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"{i}.w": f"model-{i}.safetensors" for i in range(2)}}))
    return index, folder / "model-1.safetensors"


def make_bad(kind, folder):
    """Write a file or folder that cannot be compared; its path."""
    path = folder / "bad.pt"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "cut":
        torch.save({"0.w": torch.ones(40, 40)}, path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "code":
        torch.save({"0.w": torch.ones(4, 4), "x": Evil()}, path)
    elif kind == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "no index":
        (path := folder / "bad.json").write_text("[]")
    elif kind == "several":
        (path := folder / "several").mkdir()
        torch.save({}, path / "1.pt")
        torch.save({}, path / "2.pt")
    elif kind == "empty":
        (path := folder / "empty").mkdir()
    elif kind == "other":
        torch.save({"other.w": torch.ones(2, 2)}, path)
    elif kind in ("cut shard", "no shard", "wrong shard"):
        path, shard = shards(folder / "shards")
        raw = shard.read_bytes()
        shard.unlink()
        if kind == "cut shard":
            shard.write_bytes(raw[:-7])
        elif kind == "wrong shard":
            save_file({"2.w": torch.ones(4, 4)}, shard)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "there is no file or folder"),
        ("text", "is no checkpoint that torch.load can read"),
        ("cut", "is damaged or no checkpoint"),
        ("code", "wants to run code when loaded (print), which is refused"),
        ("module", "wants to run code when loaded (torch.nn.modules.linear.Linear), which is refused"),
        ("list", "holds no weights by name"),
        ("no index", "is no index of shards"),
        ("several", "holds several checkpoints (1.pt, 2.pt) and no index"),
        ("empty", "holds no checkpoint and no index"),
        ("cut shard", "model-1.safetensors is no whole safetensors file"),
        ("no shard", "names the shard model-1.safetensors, which is missing; fetch it"),
        ("wrong shard", "model-1.safetensors lacks the tensor 1.w; fetch it again"),
        ("other", "have no tensor in common"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(capsys, tmp_path, kind, message):
    torch.save({"0.w": torch.ones(4, 4), "1.w": torch.ones(4, 4)}, tmp_path / "good.pt")
    path = make_bad(kind, tmp_path)
    with pytest.raises(DataError) as error:
        compare(tmp_path / "good.pt", path)
    assert message in str(error.value)
    code, out, err = run(capsys, "compare", path, tmp_path / "good.pt")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("rwc: ")


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (3, {}, "a checkpoint is a path, a state_dict or a torch.nn.Module, not int"),
        ([{"w": torch.ones(2, 2)}], None, "one checkpoint has nothing to be compared with"),
        ({"w": torch.ones(2, 2)}, None, "one checkpoint has nothing to be compared with"),
        ([1, 2], {}, "leave b out"),
        ({"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2, device="meta")}, "w of the state_dict is no plain tensor"),
    ],
)
def test_what_is_no_checkpoint_is_a_config_error(a, b, message):
    with pytest.raises(ConfigError, match=message):
        compare(a, b)
