"""The block of a tensor's name, and one name for the same tensor in two checkpoints."""

from rwclib._names import agree, block


def test_the_block_of_a_name():
    names = {"layer4.0": "layer4", "layer4.1.conv1.weight": "layer4", "transformer.h.3.attn.c_attn.weight": "transformer.h.3",
             "model.layers.12.mlp.up.weight": "model.layers.12", "fc.weight": "fc", "weight": "weight", "conv1.weight": "conv1",
             "rnn.weight_ih_l0": "rnn", "params.0": "params.0", "0.weight": "0", "transformer.h.3": "transformer.h.3"}  # fmt: skip
    assert {name: block(name) for name in names} == names


def test_names_are_stripped_only_where_that_makes_them_agree():
    same = ["model.a.weight", "model.b.weight"]
    assert agree(same, same)[0] == {name: name for name in same}
    assert set(agree([f"module.{name}" for name in same], same)[0].values()) == set(same)
    assert list(agree(["net.model._orig_mod.a", "net.x"], ["model.a"])[0].values()) == ["model.a", "x"]
    assert agree(["a.w", "b.w", "c.x"], ["w"])[0]["a.w"] == "a.w"  # a or b: not known
