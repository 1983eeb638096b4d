"""Downstream sets: labelled images with an official train/test split, in the layouts that users already have on disk.

A set is an entry of `SETS`: its official counts, its metric by convention and the layouts it is found in. `folder` and `shards` take any
set of one's own.
"""

import dataclasses
import functools
import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..cli.config import nearest
from ..cli.errors import DataError, UserError
from .atomic import sha256_json
from .images import decode_rgb
from .manifest import FILE_NAME as MANIFEST_NAME
from .shards import Shards
from .stores import ImageStore

SplitName = Literal["train", "test"]

_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
_HASHED_BYTES = 256 << 20
_TEST_FOLDERS = ("test", "val")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamSet:
    """What is known of a set before it is opened; None stands for "whatever is there"."""

    name: str
    metric: Literal["top1", "mean_per_class"] = "top1"
    class_names: tuple[str, ...] | None = None
    counts: Mapping[str, int] | None = None
    """Images per split."""

    class_counts: Mapping[str, int] | None = None
    """Images per class and split, where all classes have the same."""

    layouts: tuple["Layout", ...]
    """Tried in this order; the first whose folder is there opens it."""

    recipe: str
    """What to do when no layout is found."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way a set lies on disk: `find(root, split)` is the path it would be read from, or None when it is not there."""

    name: str
    find: Callable[[Path, SplitName], Path | None]
    open: Callable[[Path, SplitName], ImageStore]


def open_set(name: str, root: Path, split: SplitName, *, any_counts: bool = False) -> ImageStore:
    """Returns one split of the set `name` below `root`.

    Args:
        name: a key of `SETS`.
        any_counts: accept other numbers of images than the official ones (a subset of one's own).

    Raises:
        UserError: for an unknown name, a root that does not exist, or one that holds none of the set's layouts.
        DataError: for damaged files, an empty class, or counts that are not the official ones.
    """
    return open_described(describe(name), root, split, any_counts=any_counts)


def describe(name: str) -> DownstreamSet:
    """Returns the entry of `SETS`; an unknown name is a UserError that names the nearest."""
    if name not in SETS:
        raise UserError(f"dataset={name}: no such set{nearest(name, list(SETS))}")
    return SETS[name]


def open_described(described: DownstreamSet, root: Path, split: SplitName, *, any_counts: bool = False) -> ImageStore:
    """Returns one split of a described set, as `open_set`."""
    if not root.is_dir():
        raise UserError(f"data_root={root}: no such folder; {described.recipe}")
    for layout in described.layouts:
        path = layout.find(root, split)
        if path is not None:
            store = layout.open(path, split)
            _check(described, store, split, path, any_counts=any_counts)
            return store
    names = " or ".join(layout.name for layout in described.layouts)
    raise UserError(f"data_root={root}: no {split} images of {described.name} in it (looked for {names}); {described.recipe}")


def _check(described: DownstreamSet, store: ImageStore, split: SplitName, path: Path, *, any_counts: bool) -> None:
    """Raises DataError listing all that differs from the official set."""
    faults = []
    if described.class_names is not None and tuple(store.class_names) != described.class_names:
        missing, other = set(described.class_names) - set(store.class_names), set(store.class_names) - set(described.class_names)
        faults.append(f"its classes are not the official ones (missing: {sorted(missing)}; not known: {sorted(other)})")
    if described.counts is not None and not any_counts and len(store) != described.counts[split]:
        faults.append(f"{len(store):,} images, the official {split} split has {described.counts[split]:,}")
    if described.class_counts is not None and not any_counts:
        wanted, found = described.class_counts[split], np.bincount(store.labels, minlength=len(store.class_names))
        wrong = [f"{name} has {count:,}" for name, count in zip(store.class_names, found, strict=True) if count != wanted]
        if wrong:
            faults.append(f"{wanted:,} images per class are official, but {', '.join(wrong)}")
    if faults:
        advice = "" if any_counts else " (any_counts=true accepts a subset)"
        raise DataError("\n  ".join([f"{path}: not {described.name}'s {split} split{advice}:", *faults]))


class FolderImages:
    """Images in class folders, `folder/CLASS/**/*.jpg|png|…`: classes and files in the order of their names.

    `data_hash` covers names, labels and classes, and the bytes of the images where they are at most 256 MiB together; of larger sets it
    covers sizes instead of bytes, so an edit that keeps every name and size goes unseen.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...] | None = None) -> None:
        self._folder = folder
        found = _class_folders(folder)
        self._class_names = tuple(found) if class_names is None else class_names
        unknown = sorted(set(found) - set(self._class_names))
        if unknown:
            raise DataError(f"{folder}: classes {unknown} are not among those of the training set")
        self._files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self._class_names):
            files = found.get(name, [])
            self._files += files
            labels += [label] * len(files)
        self._labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        return len(self._files)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64[N] class ids."""
        return self._labels

    @property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return list(self._class_names)

    @functools.cached_property
    def data_hash(self) -> str:
        """Identity of the data, see the class."""
        sizes = [(self._folder / name).stat().st_size for name in self._files]
        whole = sum(sizes) <= _HASHED_BYTES
        contents = [hashlib.sha256((self._folder / name).read_bytes()).hexdigest() for name in self._files] if whole else []
        return sha256_json([self._files, contents if whole else sizes, self._labels.tolist(), self._class_names])

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W]; raises UnreadableImageError."""
        return decode_rgb((self._folder / self._files[sample]).read_bytes())

    def name(self, sample: int) -> str:
        """Returns the path of a sample."""
        return str(self._folder / self._files[sample])


def _class_folders(folder: Path) -> dict[str, list[str]]:
    """Returns class name → image paths relative to `folder`, both sorted; hidden files and other suffixes are passed over."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {
        entry.name: sorted(
            file.relative_to(folder).as_posix()
            for file in entry.rglob("*")
            if file.suffix.lower() in _IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        for entry in classes
    }
    empty = [name for name, files in found.items() if not files]
    if not found:
        raise DataError(f"{folder}: holds no class folders; images must lie in {folder.name}/CLASS/")
    if empty:
        raise DataError(f"{folder}: class folders without an image: {', '.join(empty)}; remove them or add their images")
    return found


class CifarBatches:
    """A split of CIFAR in torchvision's layout: Python pickles of uint8[n, 3072] rows, read without running any code of theirs."""

    def __init__(self, folder: Path, split: SplitName) -> None:
        self._folder, self._split = folder, split
        names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
        batches = [_read_cifar_batch(folder / name) for name in names]
        self._pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
        self._labels = np.concatenate([labels for _, labels in batches])
        self._class_names = _read_cifar_classes(folder / "batches.meta")
        if self._labels.min() < 0 or self._labels.max() >= len(self._class_names):
            raise DataError(f"{folder}: labels {self._labels.min()} to {self._labels.max()}, but {len(self._class_names)} classes")

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64[N] class ids."""
        return self._labels

    @property
    def class_names(self) -> list[str]:
        """Class names by class id."""
        return list(self._class_names)

    @functools.cached_property
    def data_hash(self) -> str:
        """Hex SHA-256 over pixels, labels and class names."""
        pixels = hashlib.sha256(self._pixels.tobytes()).hexdigest()
        return sha256_json([pixels, self._labels.tolist(), self._class_names])

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, 32, 32]."""
        return torch.from_numpy(self._pixels[sample].copy())

    def name(self, sample: int) -> str:
        """Returns `folder:split:number`."""
        return f"{self._folder.name}:{self._split}:{sample}"

    def __reduce__(self) -> tuple[type["CifarBatches"], tuple[Path, SplitName]]:
        return CifarBatches, (self._folder, self._split)  # a spawned worker reads the files again, rather than 150 MB through a pipe


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays, bytes, strings, numbers, lists and dicts, and refuses to look up anything else."""

    _ALLOWED = frozenset(
        (module, name)
        for core in ("numpy.core", "numpy._core")
        for module, name in ((f"{core}.multiarray", "_reconstruct"), (f"{core}.numeric", "_frombuffer"))
    ) | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data file has no use for; refused")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        tree = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except FileNotFoundError:
        raise DataError(f"{path}: missing; extract the archive again: tar xzf cifar-10-python.tar.gz") from None
    # a damaged pickle raises whatever its opcodes ran into (EOFError, IndexError, ValueError, TypeError, MemoryError, …)
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: holds a {type(tree).__name__}, not CIFAR's dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in tree.items()}


def _read_cifar_batch(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    tree = _unpickle(path)
    pixels, labels = tree.get(b"data"), tree.get(b"labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3 * 32 * 32:
        raise DataError(f"{path}: 'data' is not a uint8 array of rows of 3072")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not all(isinstance(label, int) for label in labels):
        raise DataError(f"{path}: 'labels' is not a list of {len(pixels)} numbers")
    return pixels, np.array(labels, np.int64)


def _read_cifar_classes(path: Path) -> tuple[str, ...]:
    names = _unpickle(path).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{path}: 'label_names' is not a list of names")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else name for name in names)


def _find_cifar(root: Path, split: SplitName) -> Path | None:
    del split  # one folder holds both
    candidates = (root / "cifar-10-batches-py", root)
    return next((folder for folder in candidates if (folder / "batches.meta").exists() or (folder / "test_batch").exists()), None)


def _find_folder(*subfolders: str) -> Callable[[Path, SplitName], Path | None]:
    """Returns a finder of split folders directly below the root, or below one of `subfolders` of it."""

    def find(root: Path, split: SplitName) -> Path | None:
        for base in (root, *(root / name for name in subfolders)):
            if (base / "train").is_dir():
                return _split_folder(base, split)
        return None

    return find


def _split_folder(base: Path, split: SplitName) -> Path | None:
    names = ("train",) if split == "train" else _TEST_FOLDERS
    return next((base / name for name in names if (base / name).is_dir()), None)


def _open_folder(path: Path, split: SplitName) -> ImageStore:
    classes = None if split == "train" else tuple(_class_folders(path.parent / "train"))
    return FolderImages(path, classes)


def _find_shards(root: Path, split: SplitName) -> Path | None:
    folder = _split_folder(root, split)
    return folder if folder is not None and (folder / MANIFEST_NAME).exists() else None


_CLASS_FOLDERS = "class folders (train/CLASS/*.jpg and test/CLASS/*.jpg)"

SETS: dict[str, DownstreamSet] = {
    entry.name: entry
    for entry in (
        DownstreamSet(
            name="cifar10",
            class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            counts={"train": 50_000, "test": 10_000},
            class_counts={"train": 5_000, "test": 1_000},
            layouts=(
                Layout("torchvision's cifar-10-batches-py", _find_cifar, CifarBatches),
                Layout(_CLASS_FOLDERS, _find_folder("cifar10"), _open_folder),
            ),
            recipe="extract the archive there (tar xzf cifar-10-python.tar.gz -C DIR) and give data_root=DIR",
        ),
        DownstreamSet(
            name="folder",
            layouts=(Layout(_CLASS_FOLDERS, _find_folder(), _open_folder),),
            recipe="give the folder that holds train/CLASS/… and test/CLASS/… (or val/CLASS/…)",
        ),
        DownstreamSet(
            name="shards",
            layouts=(Layout("shard folders (train/ and test/)", _find_shards, lambda path, split: Shards.open(path)),),
            recipe="make the folders with: bamboo shards pack SRC --out DIR/train, and the same for DIR/test",
        ),
    )
}
