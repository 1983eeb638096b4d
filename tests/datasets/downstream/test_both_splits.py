"""Faults that show only when both splits are opened, or the files themselves are looked at."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.errors import BambooError, DataError, UserError
from bamboo.cli.main import main
from bamboo.datasets.downstream.sets import describe, open_both, open_both_described, open_described, open_set
from bamboo.linear_probe.matrix.tasks import tasks_of
from bamboo.linear_probe.probe import open_splits
from tests.datasets.downstream import official
from tests.datasets.downstream.official import TINY


def test_both_splits_of_every_set(tmp_path: Path) -> None:
    """Sound fixtures of every set, as lists and as class folders: the two splits, as they are opened one by one."""
    for name, described in TINY.items():
        official.meta_lists(tmp_path / name / "lists", described, validation=described.validation or 0)
        test_name = "val" if name == "imagenet" else "test"
        official.class_folders(tmp_path / name / "folders", described, test_name=test_name, validation=described.validation or 0)
        for root in (tmp_path / name / "lists", tmp_path / name / "folders"):
            train, test = open_both_described(described, root)
            one = [open_described(described, root, "train"), open_described(described, root, "test")]
            assert [train.data_hash, test.data_hash] == [split.data_hash for split in one]


def copy_over(root: Path, source: str, target: str) -> None:
    shutil.copy(root / source, root / target)


COPIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a test image": (lambda root: copy_over(root, "train/cat/0003.JPEG", "test/cat/0003.JPEG"), "the test split .*test/cat/0003.JPEG = "),
    "the whole test split": (lambda root: copy_tree(root, "train", "test"), r"in the test split too, byte for byte \(first 5 found\)"),
    "a validation image": (lambda root: copy_over(root, "train/cat/0003.JPEG", "val/cat/0003.JPEG"), "the validation part too"),
    "a test image of val": (lambda root: copy_over(root, "val/cat/0013.JPEG", "test/cat/0013.JPEG"), "the test split .*test/cat/0013"),
}


def copy_tree(root: Path, source: str, target: str) -> None:
    shutil.rmtree(root / target)
    shutil.copytree(root / source, root / target)


@pytest.mark.parametrize("case", COPIES)
def test_copies_in_class_folders(tmp_path: Path, case: str) -> None:
    """A training image under the same class and name in another part: refused, whatever the counts; another image there: accepted."""
    official.class_folders(tmp_path, TINY["cifar10"], validation=20)
    (tmp_path / "test/cat/0013.JPEG").rename(tmp_path / "test/cat/0023.JPEG")  # a name that training images have
    open_both("folder", tmp_path)
    change, said = COPIES[case]
    change(tmp_path)
    for any_counts in (False, True):
        with pytest.raises(DataError, match=said):
            open_both("folder", tmp_path, any_counts=any_counts)


def test_files_of_one_size_are_compared_byte_by_byte(tmp_path: Path) -> None:
    """Same class, name and size, other bytes: no copy; nor the same bytes under another name."""
    official.class_folders(tmp_path, TINY["food"])
    data = (tmp_path / "train/n00000000/0003.JPEG").read_bytes()
    (tmp_path / "test/n00000000/0003.JPEG").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "test/n00000001/other.JPEG").write_bytes(data)
    open_both("folder", tmp_path)


def test_copies_in_lists(tmp_path: Path) -> None:
    """Lists whose paths differ, with the same images behind them."""
    written = official.meta_lists(tmp_path, TINY["pet"])
    shutil.copy(tmp_path / written.train[0][0], tmp_path / written.test[0][0])
    with pytest.raises(DataError, match=r"are in the test split too, byte for byte \(first 1 found\): .*an image 0000\.jpg"):
        open_both_described(TINY["pet"], tmp_path)


@pytest.mark.parametrize("binary", [False, True])
def test_repeated_batches_of_cifar(tmp_path: Path, binary: bool) -> None:
    """data_batch_2 a copy of data_batch_1, and a test split that training batches hold: refused with and without official counts."""
    end = ".bin" if binary else ""
    official.cifar(tmp_path / "a", "cifar10", binary=binary)
    folder = official.cifar(tmp_path / "b", "cifar10", binary=binary)
    open_both_described(TINY["cifar10"], tmp_path / "b")
    shutil.copy(folder / f"data_batch_1{end}", folder / f"test_batch{end}")
    with pytest.raises(DataError, match=r"all other test images are among the training images"):
        open_both_described(TINY["cifar10"], tmp_path / "b", any_counts=True)
    folder = tmp_path / "a" / folder.name
    shutil.copy(folder / f"data_batch_1{end}", folder / f"data_batch_4{end}")
    for any_counts in (False, True):
        with pytest.raises(DataError, match=r"data_batch_4 holds the images of data_batch_1; extract the archive again"):
            open_described(TINY["cifar10"], tmp_path / "a", "train", any_counts=any_counts)


def test_a_cifar100_tested_on_its_training_images(tmp_path: Path) -> None:
    """`test` with the first rows of `train`, which is one file: refused."""
    folder = official.cifar(tmp_path, "cifar100", binary=True)
    open_both_described(TINY["cifar100"], tmp_path)
    rows = (folder / "train.bin").read_bytes()
    (folder / "test.bin").write_bytes(rows[: 10 * 3074])
    with pytest.raises(DataError, match=r"cifar-100-binary:test:0: this and all other test images are among the training"):
        open_both_described(TINY["cifar100"], tmp_path)


def pack(images: Path, out: Path) -> None:
    assert main(["shards", "pack", str(images), "--out", str(out), "--processes", "1"]) == 0


def test_the_same_shards_twice(tmp_path: Path) -> None:
    """`test` a copy of the shard folder `train`: refused."""
    official.class_folders(tmp_path / "images", TINY["food"])
    pack(tmp_path / "images/train", tmp_path / "train")
    pack(tmp_path / "images/test", tmp_path / "test")
    open_both("shards", tmp_path)
    copy_tree(tmp_path, "train", "test")
    with pytest.raises(DataError, match="this and all other test images are the training images"):
        open_both("shards", tmp_path)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_class_that_one_split_lacks(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A class without test images: `sets check` ends as the probe does, in refusal of shards, whose ids differ then, and not of folders."""
    official.class_folders(tmp_path / "folder", TINY["food"])
    shutil.rmtree(tmp_path / "folder/test/n00000001")
    for split in ("train", "test"):
        pack(tmp_path / "folder" / split, tmp_path / "shards" / split)
    capsys.readouterr()
    if kind == "folder":
        assert main(["sets", "check", kind, str(tmp_path / kind)]) == 0
        assert len(open_splits(kind, tmp_path / kind, any_counts=False).test) == 4
        return
    assert main(["sets", "check", kind, str(tmp_path / kind)]) == 2
    said = capsys.readouterr().err
    assert "train and test have different classes (['n00000001'])" in said
    with pytest.raises(UserError) as caught:
        open_splits(kind, tmp_path / kind, any_counts=False)
    assert str(caught.value) in said


def test_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`sets check` of class folders with one class: what the probe says."""
    official.put_images(tmp_path, ["train/cat/0.jpg", "test/cat/1.jpg"])
    assert main(["sets", "check", "folder", str(tmp_path)]) == 2
    assert "1 class; a probe needs at least two" in capsys.readouterr().err


def test_labels_of_pets_under_other_breeds(tmp_path: Path) -> None:
    """A test list that numbers the breeds in another way: refused, though each list alone is sound."""
    official.pet(tmp_path)
    path = tmp_path / "oxford-iiit-pet/annotations/test.txt"
    path.write_text(path.read_text().replace(" 1 1 1", " x").replace(" 2 1 1", " 1 1 1").replace(" x", " 2 1 1"))
    assert len(open_described(TINY["pet"], tmp_path, "test")) == 6
    with pytest.raises(UserError, match=r"different classes \(in another order\)"):
        open_both_described(TINY["pet"], tmp_path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("change", [empty, to_folder, to_nowhere])
def test_files_that_hold_nothing(tmp_path: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]) -> None:
    """A file of no bytes, a folder in its place, a dead link, in a list and in class folders: refused without decoding, by name."""
    official.flower(tmp_path / "a")
    change(tmp_path / "a/flowers-102/jpg/image_00002.jpg")
    with pytest.raises(DataError, match=r"1 of 6 images are empty, or no files: .*image_00002\.jpg; extract the archive again"):
        open_described(TINY["flower"], tmp_path / "a", "train")
    assert len(open_described(TINY["flower"], tmp_path / "a", "test")) == 10
    if change is to_folder:
        return  # in class folders, a folder may hold images
    official.class_folders(tmp_path / "b", TINY["food"])
    change(tmp_path / "b/train/n00000001/0001.JPEG")
    assert main(["sets", "check", "folder", str(tmp_path / "b")]) == 1
    assert "1 of 9 images are empty, or no files" in capsys.readouterr().err


def test_a_set_of_ones_own_lies_under_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`folder:flora` and `shards:wds` in DATA_ROOT/NAME, and with that folder as root; the root under another name: refused."""
    official.class_folders(tmp_path / "flora", TINY["food"])
    for split in ("train", "test"):
        pack(tmp_path / "flora" / split, tmp_path / "wds" / split)
    for name in ("folder:flora", "shards:wds"):
        kind, _, own = name.partition(":")
        for root in (tmp_path, tmp_path / own):
            assert main(["sets", "check", name, str(root)]) == 0
            assert open_both(name, root)[0].place == tmp_path / own
        for root in (tmp_path, tmp_path / own):
            assert main(["sets", "check", f"{kind}:flors", str(root)]) == 2
            assert f"no {kind}:flors in it" in capsys.readouterr().err
        with pytest.raises(UserError, match=f"no {kind} in it"):
            open_set(kind, tmp_path, "train")
        assert len(open_set(kind, tmp_path / own, "train")) == 9


def test_the_root_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder as `.`, through a link of that name, and a link of another name to it: it is found."""
    official.class_folders(tmp_path / "flora", TINY["food"])
    official.class_folders(tmp_path / "stored", TINY["food"])
    (tmp_path / "plants").symlink_to(tmp_path / "stored")
    monkeypatch.chdir(tmp_path / "flora")
    for name, root in (("flora", Path()), ("plants", tmp_path / "plants"), ("stored", tmp_path / "plants")):
        assert open_both(f"folder:{name}", root)[0].place == root


def test_the_matrix_finds_sets_of_ones_own(tmp_path: Path) -> None:
    """The roots that `tasks_of` gives: DATA_ROOT/NAME where it is there, else DATA_ROOT, in which a mistyped name finds nothing."""
    official.class_folders(tmp_path, TINY["food"])
    official.class_folders(tmp_path / "flora", TINY["food"])
    flora, mistyped = tasks_of(["m"], ["folder:flora", "folder:x"], ["standard"], ["100p"], tmp_path, {})
    assert open_both(flora.dataset, flora.root)[0].place == tmp_path / "flora"
    with pytest.raises(UserError, match=r"no folder:x in it .*it lies in DIR/x, and data_root is DIR or DIR/x"):
        open_both(mistyped.dataset, mistyped.root)


@pytest.mark.parametrize("own", ["..", ".", "a/b", "../x", "/etc"])
def test_names_that_are_no_folder_names(own: str) -> None:
    """`folder:../x` and the like would lead out of the data root: refused by name."""
    with pytest.raises(BambooError, match="is not the name of a folder"):
        describe(f"folder:{own}")
