"""The layouts in which users have the sets on disk, for each set in the order in which they are looked for.

Every set is also read from the benchmark's lists, from shard folders, from LMDBs and from class folders, directly below the data root
or in a folder of the set's name there. `folder:NAME` (class folders or LMDBs) and `shards:NAME` are read from the folder NAME alone, so
that a mistyped name finds nothing.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ..stores import ImageStore
from .annotated import read_aircraft, read_dtd, read_food, read_pets, read_sun
from .cifar import read_binary, read_pickles
from .drawn import read_caltech, read_sun_seeded
from .facts import DownstreamSet, SplitName
from .listing import Listing
from .lmdb_images import LMDB_MARKS, read_lmdb
from .matlab import read_cars, read_cars_in_one_folder, read_flowers
from .meta_lists import MARKS as LIST_MARKS
from .meta_lists import read_meta_list
from .split_folders import CLASS_FOLDER_MARKS, SHARD_MARKS, read_class_folders, read_shards

Reader = Callable[[DownstreamSet, Path, SplitName], Listing | ImageStore]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One way a set lies on disk."""

    name: str
    folders: tuple[str, ...] = ("",)
    """Where below the data root it is looked for, in this order; "" is the root itself."""

    marks: tuple[str, ...]
    """Files, and folders with a slash at the end, any of which tells that the layout is there."""

    read: Reader
    by_list: bool = False
    """Whether files are named by lists: then each must exist, once, and in one split only."""

    root_name: str | None = None
    """The root itself is looked in too, after the folders, where it bears this name."""

    def find(self, root: Path) -> Path | None:
        """Returns the layout's folder below `root`, or None."""
        is_named = self.root_name is not None and self.root_name in (root.name, root.resolve().name)
        places = [root / folder for folder in (*self.folders, *([""] if is_named else []))]
        return next((place for place in places if any(_is_there(place, mark) for mark in self.marks)), None)


def layouts(described: DownstreamSet) -> tuple[Layout, ...]:
    """Returns the layouts of a set, in the order in which they are looked for."""
    kind = described.own_kind
    if kind is None:
        return (*_OWN.get(described.name, ()), *_shared(described))
    named = [dataclasses.replace(layout, folders=(own,), root_name=own) for own in described.folders for layout in _OWN[kind]]
    return tuple(named) or _OWN[kind]


def _is_there(folder: Path, mark: str) -> bool:
    return (folder / mark).is_dir() if mark.endswith("/") else (folder / mark).is_file()


_CLASS_FOLDERS = "class folders (train/CLASS/*.jpg and test/CLASS/*.jpg)"
_SHARD_FOLDERS = "shard folders (train/ and test/)"
_LMDBS = "LMDBs (train.lmdb and test.lmdb)"


def _shared(described: DownstreamSet) -> tuple[Layout, ...]:
    folders = ("", described.name, *described.folders)
    return (
        Layout(name="lists (train_meta.list and test_meta.list)", folders=folders, marks=LIST_MARKS, read=read_meta_list, by_list=True),
        Layout(name=_SHARD_FOLDERS, folders=folders, marks=SHARD_MARKS, read=read_shards),
        Layout(name=_LMDBS, folders=folders, marks=LMDB_MARKS, read=read_lmdb),
        Layout(name=_CLASS_FOLDERS, folders=folders, marks=CLASS_FOLDER_MARKS, read=read_class_folders),
    )


_SUN_FOLDERS = ("SUN397", "sun397", "sun", "")
_SUN_MARKS = ("ClassName.txt", "a/")

_OWN: dict[str, tuple[Layout, ...]] = {
    "cifar10": (
        Layout(
            name="torchvision's cifar-10-batches-py",
            folders=("cifar-10-batches-py", ""),
            marks=("batches.meta", "test_batch"),
            read=read_pickles,
        ),
        Layout(
            name="the archive's cifar-10-batches-bin",
            folders=("cifar-10-batches-bin", ""),
            marks=("batches.meta.txt", "test_batch.bin"),
            read=read_binary,
        ),
    ),
    "cifar100": (
        Layout(name="torchvision's cifar-100-python", folders=("cifar-100-python", ""), marks=("meta", "test"), read=read_pickles),
        Layout(
            name="the archive's cifar-100-binary",
            folders=("cifar-100-binary", ""),
            marks=("fine_label_names.txt", "test.bin"),
            read=read_binary,
        ),
    ),
    "food": (
        Layout(
            name="torchvision's food-101",
            folders=("food-101", "food", ""),
            marks=tuple(f"meta/{name}" for name in ("train.json", "test.json", "train.txt", "test.txt")),
            read=read_food,
            by_list=True,
        ),
    ),
    "pet": (
        Layout(
            name="torchvision's oxford-iiit-pet",
            folders=("oxford-iiit-pet", "pet", "pets", ""),
            marks=("annotations/trainval.txt", "annotations/test.txt"),
            read=read_pets,
            by_list=True,
        ),
    ),
    "flower": (
        Layout(
            name="torchvision's flowers-102",
            folders=("flowers-102", "flowers", "flower", ""),
            marks=("setid.mat", "imagelabels.mat"),
            read=read_flowers,
            by_list=True,
        ),
    ),
    "sun": (
        Layout(name="the archive's SUN397", folders=_SUN_FOLDERS, marks=(*_SUN_MARKS, "Training_01.txt"), read=read_sun, by_list=True),
    ),
    "sun-seeded": (Layout(name="the archive's SUN397", folders=_SUN_FOLDERS, marks=_SUN_MARKS, read=read_sun_seeded),),
    "car": (
        Layout(
            name="torchvision's stanford_cars",
            folders=("stanford_cars", "stanfordcar", "car", "cars", ""),
            marks=("devkit/cars_train_annos.mat", "devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"),
            read=read_cars,
            by_list=True,
        ),
        Layout(
            name="the archive's car_ims with cars_annos.mat",
            folders=("stanford_cars", "stanfordcar", "car", "cars", ""),
            marks=("cars_annos.mat",),
            read=read_cars_in_one_folder,
            by_list=True,
        ),
    ),
    "dtd": (
        Layout(
            name="torchvision's dtd/dtd",
            folders=("dtd/dtd", "dtd", ""),
            marks=("labels/train1.txt", "labels/test1.txt"),
            read=read_dtd,
            by_list=True,
        ),
    ),
    "caltech": (
        Layout(
            name="torchvision's caltech101/101_ObjectCategories",
            folders=(*(f"{name}101_ObjectCategories" for name in ("caltech101/", "caltech-101/", "caltech/", "")), ""),
            marks=("BACKGROUND_Google/",),
            read=read_caltech,
        ),
    ),
    "aircraft": (
        Layout(
            name="torchvision's fgvc-aircraft-2013b",
            folders=(*(f"{name}data" for name in ("fgvc-aircraft-2013b/", "fgvc-aircraft/", "aircraft/", "")), ""),
            marks=("images_variant_train.txt", "images_variant_test.txt"),
            read=read_aircraft,
            by_list=True,
        ),
    ),
    "folder": (
        Layout(name=_LMDBS, marks=LMDB_MARKS, read=read_lmdb),
        Layout(name=_CLASS_FOLDERS, marks=CLASS_FOLDER_MARKS, read=read_class_folders),
    ),
    "shards": (Layout(name=_SHARD_FOLDERS, marks=("train/", "test/", "val/"), read=read_shards),),
}
