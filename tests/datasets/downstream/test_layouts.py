"""Every set in every layout that it is read from, on fixtures of official file names and formats."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from bamboo.cli.main import main
from bamboo.datasets.downstream.facts import SETS, SplitName
from bamboo.datasets.downstream.layouts import layouts
from bamboo.datasets.downstream.sets import OpenedSplit, open_described
from bamboo.datasets.images import decode_rgb
from tests.datasets.downstream import official
from tests.datasets.downstream.official import TINY, Rows, Written

SPLITS: tuple[SplitName, ...] = ("train", "test")


def rows_of(opened: OpenedSplit, root: Path) -> Rows:
    """Returns path below the root and class id of each sample."""
    names = [Path(opened.name(sample)).relative_to(root).as_posix() for sample in range(len(opened))]
    return list(zip(names, opened.labels.tolist(), strict=True))


def require_as_written(name: str, root: Path, written: Written, *, below: str = "") -> None:
    """Asserts rows, classes, validation part and pixels of both splits; rows are named from `root / below`."""
    for split in SPLITS:
        opened = open_described(TINY[name], root, split)
        expected = written.train if split == "train" else written.test
        assert rows_of(opened, root) == [(below + file, label) for file, label in expected]
        assert len(opened.class_names) == TINY[name].num_classes
        assert torch.equal(opened.load(len(opened) - 1), decode_rgb((root / below / expected[-1][0]).read_bytes()))
        again = pickle.loads(pickle.dumps(opened))  # as a spawned loader worker gets it
        assert (again.data_hash, again.name(0), again.layout) == (opened.data_hash, opened.name(0), opened.layout)
        if split == "train" and written.validation is not None:
            assert opened.validation_rows is not None
            assert {expected[row][0] for row in opened.validation_rows.tolist()} == written.validation
        else:
            assert opened.validation_rows is None


ARCHIVES: dict[str, tuple[str, Callable[[Path], Written]]] = {
    "food-101/meta/*.json": ("food", official.food),
    "food-101/meta/*.txt": ("food", partial(official.food, text=True)),
    "oxford-iiit-pet": ("pet", official.pet),
    "pets in the root": ("pet", partial(official.pet, inner="")),
    "flowers-102": ("flower", official.flower),
    "flowers in the root": ("flower", partial(official.flower, inner="")),
    "SUN397, partition beside it": ("sun", official.sun),
    "SUN397, partition in it": ("sun", partial(official.sun, partitions="SUN397")),
    "SUN397, Partitions/": ("sun", partial(official.sun, partitions="Partitions")),
    "SUN397, Partitions/ in it": ("sun", partial(official.sun, partitions="SUN397/Partitions", named=False)),
    "SUN397's own folder": ("sun", partial(official.sun, inner="")),
    "stanford_cars": ("car", official.car),
    "stanford_cars, doubled folders": ("car", partial(official.car, doubled=True, test_annotations="devkit/")),
    "cars in the root": ("car", partial(official.car, inner="")),
    "car_ims": ("car", official.car_in_one_folder),
    "dtd/dtd": ("dtd", official.dtd),
    "dtd": ("dtd", partial(official.dtd, inner="dtd/")),
    "dtd in the root": ("dtd", partial(official.dtd, inner="")),
    "fgvc-aircraft-2013b": ("aircraft", official.aircraft),
    "fgvc-aircraft, no variants.txt": ("aircraft", partial(official.aircraft, inner="fgvc-aircraft/data/", named=False)),
    "aircraft's data folder": ("aircraft", partial(official.aircraft, inner="")),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_the_archives_own_layouts(tmp_path: Path, case: str) -> None:
    """Files, labels, order and validation part against what was written, for each layout of torchvision and of the archives."""
    name, write = ARCHIVES[case]
    require_as_written(name, tmp_path, write(tmp_path))


@pytest.mark.parametrize("name", ["food", "pet", "flower", "car", "dtd", "aircraft", "sun"])
def test_the_inner_folder_will_do(tmp_path: Path, name: str) -> None:
    """The folder that torchvision makes in its root, given as data root: the same rows and the same hash."""
    inner = {"food": "food-101", "pet": "oxford-iiit-pet", "flower": "flowers-102", "car": "stanford_cars", "sun": "SUN397"}
    inner |= {"dtd": "dtd/dtd", "aircraft": "fgvc-aircraft-2013b"}
    getattr(official, name)(tmp_path)
    for split in SPLITS:
        outside, inside = (open_described(TINY[name], root, split) for root in (tmp_path, tmp_path / inner[name]))
        assert rows_of(outside, tmp_path) == rows_of(inside, tmp_path)
        assert outside.data_hash == inside.data_hash


@pytest.mark.parametrize("name", sorted(TINY))
@pytest.mark.parametrize("alias", [False, True])
def test_lists(tmp_path: Path, name: str, alias: bool) -> None:
    """`*_meta.list` in the root, and in the last of the set's folder names: rows as written, paths with blanks among them."""
    below = f"{[name, *TINY[name].folders][-1]}/" if alias else ""
    written = official.meta_lists(tmp_path / below, TINY[name])
    require_as_written(name, tmp_path, written, below=below)


@pytest.mark.parametrize("name", sorted(TINY))
def test_class_folders(tmp_path: Path, name: str) -> None:
    """train/CLASS and test/CLASS (ImageNet: val/CLASS), with val/ too where the set has an official validation part."""
    test_name = "val" if name == "imagenet" else "test"
    require_as_written(
        name, tmp_path, official.class_folders(tmp_path, TINY[name], test_name=test_name, validation=TINY[name].validation or 0)
    )


@pytest.mark.parametrize("name", sorted(TINY))
def test_shard_folders(tmp_path: Path, name: str) -> None:
    """What `bamboo shards pack` made of class folders: as many images of each class, and the same class names."""
    test_name = "val" if name == "imagenet" else "test"
    official.class_folders(tmp_path / "images", TINY[name], test_name=test_name)
    for split in ("train", test_name):
        out = tmp_path / name / split
        assert main(["shards", "pack", str(tmp_path / "images" / split), "--out", str(out), "--processes", "1"]) == 0
    for split in SPLITS:
        packed, unpacked = (open_described(TINY[name], root, split) for root in (tmp_path, tmp_path / "images"))
        assert packed.layout.startswith("shard folders")
        assert sorted(packed.labels.tolist()) == unpacked.labels.tolist()
        assert packed.class_names == unpacked.class_names
        assert pickle.loads(pickle.dumps(packed)).data_hash == packed.data_hash


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_both_forms(tmp_path: Path, name: str) -> None:
    """Pickles and the binary version of the same images: equal pixels, labels, names and hash; a cut binary file is an error."""
    folders = [official.cifar(tmp_path / "a", name), official.cifar(tmp_path / "b", name, binary=True)]
    for split in SPLITS:
        pickled, binary = (open_described(TINY[name], folder.parent, split) for folder in folders)
        assert open_described(TINY[name], folders[1], split).data_hash == binary.data_hash == pickled.data_hash
        assert torch.equal(pickled.load(7), binary.load(7))
        assert pickled.class_names == binary.class_names
        assert pickle.loads(pickle.dumps(binary)).data_hash == binary.data_hash


def test_caltech_and_seeded_sun(tmp_path: Path) -> None:
    """Drawn splits against the archive: all (Caltech-101) or the stated number of images, in one split only; the stray file is none."""
    everything = official.caltech(tmp_path)
    drawn = [rows_of(open_described(TINY["caltech"], tmp_path, split), tmp_path) for split in SPLITS]
    assert sorted(drawn[0] + drawn[1]) == sorted(everything)
    assert [label for _, label in drawn[0]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    train = open_described(TINY["caltech"], tmp_path / "caltech101" / "101_ObjectCategories", "train")
    assert rows_of(train, tmp_path) == drawn[0]
    assert train.class_names == ["BACKGROUND_Google", "Faces", "accordion"]
    assert "background class included" in train.notes[0]
    official.sun(tmp_path)
    seeded = [rows_of(open_described(TINY["sun-seeded"], tmp_path, split), tmp_path) for split in SPLITS]
    assert [[label for _, label in rows] for rows in seeded] == [[0, 0, 1, 1, 2, 2]] * 2
    assert not set(seeded[0]) & set(seeded[1])
    assert "not an official partition" in open_described(TINY["sun-seeded"], tmp_path, "train").notes[0]


def test_every_set_is_covered() -> None:
    """The sets of the tests against `SETS`, and the layouts written above against those that are declared."""
    assert set(TINY) | {"folder", "shards"} == set(SETS)
    own = {name for name in TINY if len(layouts(TINY[name])) > 4}
    assert own == {name for name, _ in ARCHIVES.values()} | {"cifar10", "cifar100", "caltech", "sun-seeded"}
    assert set(SETS) - own == {"imagenet", "folder", "shards"}
