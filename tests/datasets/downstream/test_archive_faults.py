"""Everything that can be wrong with the official annotation files, and what is said about it."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from bamboo.cli.errors import BambooError, DataError, UserError
from bamboo.datasets.downstream.sets import open_described
from tests.datasets.downstream import official
from tests.datasets.downstream.official import TINY

IDS: dict[str, Any] = official.FLOWER_IDS


def rewrite(file: str, change: Callable[[str], str], root: Path) -> None:
    path = root / file
    path.write_text(change(path.read_text()))


def replace(file: str, old: str, new: str) -> Callable[[Path], object]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return partial(rewrite, file, change)


def append(file: str, line: str) -> Callable[[Path], object]:
    return partial(rewrite, file, lambda text: f"{text}{line}\n")


def swap(first: str, second: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / first).rename(root / "between")
        (root / second).rename(root / first)
        (root / "between").rename(root / second)

    return change


def cut(file: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:-60])


def gone(file: str) -> Callable[[Path], object]:
    return lambda root: (root / file).unlink()


def matlab(file: str, **values: Any) -> Callable[[Path], object]:
    return lambda root: scipy.io.savemat(root / file, values)


def set_ids(**values: Any) -> Callable[[Path], object]:
    return matlab("flowers-102/setid.mat", **(IDS | values))


def food_list(root: Path) -> None:
    tree = json.loads((root / "food-101/meta/train.json").read_text())
    tree["churros"][0] = "apple_pie/0"
    (root / "food-101/meta/train.json").write_text(json.dumps(tree))


PETS, FLOWERS, CARS = "oxford-iiit-pet/annotations/", "flowers-102/", "stanford_cars/devkit/"
DTD, PLANES = "dtd/dtd/labels/", "fgvc-aircraft-2013b/data/images_variant_"

FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "food: damaged JSON": ("food", cut("food-101/meta/train.json"), r"train\.json: damaged"),
    "food: another JSON": ("food", lambda root: (root / "food-101/meta/train.json").write_text("[1]"), "not a mapping of classes"),
    "food: another class's image": ("food", food_list, "listed under a class that is not their folder: apple_pie/0 under churros"),
    "food: missing image": ("food", gone("food-101/images/churros/1.jpg"), r"1 of 9 listed files are missing .*images/churros/1\.jpg"),
    "food: missing test.json": ("food", gone("food-101/meta/test.json"), r"test\.json: missing; extract the archive again"),
    "food: image in both": ("food", replace("food-101/meta/test.json", "churros/11", "churros/1"), "1 files are in train and in test"),
    "food: swapped": ("food", swap("food-101/meta/train.json", "food-101/meta/test.json"), "train and test look swapped"),
    "pet: labels from 0": (
        "pet",
        partial(
            rewrite,
            f"{PETS}trainval.txt",
            lambda text: text.replace(" 1 1 1", " 0 1 1").replace(" 2 1 1", " 1 1 1").replace(" 3 1 1", " 2 1 1"),
        ),
        "labels 0 to 2 for 3 classes: they count from 0, the official ones from 1",
    ),
    "pet: label out of range": ("pet", replace(f"{PETS}trainval.txt", " 3 1 1", " 38 1 1"), r"label 38 \(entry 3\) is out of range"),
    "pet: label of two breeds": (
        "pet",
        replace(f"{PETS}trainval.txt", "Bengal_5 3", "Bengal_5 1"),
        "label 1 stands for 'Abyssinian' and for",
    ),
    "pet: a column too few": ("pet", replace(f"{PETS}trainval.txt", " 1 1 1", " 1 1"), "line 1: .* is not `image class species breed`"),
    "pet: duplicated line": ("pet", append(f"{PETS}trainval.txt", "Abyssinian_0 1 1 1"), r"is listed twice \(entries 1 and 9\)"),
    "pet: empty": ("pet", lambda root: (root / f"{PETS}trainval.txt").write_text(""), "trainval.txt: empty"),
    "pet: only comments": ("pet", lambda root: (root / f"{PETS}trainval.txt").write_text("# image class\n"), "lists no image"),
    "pet: a path out": ("pet", replace(f"{PETS}trainval.txt", "Abyssinian_0", "../../../x"), "leads out of the set's folder"),
    "pet: no UTF-8": ("pet", lambda root: (root / f"{PETS}trainval.txt").write_bytes(b"\xff 1 1 1\n"), "line 1: not UTF-8"),
    "pet: swapped": ("pet", swap(f"{PETS}trainval.txt", f"{PETS}test.txt"), "train and test look swapped"),
    "flower: cut file": ("flower", cut(f"{FLOWERS}setid.mat"), r"setid\.mat: cannot be read as a MATLAB file"),
    "flower: no MATLAB file": (
        "flower",
        lambda root: (root / f"{FLOWERS}imagelabels.mat").write_bytes(b"<html>"),
        "cannot be read as a MATLAB",
    ),
    "flower: missing file": ("flower", gone(f"{FLOWERS}imagelabels.mat"), r"imagelabels\.mat: missing"),
    "flower: no such key": ("flower", matlab(f"{FLOWERS}setid.mat", trnid=[1]), "'valid' is not a row of whole numbers"),
    "flower: no whole numbers": ("flower", set_ids(trnid=[1.5, 2, 3]), "'trnid' is not a row of whole numbers"),
    "flower: a table": ("flower", set_ids(trnid=np.ones((3, 3))), r"'trnid' is not a row of whole numbers \(shape \(3, 3\)"),
    "flower: image 0": ("flower", set_ids(trnid=[0, 1, 2]), "image 0 is out of range; imagelabels.mat labels the images 1 to 16"),
    "flower: image 17": ("flower", set_ids(trnid=[1, 2, 17]), "image 17 is out of range"),
    "flower: labels from 0": (
        "flower",
        matlab(f"{FLOWERS}imagelabels.mat", labels=official.FLOWER_LABELS - 1),
        "labels 0 to 2 for 3 classes: they count from 0, the official ones from 1",
    ),
    "flower: label out of range": ("flower", matlab(f"{FLOWERS}imagelabels.mat", labels=[103] * 16), "label 103 .*is out of range"),
    "flower: duplicate": ("flower", set_ids(trnid=[1, 1, 3]), "is listed twice"),
    "flower: validation image in train": ("flower", set_ids(valid=[3, 4, 5]), "is listed twice"),
    "flower: image in both": ("flower", set_ids(trnid=[1, 2, 7]), "1 files are in train and in test"),
    "flower: missing image": ("flower", gone(f"{FLOWERS}jpg/image_00002.jpg"), r"1 of 6 listed files are missing .*image_00002\.jpg"),
    "flower: swapped": ("flower", set_ids(trnid=IDS["tstid"], tstid=IDS["trnid"]), "train and test look swapped"),
    "car: cut file": ("car", cut(f"{CARS}cars_train_annos.mat"), r"cars_train_annos\.mat: cannot be read"),
    "car: no rows": ("car", matlab(f"{CARS}cars_train_annos.mat", other=1), "'annotations' has no field fname or class"),
    "car: other fields": (
        "car",
        matlab(f"{CARS}cars_train_annos.mat", annotations=official.annotations(fname=["a.jpg"])),
        "'annotations' has no field class",
    ),
    "car: class in words": (
        "car",
        matlab(f"{CARS}cars_train_annos.mat", annotations=official.annotations(**{"class": ["x"], "fname": ["a.jpg"]})),
        "'class' is not a number in every row",
    ),
    "car: names of other classes": (
        "car",
        matlab(f"{CARS}cars_meta.mat", class_names=["a", "b"]),
        "'class_names' has 2 names; there are 3 classes",
    ),
    "car: no test annotations": ("car", gone("stanford_cars/cars_test_annos_withlabels.mat"), r"cars_test_annos_withlabels\.mat: missing"),
    "dtd: no class": ("dtd", append(f"{DTD}train1.txt", "banded_0001.jpg"), "not `class/file`: banded_0001.jpg"),
    "dtd: no validation list": ("dtd", gone(f"{DTD}val1.txt"), r"val1\.txt: missing"),
    "dtd: unknown class": ("dtd", append(f"{DTD}val1.txt", "woven/woven_0001.jpg"), r"classes \['woven'\] are not among the 3"),
    "dtd: a class too small": (
        "dtd",
        partial(rewrite, f"{DTD}train1.txt", lambda text: text.replace("zigzagged/zigzagged_0001.jpg\n", "")),
        "11 images, the official train split has 12\n.*4 images per class are official, but zigzagged has 3",
    ),
    "aircraft: no variant": ("aircraft", append(f"{PLANES}train.txt", "0034999"), "line 5: '0034999' is not `image variant`"),
    "aircraft: unknown variant": ("aircraft", replace(f"{PLANES}train.txt", "F/A-18", "F/A-19"), r"\['F/A-19'\] are not among the 3"),
    "aircraft: swapped": ("aircraft", swap(f"{PLANES}train.txt", f"{PLANES}test.txt"), "train and test look swapped"),
    "aircraft: validation and test swapped": (
        "aircraft",
        swap(f"{PLANES}val.txt", f"{PLANES}test.txt"),
        r"_val\.txt: does not agree with images_variant_trainval\.txt: 3 of 3 images are not in it; val and test look swapped",
    ),
    "aircraft: an image of another part": (
        "aircraft",
        replace(f"{PLANES}val.txt", "1025794", "0056978"),
        "1 of 3 images are not in it; extract the archive again",
    ),
    "sun: no class": ("sun", append("Training_01.txt", "/sun_a1.jpg"), "not `/letter/class/file`: sun_a1.jpg"),
    "sun: a path out": ("sun", append("Training_01.txt", "/a/../../b/sun_a1.jpg"), "leads out of the set's folder"),
    "sun: unknown class": ("sun", append("Training_01.txt", "/z/zoo/sun_a1.jpg"), r"classes \['z/zoo'\] are not among the 3"),
    "sun: the same list twice": (
        "sun",
        lambda root: (root / "Testing_01.txt").write_bytes((root / "Training_01.txt").read_bytes()),
        "6 files are in",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_archive_is_refused(tmp_path: Path, fault: str) -> None:
    """Each fault made in a sound fixture: DataError with its reason when the training split is opened; the sound one opens."""
    name, change, said = FAULTS[fault]
    getattr(official, name)(tmp_path)
    open_described(TINY[name], tmp_path, "train")
    change(tmp_path)
    with pytest.raises(DataError, match=said):
        open_described(TINY[name], tmp_path, "train")


@pytest.mark.parametrize(
    ("shift", "said"), [(-1, "they count from 0, the official ones from 1"), (1, r"label 4 \(entry 3\) is out of range")]
)
def test_labels_of_cars(tmp_path: Path, shift: int, said: str) -> None:
    """All labels one too low, as some copies have them, and one too high."""
    official.car(tmp_path, change=shift)
    with pytest.raises(DataError, match=said):
        open_described(TINY["car"], tmp_path, "train")


def test_the_test_part_of_aircraft(tmp_path: Path) -> None:
    """Validation and test lists under each other's name, test split opened: refused; without the list of both, nothing tells."""
    official.aircraft(tmp_path)
    swap(f"{PLANES}val.txt", f"{PLANES}test.txt")(tmp_path)
    with pytest.raises(DataError, match=r"images_variant_test\.txt: .*3 of 3 images are in it too; val or train and test look swapped"):
        open_described(TINY["aircraft"], tmp_path, "test")
    (tmp_path / f"{PLANES}trainval.txt").unlink()
    assert len(open_described(TINY["aircraft"], tmp_path, "test")) == 3


def test_sun_without_its_partition(tmp_path: Path) -> None:
    """Images alone: the user's mistake, with the other set as the way out."""
    official.sun(tmp_path)
    (tmp_path / "Testing_01.txt").unlink()
    with pytest.raises(UserError, match=r"Testing_01\.txt is neither there nor beside it; .*sun-seeded"):
        open_described(TINY["sun"], tmp_path, "test")
    assert len(open_described(TINY["sun-seeded"], tmp_path, "test")) == 6


@pytest.mark.parametrize("name", ["caltech", "sun-seeded"])
def test_a_class_too_small_for_the_draw(tmp_path: Path, name: str) -> None:
    """Images missing from a class, so that the draw is not possible or gives another set: DataError that names it."""
    files = (
        [file for file, _ in official.caltech(tmp_path)]
        if name == "caltech"
        else official.sun(tmp_path) and sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg"))
    )
    for file in files[:2]:
        (tmp_path / file).unlink()
    with pytest.raises(DataError, match=r"the draw needs at least 4 images of every class, but (BACKGROUND_Google has 2|a/abbey has 3)"):
        open_described(TINY[name], tmp_path, "train")


def test_caltech_without_an_image(tmp_path: Path) -> None:
    """One image fewer than the archive has, in a class that is large enough: the test split says so."""
    files = official.caltech(tmp_path)
    (tmp_path / files[-1][0]).unlink()
    with pytest.raises(DataError, match="5 images, the official test split has 6"):
        open_described(TINY["caltech"], tmp_path, "test")
    (tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google").rename(tmp_path / "background")
    with pytest.raises(BambooError):
        open_described(TINY["caltech"], tmp_path, "test")


def test_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flowers and cars where scipy is not installed: the error names the extra."""
    official.flower(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"scipy is not installed: pip install 'bamboo-vision\[sets\]'"):
        open_described(TINY["flower"], tmp_path, "train")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_labels_of_cifar(tmp_path: Path, name: str) -> None:
    """Labels that count from 1 in a pickled batch are said to do so."""

    def shift(batch: dict[bytes, Any]) -> None:
        key = b"labels" if name == "cifar10" else b"fine_labels"
        batch[key] = [label + 1 for label in batch[key]]

    official.cifar(tmp_path, name, change=shift)
    with pytest.raises(DataError, match="they count from 1, not from 0; subtract 1"):
        open_described(TINY[name], tmp_path, "test")
    folder = official.cifar(tmp_path / "b", name, binary=True)
    path = next(path for path in folder.iterdir() if path.name.startswith("test"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"truncated: .* are not whole rows"):
        open_described(TINY[name], folder, "test")
