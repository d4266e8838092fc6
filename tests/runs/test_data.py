"""Image sets: reading, refusing, fetching through torchvision; and augmentation against torchvision's transforms."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rwclib import data
from rwclib.errors import ConfigError, DataError
from rwclib.runs.data import Batches, EpochPlan

CPU = torch.device("cpu")
SETTINGS = {"image_size": 32, "normalize": "none", "device": CPU}


def images(
    n: int, size: int = 32, channels: int = 3, classes: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8), rng.integers(0, classes, n)


def arrays(n_train: int = 20, n_test: int = 8, **kind: int) -> dict[str, np.ndarray]:
    """The four arrays of a set in the format of the `.npz` files."""
    (x_train, y_train), (x_test, y_test) = images(n_train, **kind), images(n_test, seed=1, **kind)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def generators(seed: int = 0) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)


# Augmentation


@pytest.mark.parametrize("normalize", ["none", "imagenet"])
def test_crop_flip_and_normalisation_equal_torchvision(normalize):
    from torchvision.transforms.v2 import functional as tv

    x, y = images(12)
    batches = Batches(x, y, crop_padding=4, **{**SETTINGS, "normalize": normalize})
    top, left = torch.tensor([0, 8, 4, 0, 8, 3, 5, 1, 2, 6, 7, 4]), torch.tensor([0, 8, 4, 8, 0, 6, 1, 2, 7, 5, 4, 3])
    flip, rows = torch.arange(12) % 3 == 0, torch.arange(11, -1, -1)
    read = batches.batch(rows, top, left, flip)
    for i, row in enumerate(rows.tolist()):
        image = tv.crop(tv.pad(torch.from_numpy(x[row]).permute(2, 0, 1), 4), top[i].item(), left[i].item(), 32, 32)
        image = tv.to_dtype(tv.horizontal_flip(image) if flip[i] else image, torch.float32, scale=True)
        if normalize == "imagenet":
            image = tv.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        assert (read[i] - image).abs().max() < 1e-6


def test_batches_are_float32_in_channels_last_format():
    x, labels = next(Batches(*images(5), **SETTINGS).in_order(5))
    assert x.shape == (5, 3, 32, 32)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "new"), [(28, 32), (32, 28), (32, 64), (32, 8)])
def test_resizing_equals_torchvision_exactly(size, new, channels):
    from torchvision.transforms import functional as tv

    x = torch.from_numpy(images(20, size, channels)[0])
    theirs = tv.resize(x.permute(0, 3, 1, 2), [new, new], antialias=True)
    ours = data.resize(x, new)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours.permute(0, 3, 1, 2), theirs)


def test_resizing_more_images_than_one_part_holds_keeps_them_in_order():
    x = torch.from_numpy(images(4100, size=8, channels=1)[0])
    whole = data.resize(x, 9)
    assert len(whole) == 4100
    assert torch.equal(whole[4094:], data.resize(x[4094:], 9))


def test_batches_resize_to_the_size_asked_for():
    x, y = images(4, size=28, channels=1)
    read, _ = next(Batches(x, y, **SETTINGS).in_order(4))
    resized = data.resize(torch.from_numpy(x), 32).permute(0, 3, 1, 2)
    assert torch.equal((read * 255).round().to(torch.uint8), resized)


def test_batches_in_order_are_not_augmented_even_where_crops_are_set():
    x, y = images(10)
    batches = Batches(x, y, crop_padding=4, **SETTINGS)
    parts = list(batches.in_order(4))
    for each in parts, list(batches.epoch(batches.plan(*generators(), flip=False, shuffle=True), 4)):
        assert [(len(pixels), len(labels)) for pixels, labels in each] == [(4, 4), (4, 4), (2, 2)]
    pixels = torch.cat([part for part, _ in parts]).permute(0, 2, 3, 1)
    assert np.abs(pixels.numpy() - x / 255).max() < 1e-6
    assert torch.cat([labels for _, labels in parts]).tolist() == y.tolist()


def plan(n: int, padding: int = 4, seed: int = 0, flip: bool = True, shuffle: bool = True) -> EpochPlan:
    x, y = np.zeros((n, 8, 8, 1), np.uint8), np.zeros(n, np.int64)
    batches = Batches(x, y, crop_padding=padding, **{**SETTINGS, "image_size": 8})
    return batches.plan(*generators(seed), flip=flip, shuffle=shuffle)


def test_an_epoch_shows_every_image_once_with_its_own_label():
    n = 37
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 1)).copy()
    batches = Batches(x, np.arange(n), **{**SETTINGS, "image_size": 8})
    seen = []
    for part, labels in batches.epoch(batches.plan(*generators(), flip=True, shuffle=True), 8):
        assert (part * 255).round().amax((1, 2, 3)).tolist() == labels.tolist()
        seen += labels.tolist()
    assert sorted(seen) == list(range(n))
    assert seen != sorted(seen)


def test_an_epoch_is_the_augmentation_that_its_plan_says():
    batches = Batches(*images(9), crop_padding=2, **SETTINGS)
    chosen = batches.plan(*generators(), flip=True, shuffle=True)
    whole = torch.cat([x for x, _ in batches.epoch(chosen, 4)])
    for position, row in enumerate(chosen.order):
        one = batches.batch(row[None], chosen.top[row][None], chosen.left[row][None], chosen.flip[row][None])
        assert torch.equal(whole[position], one[0])


def test_a_plan_draws_offsets_evenly_and_flips_half():
    n = 20_000
    chosen = plan(n)
    assert sorted(chosen.order.tolist()) == list(range(n))
    for offsets in (chosen.top, chosen.left):
        counts = offsets.bincount()
        assert len(counts) == 9  # 0 to twice the padding
        assert (counts - n / 9).abs().max() < 5 * (n * 1 / 9 * 8 / 9) ** 0.5
    assert abs(chosen.flip.sum().item() - n / 2) < 5 * (n / 4) ** 0.5
    choices = torch.stack([chosen.top, chosen.left, chosen.flip.long()]).double()
    assert torch.corrcoef(choices).triu(1).abs().max() < 5 / n**0.5


def test_the_same_generators_give_the_same_plan_and_their_next_epoch_another():
    one, other = plan(50), plan(50)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("order", "top", "left", "flip"))
    batches, pair = Batches(*images(50), crop_padding=4, **SETTINGS), generators()
    first, second = (batches.plan(*pair, flip=True, shuffle=True) for _ in range(2))
    assert torch.equal(first.order, one.order)
    assert not any(torch.equal(getattr(first, n), getattr(second, n)) for n in ("order", "top", "left", "flip"))


def test_a_plan_is_as_asked_for_and_leaves_other_choices_and_the_global_generator_as_they_were():
    before = torch.get_rng_state()
    assert plan(50, shuffle=False).order.tolist() == list(range(50))
    assert not plan(50, flip=False).flip.any()
    whole = plan(50, padding=0)
    assert not whole.top.any()
    assert not whole.left.any()
    assert torch.equal(torch.get_rng_state(), before)
    full, bare = plan(50), plan(50, flip=False, shuffle=False)
    assert torch.equal(full.top, bare.top)
    assert torch.equal(full.left, bare.left)
    assert torch.equal(full.order, plan(50, flip=False).order)


# Files


@pytest.fixture
def stored(tmp_path) -> dict[str, np.ndarray]:
    """A small grey set, stored as `mnist.npz`."""
    kept = arrays(size=28, channels=1)
    np.savez(tmp_path / "mnist.npz", **kept, source="a source", note="a note")
    return kept


def test_a_stored_set_is_read_as_it_was_written(tmp_path, stored):
    read = data.load("mnist", tmp_path)
    assert all(np.array_equal(getattr(read, name), array) for name, array in stored.items())
    assert read.x_train.dtype == np.uint8
    assert read.y_train.dtype == read.y_test.dtype == np.int64
    assert (read.name, read.source, read.note) == ("mnist", "a source", "a note")


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_type_are_read_as_int64(tmp_path, dtype):
    kept = arrays(size=28, channels=1)
    np.savez_compressed(tmp_path / "mnist.npz", **{k: v.astype(dtype) if k[0] == "y" else v for k, v in kept.items()})
    read = data.load("mnist", tmp_path)
    assert read.y_train.dtype == np.int64
    assert np.array_equal(read.y_train, kept["y_train"])
    assert (read.source, read.note) == ("unknown", "unknown")


def test_the_data_folder_is_the_one_given_or_that_of_the_environment_or_the_cache(tmp_path, stored, monkeypatch):
    monkeypatch.setenv("RWC_DATA_DIR", str(tmp_path))
    assert data.folder("given") == Path("given")
    assert data.folder() == tmp_path
    assert np.array_equal(data.load("mnist", download=False).x_test, stored["x_test"])
    monkeypatch.delenv("RWC_DATA_DIR")
    assert data.folder().parts[-2:] == ("rwclib", "data")


def but(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return arrays(size=28, channels=1) | changes


GOOD = arrays(size=28, channels=1)
BAD_ARRAYS = {
    "missing x_train": {key: array for key, array in GOOD.items() if key != "x_train"},
    "float pixels": but(x_train=GOOD["x_train"].astype(np.float32)),
    "float labels": but(y_train=GOOD["y_train"].astype(np.float64)),
    "pixels without channels": but(x_train=GOOD["x_train"][..., 0]),
    "colour": arrays(size=28, channels=3),
    "not square": but(x_train=GOOD["x_train"][:, :20]),
    "label too large": but(y_train=np.append(GOOD["y_train"][1:], 10)),
    "label below 0": but(y_test=np.append(GOOD["y_test"][1:], -1)),
    "fewer labels than images": but(y_train=GOOD["y_train"][1:]),
    "labels as a column": but(y_train=GOOD["y_train"][:, None]),
    "no images": but(x_test=GOOD["x_test"][:0], y_test=GOOD["y_test"][:0]),
    "object source": but(source=np.array([None])),
}


def damaged(kind: str, content: bytes) -> bytes:
    """A file's content, damaged in this way."""
    return {
        "truncated": content[: len(content) // 2],
        "bytes overwritten": content[:500] + b"\xff" * 200 + content[700:],
        "not a zip": b"<html>404 not read</html>\n" * 50,
        "a pickle": pickle.dumps(GOOD),
        "empty": b"",
    }[kind]


def assert_refused(folder: Path) -> None:
    """Loading mnist fails with one line that names the file, and changes nothing in the folder."""
    file = folder / "mnist.npz"
    before, changed = file.read_bytes(), file.stat().st_mtime_ns
    for fetch in (data.load, data.fetch):
        with pytest.raises(DataError) as error:
            fetch("mnist", folder)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
        assert "delete it and fetch it again" in str(error.value)
    assert file.read_bytes() == before
    assert file.stat().st_mtime_ns == changed
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_file_with_wrong_arrays_is_an_error_that_names_it_and_leaves_it_alone(tmp_path, kind):
    np.savez(tmp_path / "mnist.npz", **BAD_ARRAYS[kind])
    assert_refused(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["truncated", "bytes overwritten", "not a zip", "a pickle", "empty"])
def test_a_damaged_file_is_an_error_that_names_it_and_leaves_it_alone(tmp_path, kind, save):
    file = tmp_path / "mnist.npz"
    save(file, **GOOD)
    file.write_bytes(damaged(kind, file.read_bytes()))
    assert_refused(tmp_path)
    with pytest.raises(DataError) as error:
        data.load("mnist", tmp_path)
    assert "allow_pickle" not in str(error.value)


def test_source_and_note_are_one_line(tmp_path):
    np.savez(tmp_path / "mnist.npz", **GOOD, source="two\nlines", note=np.array(["a", "b\n"]))
    read = data.load("mnist", tmp_path)
    assert read.source == "two lines"
    assert "\n" not in read.note


def test_objects_in_a_file_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "mnist.npz", **but(y_train=np.array([Trap()] * 20, dtype=object)))
    with pytest.raises(DataError):
        data.load("mnist", tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("function", [data.load, data.fetch, data.path, data.get])
def test_an_unknown_set_is_an_error_that_lists_the_known_ones(function):
    with pytest.raises(ConfigError, match="'imagenet'") as error:
        function("imagenet")
    assert all(name in str(error.value) for name in data.DATASETS)


def test_a_missing_set_is_an_error_that_names_folder_file_and_command(tmp_path):
    with pytest.raises(DataError) as error:
        data.load("cifar10", tmp_path / "none", download=False)
    assert str(tmp_path / "none" / "cifar10.npz") in str(error.value)
    assert "`rwc data fetch cifar10`" in str(error.value)
    assert not (tmp_path / "none").exists()


# Subsets and the bundled sample


@pytest.fixture(scope="module")
def sample() -> data.ImageSet:
    return data.load(data.SAMPLE)


def test_the_bundled_sample_is_small_and_class_balanced_and_never_changes(sample):
    assert sample.x_train.shape == (6000, 28, 28, 1)
    assert sample.x_test.shape == (1000, 28, 28, 1)
    assert np.bincount(sample.y_train).tolist() == [600] * 10
    assert np.bincount(sample.y_test).tolist() == [100] * 10
    assert data.path(data.SAMPLE).stat().st_size < 4_000_000
    assert "Fashion-MNIST" in sample.source
    assert "sample" in sample.note
    assert sample.digest() == "4732bcacb0b8"


def test_the_bundled_sample_needs_no_data_folder(sample, tmp_path):
    assert data.load(data.SAMPLE, tmp_path / "none", download=False).digest() == sample.digest()
    assert data.fetch(data.SAMPLE, tmp_path / "none").digest() == sample.digest()
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(
    not Path(os.environ.get("RWC_DATA_DIR", "none"), "fashion_mnist.npz").exists(),
    reason="needs the full Fashion-MNIST",
)
def test_every_image_of_the_bundled_sample_is_in_the_full_set_with_its_label(sample):
    full = data.load("fashion_mnist", download=False)
    for split in ("train", "test"):
        there, here = ((getattr(s, f"x_{split}"), getattr(s, f"y_{split}")) for s in (full, sample))
        known = {(image.tobytes(), label) for image, label in zip(there[0], there[1].tolist(), strict=True)}
        read = {(image.tobytes(), label) for image, label in zip(here[0], here[1].tolist(), strict=True)}
        assert read <= known
        assert len(read) > 0.99 * len(here[0])


def test_the_digest_sees_every_pixel_and_label(sample):
    digests = {sample.digest()}
    for name in ("x_train", "y_train", "x_test", "y_test"):
        changed = getattr(sample, name).copy()
        changed.flat[-1] ^= 1
        digests.add(data.ImageSet(**{**vars(sample), name: changed}).digest())
    assert len(digests) == 5


def test_a_subset_has_the_sizes_asked_for_and_is_always_the_same(sample):
    one, other = sample.subset(500, 30), sample.subset(500, 30)
    assert one.x_train.shape == (500, 28, 28, 1)
    assert one.y_train.shape == (500,)
    assert one.x_test.shape == (30, 28, 28, 1)
    assert one.digest() == other.digest()
    assert (one.name, one.source, one.note) == (sample.name, sample.source, sample.note)


def test_a_subset_is_of_different_images_with_their_own_labels():
    n = 200
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 1))
    read = data.ImageSet("svhn", x, np.arange(n), x, np.arange(n), "", "").subset(50, n)
    assert len(set(read.y_train)) == 50
    assert read.x_train[:, 0, 0, 0].tolist() == read.y_train.tolist()
    assert read.y_train.max() > 100  # drawn from all, not the first ones
    assert len(read.y_test) == n


def test_a_copy_with_fewer_images_than_the_official_set_never_passes_for_the_whole():
    x = np.zeros((20, 32, 32, 3), np.uint8)
    part = data.ImageSet("svhn", x, np.arange(20), x, np.arange(20), "", "")
    assert len(part.subset(15, 5).y_train) == 15
    with pytest.raises(ConfigError, match="this copy of svhn has 20 of 73,257 train images: give n_train, at most 20"):
        part.subset(None, 5)
    with pytest.raises(ConfigError, match="give n_test"):
        part.subset(15, None)


def test_a_subset_of_everything_is_the_set_itself(sample):
    assert sample.subset(None, None).digest() == sample.subset(6000, 1000).digest() == sample.digest()


@pytest.mark.parametrize(("asked", "name"), [((6001, None), "n_train"), ((None, 1001), "n_test")])
def test_more_images_than_there_are_is_an_error_that_says_how_many_there_are(sample, asked, name):
    with pytest.raises(ConfigError, match=f"{name} is .*001, but .* has .*000 ") as error:
        sample.subset(*asked)
    assert "fashion_mnist_sample" in str(error.value)


# Fetching, with torchvision's own readers and digest checks


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


@pytest.fixture
def svhn_files(tmp_path) -> dict[str, dict[str, np.ndarray]]:
    """SVHN's two files as their server has them, small, in the folder they are downloaded to."""
    from scipy.io import savemat

    raw, read = tmp_path / ".svhn.download", {}
    raw.mkdir()
    for seed, (split, n) in enumerate({"train": 30, "test": 12}.items()):
        x, y = images(n, seed=seed)
        y[:2] = 0, 9
        stored = np.where(y == 0, 10, y).astype(np.uint8)[:, None]  # SVHN's digit 0 has the label 10
        savemat(raw / f"{split}_32x32.mat", {"X": x.transpose(1, 2, 3, 0), "y": stored})
        read |= {f"x_{split}": x, f"y_{split}": y}
    return read


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A web server of one folder: its address and the folder."""
    folder = tmp_path_factory.mktemp("server")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def expect_svhn(monkeypatch, raw: Path, address: str) -> None:
    """Make torchvision expect the files of the folder, from this address."""
    from torchvision.datasets import SVHN

    names = {split: f"{split}_32x32.mat" for split in ("train", "test")}
    listed = {split: [f"{address}/{name}", name, md5(raw / name)] for split, name in names.items()}
    monkeypatch.setattr(SVHN, "split_list", listed)


NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def test_svhn_is_converted_with_pixels_labels_and_order_kept(tmp_path, svhn_files, monkeypatch):
    expect_svhn(monkeypatch, tmp_path / ".svhn.download", NOWHERE)
    read = data.fetch("svhn", tmp_path)
    assert all(np.array_equal(getattr(read, name), array) for name, array in svhn_files.items())
    assert read.source == "torchvision.datasets.SVHN"
    assert [path.name for path in tmp_path.iterdir()] == ["svhn.npz"]
    assert data.load("svhn", tmp_path, download=False).digest() == read.digest()


def test_svhn_is_downloaded_when_it_is_asked_for_and_not_there(tmp_path, svhn_files, server, monkeypatch):
    address, folder = server
    expect_svhn(monkeypatch, tmp_path / ".svhn.download", address)
    for file in (tmp_path / ".svhn.download").iterdir():
        file.rename(folder / file.name)
    read = data.load("svhn", tmp_path)
    assert all(np.array_equal(getattr(read, name), array) for name, array in svhn_files.items())


@pytest.mark.usefixtures("svhn_files")
def test_a_download_with_a_wrong_digest_is_an_error_and_makes_no_set(tmp_path, server, monkeypatch):
    address, folder = server
    raw = tmp_path / ".svhn.download"
    expect_svhn(monkeypatch, raw, address)
    (raw / "train_32x32.mat").rename(folder / "train_32x32.mat")
    damaged = (raw / "test_32x32.mat").read_bytes()[:-1] + b"?"
    (raw / "test_32x32.mat").unlink()
    (folder / "test_32x32.mat").write_bytes(damaged)
    with pytest.raises(DataError, match="corrupted") as error:
        data.fetch("svhn", tmp_path)
    assert str(tmp_path / "svhn.npz") in str(error.value)
    assert "rwc data fetch svhn" in str(error.value)
    assert visible(tmp_path) == []


@pytest.mark.usefixtures("svhn_files")
def test_a_server_out_of_reach_is_an_error_in_one_line(tmp_path, monkeypatch):
    expect_svhn(monkeypatch, tmp_path / ".svhn.download", NOWHERE)
    with pytest.raises(DataError, match="URLError") as error:
        data.load("svhn", tmp_path / "elsewhere")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "elsewhere" / "svhn.npz") in str(error.value)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("svhn_files")
def test_an_answer_that_is_no_http_is_an_error_too(tmp_path, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        expect_svhn(monkeypatch, tmp_path / ".svhn.download", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(DataError, match="svhn could not be fetched"):
            data.fetch("svhn", tmp_path / "elsewhere")


def test_a_data_folder_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError) as error:
        data.load("mnist", tmp_path / "file")
    assert str(tmp_path / "file" / "mnist.npz") in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_set_that_is_there_is_not_fetched_again(tmp_path, stored):
    changed = (tmp_path / "mnist.npz").stat().st_mtime_ns
    assert np.array_equal(data.fetch("mnist", tmp_path).x_train, stored["x_train"])
    assert (tmp_path / "mnist.npz").stat().st_mtime_ns == changed
    assert visible(tmp_path) == ["mnist.npz"]


@pytest.mark.parametrize(("name", "title"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_converted_with_pixels_labels_and_order_kept(tmp_path, monkeypatch, name, title):
    from torchvision import datasets

    raw, digests, kept = tmp_path / f".{name}.download" / title / "raw", [], arrays(size=28, channels=1)
    raw.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for key, file in ((f"x_{split}", f"{prefix}-images-idx3-ubyte"), (f"y_{split}", f"{prefix}-labels-idx1-ubyte")):
            array = kept[key].squeeze().astype(np.uint8)
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{file}.gz").write_bytes(gzip.compress(header + array.tobytes()))
            digests.append((f"{file}.gz", md5(raw / f"{file}.gz")))
    monkeypatch.setattr(getattr(datasets, title), "resources", digests)
    read = data.fetch(name, tmp_path)
    assert all(np.array_equal(getattr(read, key), array) for key, array in kept.items())
    assert visible(tmp_path) == [f"{name}.npz"]


@pytest.mark.parametrize(
    ("name", "title", "labels"), [("cifar10", "CIFAR10", "labels"), ("cifar100", "CIFAR100", "fine_labels")]
)
def test_cifar_files_are_converted_with_pixels_labels_and_order_kept(tmp_path, monkeypatch, name, title, labels):
    from torchvision import datasets

    known, kept = getattr(datasets, title), arrays(classes=data.get(name).num_classes)
    raw = tmp_path / f".{name}.download"
    inside = raw / known.base_folder
    inside.mkdir(parents=True)

    def batch(file: str, x: np.ndarray, y: np.ndarray) -> list[str]:
        rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        (inside / file).write_bytes(pickle.dumps({"data": rows, labels: y.tolist()}))
        return [file, md5(inside / file)]

    files = [file for file, _ in known.train_list]
    parts = zip(
        files, np.array_split(kept["x_train"], len(files)), np.array_split(kept["y_train"], len(files)), strict=True
    )
    monkeypatch.setattr(known, "train_list", [batch(*part) for part in parts])
    monkeypatch.setattr(known, "test_list", [batch(known.test_list[0][0], kept["x_test"], kept["y_test"])])
    meta = inside / known.meta["filename"]
    meta.write_bytes(pickle.dumps({known.meta["key"]: [str(i) for i in range(data.get(name).num_classes)]}))
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": md5(meta)})
    with tarfile.open(raw / known.filename, "w:gz") as archive:  # as its server has it
        archive.add(inside, known.base_folder)
    for file in inside.iterdir():
        file.unlink()
    monkeypatch.setattr(known, "tgz_md5", md5(raw / known.filename))

    read = data.fetch(name, tmp_path)
    assert all(np.array_equal(getattr(read, key), array) for key, array in kept.items())
    assert visible(tmp_path) == [f"{name}.npz"]


def test_mnist_and_its_like_come_from_mirrors_with_tls(tmp_path, monkeypatch):
    asked = []

    def no_network(url, **_):
        asked.append(url)
        raise OSError("network is unreachable")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    for name in ("mnist", "fashion_mnist"):
        with pytest.raises(DataError, match="could not be fetched"):
            data.fetch(name, tmp_path / name)
    assert len(asked) == 2
    assert all(url.startswith("https://") for url in asked)
