"""Sets whose archives name their splits in MATLAB files: Oxford Flowers-102 and Stanford Cars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError, missing_extra
from .facts import DownstreamSet, SplitName
from .listing import Listing, from_zero, inside, joined

_FLOWER_PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}


def read_flowers(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of Flowers-102: image numbers of `setid.mat` (trnid with valid; tstid), labels of `imagelabels.mat`.

    Raises:
        UserError: when scipy is not installed.
        DataError: when a file is missing or damaged, a number or label is out of range, or labels count from 0.
    """
    numbers, labels = _load(folder / "setid.mat"), _load(folder / "imagelabels.mat")
    all_labels = _whole_numbers(labels, "labels", folder / "imagelabels.mat")
    num_classes = described.num_classes or int(all_labels.max())
    ids = from_zero(all_labels, num_classes, first=1, source=str(folder / "imagelabels.mat"))

    def part(name: str) -> Listing:
        source = f"{folder / 'setid.mat'}: {_FLOWER_PARTS[name]}"
        images = _whole_numbers(numbers, _FLOWER_PARTS[name], folder / "setid.mat")
        outside = images[(images < 1) | (images > len(ids))]
        if len(outside):
            raise DataError(f"{source}: image {outside[0]} is out of range; imagelabels.mat labels the images 1 to {len(ids)}")
        files = [f"jpg/image_{image:05d}.jpg" for image in images.tolist()]
        names = tuple(str(label) for label in range(1, num_classes + 1))  # the archive has no others
        return Listing(folder=folder, files=files, labels=ids[images - 1], class_names=names, source=source)

    return joined(part("train"), part("val")) if split == "train" else part("test")


def read_cars(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of Stanford Cars: `devkit/cars_train_annos.mat`, `cars_test_annos_withlabels.mat` and `devkit/cars_meta.mat`.

    The test annotations may lie in the folder or in `devkit`. Images are in `cars_train/` and `cars_test/`, or in folders of the same
    names in those, as some copies have them.

    Raises:
        UserError: when scipy is not installed.
        DataError: when a file is missing or damaged, a label is out of range, or labels count from 0.
    """
    name = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    path = next((place / name for place in (folder, folder / "devkit") if (place / name).exists()), folder / name)
    rows = _struct(_load(path), "annotations", ("fname", "class"), path)
    images = f"cars_{split}"
    if (folder / images / images).is_dir():
        images = f"{images}/{images}"
    meta = folder / "devkit" / "cars_meta.mat"
    names = _car_names(_load(meta).get("class_names"), described, meta)
    return _cars(folder, [f"{images}/{file}" for file in rows["fname"]], rows["class"], names, path)


def read_cars_in_one_folder(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of Stanford Cars in its other archive: all images in `car_ims/`, `cars_annos.mat` with a field `test`.

    Raises:
        UserError, DataError: as `read_cars`.
    """
    path = folder / "cars_annos.mat"
    tree = _load(path)
    rows = _struct(tree, "annotations", ("relative_im_path", "class", "test"), path)
    names = _car_names(tree.get("class_names"), described, path)
    chosen = [row for row, test in enumerate(rows["test"]) if bool(test) == (split == "test")]
    return _cars(folder, [rows["relative_im_path"][row] for row in chosen], [rows["class"][row] for row in chosen], names, path)


def _cars(folder: Path, files: Sequence[Any], labels: Sequence[Any], names: tuple[str, ...], path: Path) -> Listing:
    if not files:
        raise DataError(f"{path}: lists no image")
    try:
        numbers = np.array([int(label) for label in labels], np.int64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: 'class' is not a number in every row ({error})") from None
    paths = [inside(str(file), f"{path}: entry {number}") for number, file in enumerate(files, 1)]
    ids = from_zero(numbers, len(names), first=1, source=str(path))
    return Listing(folder=folder, files=paths, labels=ids, class_names=names, source=str(path))


def _car_names(names: Any, described: DownstreamSet, path: Path) -> tuple[str, ...]:
    listed = [str(name) for name in np.atleast_1d(names).reshape(-1)] if names is not None else []
    if not listed or (described.num_classes is not None and len(listed) != described.num_classes):
        raise DataError(f"{path}: 'class_names' has {len(listed)} names; there are {described.num_classes} classes")
    return tuple(listed)


def require_scipy() -> None:
    """Raises UserError, naming the extra, where scipy is not installed."""
    try:
        import scipy.io  # noqa: F401 (whether it can be imported is the question)
    except ImportError:
        raise missing_extra("scipy", "sets") from None


def _load(path: Path) -> dict[str, Any]:
    require_scipy()
    from scipy.io import loadmat

    try:
        tree: dict[str, Any] = loadmat(str(path), squeeze_me=True)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; fetch it again") from None
    # a damaged file raises whatever the parser met (ValueError, MatReadError, KeyError, zlib.error, NotImplementedError, …)
    except Exception as error:  # noqa: BLE001
        raise DataError(f"{path}: cannot be read as a MATLAB file: {error or type(error).__name__}") from None
    return tree


def _whole_numbers(tree: dict[str, Any], key: str, path: Path) -> npt.NDArray[np.int64]:
    """Returns int64[N] of a row or column of whole numbers."""
    values = np.atleast_1d(tree[key]) if key in tree else np.empty(0)
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "iuf" or not np.array_equal(values, np.trunc(values)):
        raise DataError(f"{path}: {key!r} is not a row of whole numbers (shape {values.shape}, {values.dtype})")
    return values.astype(np.int64)


def _struct(tree: dict[str, Any], key: str, fields: Sequence[str], path: Path) -> dict[str, list[Any]]:
    """Returns the fields of a MATLAB struct array as columns."""
    rows: npt.NDArray[Any] = np.atleast_1d(tree[key]).reshape(-1) if key in tree else np.empty(0)
    absent = [field for field in fields if field not in (rows.dtype.names or ())]
    if absent:
        raise DataError(f"{path}: {key!r} has no field {' or '.join(absent)}")
    return {field: rows[field].tolist() for field in fields}
