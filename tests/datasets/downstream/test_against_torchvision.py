"""Files and labels of the sets against what torchvision's dataset classes read from the same fixture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets as reference

from bamboo.datasets.downstream.facts import SplitName
from bamboo.datasets.downstream.sets import OpenedSplit, open_described
from tests.datasets.downstream import official
from tests.datasets.downstream.official import TINY, Rows

SPLITS: tuple[SplitName, ...] = ("train", "test")


def opened_rows(name: str, root: Path, split: SplitName) -> Rows:
    opened = open_described(TINY[name], root, split)
    return [(opened.name(sample), label) for sample, label in enumerate(opened.labels.tolist())]


def files_of(dataset: Any, images: str = "_image_files", labels: str = "_labels") -> Rows:
    return [(str(file), int(label)) for file, label in zip(getattr(dataset, images), getattr(dataset, labels), strict=True)]


@pytest.fixture(autouse=True)
def without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares the official files' MD5, which a fixture cannot have."""
    for module in ("cifar", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).exists())


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path: Path, name: str) -> None:
    """Pixels, labels and class names against CIFAR10 and CIFAR100."""
    official.cifar(tmp_path, name)
    for split in SPLITS:
        ours = open_described(TINY[name], tmp_path, split)
        theirs = {"cifar10": reference.CIFAR10, "cifar100": reference.CIFAR100}[name](str(tmp_path), train=split == "train")
        assert ours.labels.tolist() == theirs.targets
        assert ours.class_names == theirs.classes
        pixels = np.stack([ours.load(sample).permute(1, 2, 0).numpy() for sample in range(len(ours))])
        np.testing.assert_array_equal(pixels, theirs.data)


def food(root: Path, split: str) -> Rows:
    return files_of(reference.Food101(root, split))


def pet(root: Path, split: str) -> Rows:
    return files_of(reference.OxfordIIITPet(root, "trainval" if split == "train" else split), "_images")


def parts(cls: Callable[..., Any], root: Path, split: str) -> Rows:
    return [row for part in (("train", "val") if split == "train" else ("test",)) for row in files_of(cls(root, part))]


def aircraft(root: Path, split: str) -> Rows:
    return files_of(reference.FGVCAircraft(root, "trainval" if split == "train" else split))


def car(root: Path, split: str) -> Rows:
    return [(file, int(label)) for file, label in reference.StanfordCars(root, split)._samples]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("food", food),
        ("pet", pet),
        ("flower", partial(parts, reference.Flowers102)),
        ("dtd", partial(parts, reference.DTD)),
        ("aircraft", aircraft),
        ("car", car),
    ],
)
def test_sets_with_official_splits(tmp_path: Path, name: str, read: Callable[[Path, str], Rows]) -> None:
    """Files and class ids, in order, against torchvision's class, training and validation parts together."""
    getattr(official, name)(tmp_path)
    for split in SPLITS:
        assert opened_rows(name, tmp_path, split) == read(tmp_path, split)


def test_class_names_of_aircraft_and_cars(tmp_path: Path) -> None:
    """Class names in their order, blanks and slashes in them, against torchvision's."""
    official.aircraft(tmp_path)
    official.car(tmp_path)
    assert open_described(TINY["aircraft"], tmp_path, "test").class_names == reference.FGVCAircraft(tmp_path).classes
    assert open_described(TINY["car"], tmp_path, "test").class_names == reference.StanfordCars(tmp_path).classes


@pytest.mark.parametrize("name", ["sun", "sun-seeded"])
def test_labels_of_sun(tmp_path: Path, name: str) -> None:
    """Class id of every file against SUN397, which knows no splits."""
    official.sun(tmp_path)
    theirs = dict(files_of(reference.SUN397(tmp_path)))
    for split in SPLITS:
        assert all(theirs[file] == label for file, label in opened_rows(name, tmp_path, split))


def test_files_of_caltech(tmp_path: Path) -> None:
    """Both splits together, without the background class, against Caltech101, which drops that class and knows no splits."""
    official.caltech(tmp_path, stray=False)
    dataset = reference.Caltech101(tmp_path)
    folder = tmp_path / "caltech101" / "101_ObjectCategories"
    theirs = [(str(folder / dataset.categories[y] / f"image_{i:04d}.jpg"), y + 1) for i, y in zip(dataset.index, dataset.y, strict=True)]
    ours = [row for split in SPLITS for row in opened_rows("caltech", tmp_path, split) if row[1] > 0]
    assert sorted(ours) == sorted(theirs)


@pytest.mark.parametrize("name", ["imagenet", "food"])
def test_class_folders(tmp_path: Path, name: str) -> None:
    """Files, labels and class names, in order, against ImageFolder."""
    test_name = "val" if name == "imagenet" else "test"
    official.class_folders(tmp_path, TINY[name], test_name=test_name)
    for split in SPLITS:
        theirs = reference.ImageFolder(str(tmp_path / (test_name if split == "test" else split)))
        ours: OpenedSplit = open_described(TINY[name], tmp_path, split)
        assert opened_rows(name, tmp_path, split) == theirs.samples
        assert ours.class_names == theirs.classes
