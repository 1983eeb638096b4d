"""Everything that can be wrong with `train_meta.list` and `test_meta.list`, and what is said about it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.errors import BambooError, DataError, UserError
from bamboo.datasets.downstream.facts import DownstreamSet, SplitName
from bamboo.datasets.downstream.listing import inside
from bamboo.datasets.downstream.sets import open_described
from bamboo.datasets.images import UnreadableImageError
from tests.datasets.downstream.official import TINY, image, meta_lists, put_images, put_lines

PET = TINY["pet"]
Lines = list[str]


def edit(root: Path, name: str, change: Callable[[Lines], Lines]) -> None:
    path = root / f"{name}_meta.list"
    put_lines(path, change(path.read_text().splitlines()))


def shifted(line: str, by: int) -> str:
    file, label = line.rsplit(maxsplit=1)
    return f"{file} {int(label) + by}"


def put_under_each_others_name(root: Path) -> None:
    train, test = (root / f"{split}_meta.list" for split in ("train", "test"))
    texts = train.read_text(), test.read_text()
    train.write_text(texts[1])
    test.write_text(texts[0])


def swap_in_one_folder(root: Path) -> None:
    (root / "images").mkdir()
    for split in ("train", "test"):
        (root / split).rename(root / "images" / split)
        edit(root, split, lambda lines: [f"images/{line}" for line in lines])
    put_under_each_others_name(root)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line too few": (
        lambda root: edit(root, "train", lambda lines: lines[:-1]),
        r"not pet's train split \(any_counts=true accepts a subset\):\n  7 images, the official train split has 8",
    ),
    "a class without an image": (
        lambda root: edit(root, "train", lambda lines: [line.replace(" 2", " 1") if line.endswith(" 2") else line for line in lines]),
        r"classes without an image: 2",
    ),
    "a missing file": (
        lambda root: (root / "train" / "an image 0003.jpg").unlink(),
        r"train_meta.list: 1 of 8 listed files are missing below .*: train/an image 0003\.jpg",
    ),
    "many missing files": (
        lambda root: [path.unlink() for path in (root / "train").iterdir()],
        r"8 of 8 listed files are missing below .*0000\.jpg, .*… \(3 more\)",
    ),
    "a missing folder": (lambda root: (root / "train").rename(root / "other"), r"8 of 8 listed files are missing"),
    "a duplicated line": (
        lambda root: edit(root, "train", lambda lines: [*lines[:-1], lines[0]]),
        r"'train/an image 0000\.jpg' is listed twice \(entries 1 and 8\); remove the duplicated line",
    ),
    "a duplicate in another spelling": (
        lambda root: edit(root, "train", lambda lines: [*lines[:-1], f"./train/../{lines[0]}"]),
        r"is listed twice \(entries 1 and 8\)",
    ),
    "a file in both splits": (
        lambda root: edit(root, "train", lambda lines: [*lines[:-1], "test/an image 0005.jpg 2"]),
        r"test_meta.list: 1 files are in train and in test \(.*train_meta.list\) too: test/an image 0005\.jpg",
    ),
    "labels from 1": (
        lambda root: edit(root, "train", lambda lines: [shifted(line, 1) for line in lines]),
        r"labels 1 to 3 for 3 classes: they count from 1, not from 0; subtract 1",
    ),
    "a label out of range": (
        lambda root: edit(root, "train", lambda lines: [*lines[:-1], shifted(lines[-1], 5)]),
        r"label 6 \(entry 8\) is out of range; 3 classes are labelled 0 to 2",
    ),
    "a negative label": (lambda root: edit(root, "train", lambda lines: [shifted(lines[0], -1), *lines[1:]]), r"label -1 \(entry 1\)"),
    "swapped lists": (put_under_each_others_name, r"all its images lie in test/: train and test look swapped"),
    "swapped lists of one folder": (
        swap_in_one_folder,
        r"6 images, the official train split has 8\n  train and test look swapped",
    ),
    "a path out of the folder": (
        lambda root: edit(root, "train", lambda lines: ["train/../../secret.jpg 0", *lines[1:]]),
        r"line 1: 'train/../../secret.jpg' leads out of the set's folder",
    ),
    "an absolute path": (lambda root: edit(root, "train", lambda lines: ["/etc/passwd 0", *lines]), r"'/etc/passwd' leads out"),
    "an empty list": (lambda root: (root / "train_meta.list").write_text(" \n\n"), r"train_meta.list: empty: it lists no image"),
    "bytes that are no UTF-8": (
        lambda root: (root / "train_meta.list").write_bytes(b"train/a.jpg 0\ntrain/\xe9.jpg 0\n"),
        r"train_meta.list: line 2: not UTF-8",
    ),
    "no list of that split": (lambda root: (root / "train_meta.list").unlink(), r"train_meta.list: missing"),
    "a line without a label": (
        lambda root: edit(root, "train", lambda lines: ["train/a.jpg", *lines]),
        r"line 1: 'train/a.jpg' is not `relative/path label`",
    ),
    "a label in words": (lambda root: edit(root, "train", lambda lines: [*lines, "train/a.jpg cat"]), r"line 9: .* is not `relative/path"),
    "half of a validation list": (
        lambda root: put_lines(root / "val_meta.list", ["train/an image 0001.jpg 1", "val/b.jpg 0"]),
        r"val_meta.list: 1 of its 2 images stand in .*train_meta.list too; all or none must",
    ),
    "another label in the validation list": (
        lambda root: put_lines(root / "val_meta.list", ["train/an image 0001.jpg 2"]),
        r"'train/an image 0001.jpg' has another label than in",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_list_is_refused(tmp_path: Path, fault: str) -> None:
    """Each fault made in a sound pair of lists: DataError with its reason, and the sound pair opens."""
    meta_lists(tmp_path, PET)
    assert len(open_described(PET, tmp_path, "train")) == 8
    change, said = FAULTS[fault]
    change(tmp_path)
    with pytest.raises(DataError, match=said):
        open_described(PET, tmp_path, "train")


def test_a_label_too_large_to_be_one(tmp_path: Path) -> None:
    """A number of 30 digits: refused as a label, not an overflow."""
    meta_lists(tmp_path, PET)
    edit(tmp_path, "test", lambda lines: [f"{lines[0]}{'9' * 30}", *lines[1:]])
    with pytest.raises(DataError, match=r"line 1: .* is not `relative/path label`"):
        open_described(PET, tmp_path, "test")


def test_subsets_are_accepted_when_asked_for(tmp_path: Path) -> None:
    """any_counts: other numbers of images are accepted; other classes, duplicates and overlaps are not."""
    meta_lists(tmp_path, PET)
    edit(tmp_path, "train", lambda lines: lines[1:])
    assert len(open_described(PET, tmp_path, "train", any_counts=True)) == 7
    edit(tmp_path, "train", lambda lines: [*lines, lines[0]])
    with pytest.raises(DataError, match="is listed twice"):
        open_described(PET, tmp_path, "train", any_counts=True)


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    """A listed file that is no image: the split opens, and loading that sample fails with a name that leads to the file."""
    meta_lists(tmp_path, PET)
    (tmp_path / "train" / "an image 0002.jpg").write_bytes(image(1)[:40])
    opened = open_described(PET, tmp_path, "train")
    with pytest.raises(UnreadableImageError):
        opened.load(2)
    assert Path(opened.name(2)) == tmp_path / "train" / "an image 0002.jpg"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_validation_list(tmp_path: Path, split: SplitName) -> None:
    """val_meta.list of images that train_meta.list has too, and of others: the same training split, the same validation part."""
    flower = TINY["flower"]
    meta_lists(tmp_path / "a", flower, validation=3)
    meta_lists(tmp_path / "b", flower, validation=3)
    edit(tmp_path / "b", "train", lambda lines: lines[:-3])
    opened = [open_described(flower, tmp_path / place, split) for place in "ab"]
    assert opened[0].data_hash == opened[1].data_hash
    for part in opened:
        assert (None if part.validation_rows is None else part.validation_rows.tolist()) == ([3, 4, 5] if split == "train" else None)
    wrong = dataclasses.replace(flower, validation=2)
    if split == "train":
        with pytest.raises(DataError, match="3 images of the validation part, the official one has 2"):
            open_described(wrong, tmp_path / "a", split)


def test_labels_are_read_after_the_last_white_space(tmp_path: Path) -> None:
    """Tabs, several blanks, blanks inside a name, a byte order mark and carriage returns at the ends of lines."""
    files = ("a\tb.jpg", "c  d.jpg", "e 1 2.jpg")
    put_images(tmp_path, files)
    put_images(tmp_path, ("t0.jpg", "t1.jpg"))
    (tmp_path / "train_meta.list").write_bytes(b"\xef\xbb\xbfa\tb.jpg\t0\r\nc  d.jpg   1\r\n\r\ne 1 2.jpg 0\r\n")
    put_lines(tmp_path / "test_meta.list", ["t0.jpg 0", "t1.jpg 1"])
    described = DownstreamSet(name="own", title="own", source="own", recipe="make lists")
    opened = open_described(described, tmp_path, "train")
    assert [Path(opened.name(sample)).name for sample in range(3)] == list(files)
    assert opened.labels.tolist() == [0, 1, 0]
    assert opened.class_names == ["0", "1"]


@pytest.mark.parametrize("path", ["..", ".", "", "a/..", "../a", "a/../../b", "/a", "a\0b", "a/../.."])
def test_paths_that_lead_out(path: str) -> None:
    """No path that is not below the folder gets through."""
    with pytest.raises(DataError, match=r"list: line 7: .* leads out of the set's folder"):
        inside(path, "list: line 7")


@pytest.mark.parametrize(
    ("path", "normal"), [("a/b.jpg", "a/b.jpg"), ("./a", "a"), ("a//b", "a/b"), ("a/../b", "b"), ("..a", "..a"), ("a.", "a.")]
)
def test_paths_that_stay_inside(path: str, normal: str) -> None:
    """Paths in their normal form, names with dots left alone."""
    assert inside(path, "") == normal


def test_a_root_with_nothing_in_it(tmp_path: Path) -> None:
    """Every set on an empty folder: the user's mistake, with what was looked for and the recipe."""
    for described in TINY.values():
        with pytest.raises(UserError, match=r"looked for .*train_meta\.list.*class folders") as caught:
            open_described(described, tmp_path, "test")
        assert str(caught.value).endswith(described.recipe)
        assert isinstance(caught.value, BambooError)
