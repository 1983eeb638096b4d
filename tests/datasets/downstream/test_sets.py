"""Downstream sets on fixtures in each accepted layout, and everything that can be wrong with them."""

import dataclasses
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.cli.errors import DataError, UserError
from bamboo.cli.main import main
from bamboo.datasets.downstream.facts import SplitName
from bamboo.datasets.downstream.sets import SETS, describe, open_described, open_set
from bamboo.datasets.images import UnreadableImageError

CLASSES = SETS["cifar10"].class_names or ()
TINY = dataclasses.replace(SETS["cifar10"], counts={"train": 50, "test": 20}, class_counts={"train": 5, "test": 2})
SPLITS: tuple[SplitName, ...] = ("train", "test")
CIFAR10 = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "cifar10-jpeg.tar.gz"


def pixels(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def write_batches(root: Path, *, protocol: int = 2, change: Callable[[dict[bytes, Any]], object] = lambda batch: None) -> Path:
    """Writes CIFAR-10 in torchvision's layout with 10 rows per training batch and 20 test rows; `change` alters the test batch."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for at, name in enumerate(names):
        count = 20 if name == "test_batch" else 10
        rows = np.stack([pixels(100 * at + row).reshape(-1) for row in range(count)])
        batch = {b"batch_label": b"x", b"labels": [row % 10 for row in range(count)], b"data": rows, b"filenames": [b"a.png"] * count}
        if name == "test_batch":
            change(batch)
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    meta = {b"num_cases_per_batch": 10, b"label_names": [name.encode() for name in CLASSES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return folder


def write_folders(root: Path, *, train: int = 5, test: int = 2, test_name: str = "test") -> Path:
    """Writes class folders with that many JPEGs per class."""
    for split, count in (("train", train), (test_name, test)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = root / split / name / f"{number:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels(1000 * label + number + (0 if split == "train" else 500)).transpose(1, 2, 0)).save(path)
    return root


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar10_in_torchvisions_layout(tmp_path: Path, protocol: int) -> None:
    """Pixels, labels and class names against what was pickled, old and new protocol; root may be the inner folder too."""
    folder = write_batches(tmp_path, protocol=protocol)
    for root in (tmp_path, folder):
        store = open_described(TINY, root, "train")
        assert len(store) == 50
        assert store.class_names == list(CLASSES)
        assert store.labels.tolist() == list(range(10)) * 5
        assert torch.equal(store.load(13), torch.from_numpy(pixels(103)))
        assert store.name(13) == "cifar-10-batches-py:train:13"
    test = open_described(TINY, tmp_path, "test")
    again = pickle.loads(pickle.dumps(test))  # as a spawned loader worker gets it
    assert (len(again), again.data_hash) == (20, test.data_hash)
    assert test.data_hash != store.data_hash


@pytest.mark.parametrize("below", ["", "cifar10"])
def test_cifar10_in_jpeg_folders(tmp_path: Path, below: str) -> None:
    """Class folders directly in the root or in cifar10/: counts, labels in the official order, images as Pillow decodes them."""
    root = write_folders(tmp_path / below)
    store = open_described(TINY, tmp_path, "test")
    assert store.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert store.class_names == list(CLASSES)
    expected = np.asarray(Image.open(root / "test" / "automobile" / "0001.jpg")).transpose(2, 0, 1)
    assert np.abs(store.load(3).numpy().astype(int) - expected).max() <= 2
    assert store.name(3).endswith("automobile/0001.jpg")
    assert pickle.loads(pickle.dumps(store)).data_hash == store.data_hash


def test_wrong_counts_say_what_differs(tmp_path: Path) -> None:
    """One image too few, official counts of the real set, a class too many: DataError with numbers; any_counts accepts subsets."""
    root = write_folders(tmp_path)
    (root / "train" / "cat" / "0004.jpg").unlink()
    with pytest.raises(DataError, match=r"49 images, the official train split has 50\n.*but cat has 4"):
        open_described(TINY, root, "train")
    assert len(open_described(TINY, root, "train", any_counts=True)) == 49
    with pytest.raises(DataError, match="the official test split has 10,000"):
        open_set("cifar10", root, "test")
    (root / "train" / "zebra").mkdir()
    (root / "train" / "zebra" / "1.jpg").write_bytes((root / "train" / "cat" / "0000.jpg").read_bytes())
    with pytest.raises(DataError, match=r"not known: \['zebra'\]"):
        open_described(TINY, root, "train", any_counts=True)


def test_swapped_splits_are_noticed(tmp_path: Path) -> None:
    """train and test under each other's names: both fail on counts, and it is said what they look like."""
    root = write_folders(tmp_path, train=2, test=5)
    for split in ("train", "test"):
        with pytest.raises(DataError, match="train and test look swapped: each has about the size of the other"):
            open_described(TINY, root, "train" if split == "train" else "test")


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: batch.update({b"filenames": Hostile()}), "asks for (posix|nt).system"),
        (lambda batch: batch.update({b"data": np.zeros((20, 3072), np.float32)}), "not a uint8 array"),
        (lambda batch: batch.update({b"labels": [0] * 19}), "not a list of 20"),
        (
            lambda batch: batch.update({b"labels": list(range(1, 21))}),
            r"label 10 \(entry 10\) is out of range",
        ),
        (lambda batch: batch.pop(b"data"), "not a uint8 array"),
    ],
)
def test_a_bad_pickle_is_refused(tmp_path: Path, change: Callable[[dict[bytes, Any]], object], said: str) -> None:
    """A pickle that calls os.system, wrong types and lengths, labels out of range: DataError with the reason; nothing is run."""
    write_batches(tmp_path, change=change)
    with pytest.raises(DataError, match=said):
        open_described(TINY, tmp_path, "test")


def test_a_truncated_or_missing_batch(tmp_path: Path) -> None:
    """A batch cut in half, and one that is gone: DataError that names the file."""
    folder = write_batches(tmp_path)
    data = (folder / "test_batch").read_bytes()
    (folder / "test_batch").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="test_batch: cannot be read"):
        open_described(TINY, tmp_path, "test")
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: missing; extract the archive again"):
        open_described(TINY, tmp_path, "train")


def test_a_root_without_the_set(tmp_path: Path) -> None:
    """No such folder, an empty one, an unknown set: the user's mistake, with the remedy."""
    with pytest.raises(UserError, match=r"no such folder; extract the archive there \(tar xzf"):
        open_set("cifar10", tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"looked for torchvision's cifar-10-batches-py or .* or class folders"):
        open_set("cifar10", tmp_path, "train")
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        describe("cifar-10")
    with pytest.raises(UserError, match="bamboo shards pack"):
        open_set("shards", tmp_path, "test")


def test_any_folder_of_class_folders(tmp_path: Path) -> None:
    """`folder` with val in place of test, nested images, hidden files and notes: read; the class ids are those of train."""
    root = write_folders(tmp_path, train=3, test=1, test_name="val")
    nested = root / "train" / "bird" / "small" / "x.png"
    nested.parent.mkdir()
    Image.fromarray(pixels(0).transpose(1, 2, 0)).save(nested)
    (root / "train" / "bird" / "notes.txt").write_text("no image")
    (root / "train" / "bird" / ".hidden.jpg").write_bytes(b"")
    for label, name in enumerate(CLASSES[:2]):
        (root / "val" / name / "0000.jpg").unlink()
        (root / "val" / name).rmdir()
        assert label < 2
    train, test = (open_set("folder", root, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (31, 8)
    assert train.class_names == test.class_names == list(CLASSES)
    assert test.labels.tolist() == list(range(2, 10))


def test_three_folders(tmp_path: Path) -> None:
    """`folder` with train, val and test: val is the validation part of the training split; CIFAR-10's has no official one."""
    root = write_folders(tmp_path, train=3, test=1)
    write_folders(tmp_path, train=0, test=2, test_name="val")
    train, test = (open_set("folder", root, split) for split in SPLITS)
    assert (len(train), len(test)) == (50, 10)
    assert train.validation_rows is not None
    assert [Path(train.name(row)).parts[-3] for row in train.validation_rows.tolist()] == ["val"] * 20
    assert {Path(train.name(row)).parts[-3] for row in range(30)} == {"train"}
    described = dataclasses.replace(TINY, counts={"train": 50, "test": 10}, class_counts={})
    assert open_described(described, root, "train").validation_rows is None
    assert open_described(described, root, "train").notes == ("training and validation parts together (30 + 20)",)


def test_imagenets_own_test_folder_is_not_used(tmp_path: Path) -> None:
    """train, val and test, as the competition's archive has them: the test split is val, and train is train alone."""
    imagenet = dataclasses.replace(TINY, name="imagenet")
    root = write_folders(tmp_path, test_name="val")
    (root / "test").mkdir()
    assert [len(open_described(imagenet, root, split)) for split in SPLITS] == [50, 20]
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"train is there, but no val beside it"):
        open_described(imagenet, root, "test")


@pytest.mark.parametrize("name", ["food", "folder", "shards"])
def test_tars_without_an_index(tmp_path: Path, name: str) -> None:
    """WebDataset tars without our index: the error has the command that makes it, and after it the set opens."""
    root = write_folders(tmp_path / "images", train=2, test=1)
    for split in SPLITS:
        out = tmp_path / "wds" / split
        assert main(["shards", "pack", str(root / split), "--out", str(out), "--processes", "1"]) == 0
        for file in out.iterdir():
            if file.suffix != ".tar":
                file.unlink()
    with pytest.raises(UserError, match=rf"bamboo shards index ({out.parent / 'train'}|DIR)"):
        open_set(name, tmp_path / "wds", "train")
    for split in SPLITS:
        assert main(["shards", "index", str(tmp_path / "wds" / split)]) == 0
    if name == "shards":
        assert [len(open_set(name, tmp_path / "wds", split)) for split in SPLITS] == [20, 10]


def test_faults_of_a_folder_set(tmp_path: Path) -> None:
    """An empty class, a class that train does not have, an unreadable image: each an error that names it."""
    root = write_folders(tmp_path, train=1, test=1)
    (root / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="class folders without an image: empty"):
        open_set("folder", root, "train")
    (root / "train" / "empty").rmdir()
    (root / "test" / "cat").rename(root / "test" / "kitten")
    with pytest.raises(DataError, match=r"\['kitten'\] are not among those of the training set"):
        open_set("folder", root, "test")
    (root / "train" / "cat" / "0000.jpg").write_bytes(b"\xff\xd8\xff no image")
    store = open_set("folder", root, "train")
    with pytest.raises(UnreadableImageError):
        store.load(3)
    for folder in ("train", "test"):
        (root / folder).rename(tmp_path / f"old-{folder}")
    (root / "train").mkdir()
    with pytest.raises(DataError, match="holds no class folders"):
        open_set("folder", root, "train")


def test_the_hash_sees_every_change(tmp_path: Path) -> None:
    """data_hash after a swap of two images, a rename, a removed file: four different values; a copy elsewhere: the same."""
    roots = [write_folders(tmp_path / str(number), train=2, test=1) for number in range(5)]
    cat = [root / "train" / "cat" for root in roots]
    first, second = (cat[1] / "0000.jpg").read_bytes(), (cat[1] / "0001.jpg").read_bytes()
    (cat[1] / "0000.jpg").write_bytes(second)
    (cat[1] / "0001.jpg").write_bytes(first)
    (cat[2] / "0000.jpg").rename(cat[2] / "0002.jpg")
    (cat[3] / "0000.jpg").unlink()
    hashes = [open_set("folder", root, "train").data_hash for root in roots]
    assert len(set(hashes)) == 4
    assert hashes[0] == hashes[4]


def test_shard_folders(tmp_path: Path) -> None:
    """`shards` on what `bamboo shards pack` made of class folders: the same labels and classes."""
    root = write_folders(tmp_path / "images", train=2, test=1)
    for split in ("train", "test"):
        assert main(["shards", "pack", str(root / split), "--out", str(tmp_path / "shards" / split), "--processes", "1"]) == 0
    store = open_set("shards", tmp_path / "shards", "test")
    assert sorted(store.labels.tolist()) == list(range(10))
    assert store.class_names == list(CLASSES)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_sets_of_ones_own_bear_names(tmp_path: Path, kind: str) -> None:
    """`folder:flora` is opened as `folder` is, under its own name; a kind or a name that is none is refused."""
    described = describe(f"{kind}:flora")
    assert (described.name, described.title, described.metric) == (f"{kind}:flora", "flora", "top1")
    root = write_folders(tmp_path / "flora", train=2, test=1)
    if kind == "folder":
        assert open_described(described, root.parent, "train").data_hash == open_set("folder", root, "train").data_hash
    for wrong in (f"{kind}:", "cifar10:flora", ":flora"):
        with pytest.raises(UserError, match="no such set"):
            describe(wrong)


@pytest.mark.skipif(not CIFAR10.exists(), reason="no ../shared/data/cifar10-jpeg.tar.gz beside the checkout")
def test_the_real_cifar10_is_complete(tmp_path: Path) -> None:
    """The JPEG archive of ../shared/data, its test half: official counts, official classes, every class 1,000 images."""
    with tarfile.open(CIFAR10) as archive:
        members = [member for member in archive if member.name.startswith("cifar10/test/")]
        archive.extractall(tmp_path, members, filter="data")
    (tmp_path / "cifar10" / "train").mkdir()
    for name in CLASSES:
        path = tmp_path / "cifar10" / "train" / name / "0.jpg"
        path.parent.mkdir()
        buffer = io.BytesIO()
        Image.fromarray(pixels(0).transpose(1, 2, 0)).save(buffer, "JPEG")
        path.write_bytes(buffer.getvalue())
    store = open_set("cifar10", tmp_path, "test")
    assert np.bincount(store.labels).tolist() == [1000] * 10
    assert store.load(0).shape == (3, 32, 32)
