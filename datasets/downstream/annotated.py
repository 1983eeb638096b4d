"""Sets whose archives name their splits in text or JSON: Food-101, Pets, DTD, Aircraft and SUN397."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...cli.errors import DataError, UserError
from ..sources import listing as shorten
from .facts import DownstreamSet, SplitName
from .listing import Listing, from_zero, inside, joined, read_lines


def read_food(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of Food-101: `meta/train.json` and `test.json` (class → images), or the .txt files beside them.

    Raises:
        DataError: when they are missing or damaged, or an image is listed under a class that is not its folder.
    """
    del described
    rows = _food_rows(folder, split)
    classes = sorted({name for name, _ in (rows if split == "train" else _food_rows(folder, "train"))})
    source = str(folder / "meta" / f"{split}.json")
    files = [f"images/{file}.jpg" for _, file in rows]
    return _by_name(folder, files, [name for name, _ in rows], classes, source)


def read_pets(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of Oxford-IIIT Pets: `annotations/trainval.txt` and `test.txt`, lines `image class species breed`.

    Raises:
        DataError: when they are missing or damaged, a label is not 1 to 37, or a label has two breeds.
    """
    path = folder / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
    images, labels = list[str](), list[int]()
    for number, line in read_lines(path):
        words = line.split()
        if line.startswith("#"):
            continue
        if len(words) != 4 or not words[1].isdecimal():
            raise DataError(f"{path}: line {number}: {line!r} is not `image class species breed`")
        images.append(inside(words[0], f"{path}: line {number}"))
        labels.append(int(words[1]))
    breeds = [image.rpartition("_")[0].replace("_", " ") for image in images]
    num_classes = described.num_classes or max(labels, default=1)
    ids = from_zero(np.array(labels, np.int64), num_classes, first=1, source=str(path))
    names = _names_of(ids.tolist(), breeds, num_classes, str(path))
    return Listing(folder=folder, files=[f"images/{image}.jpg" for image in images], labels=ids, class_names=names, source=str(path))


def read_dtd(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of DTD's first partition: `labels/train1.txt` with `val1.txt`, and `test1.txt`, lines `class/file`.

    Raises:
        DataError: when they are missing or damaged.
    """
    del described
    classes = sorted({file.split("/")[0] for file in _dtd_files(folder / "labels" / "train1.txt")})

    def part(name: str) -> Listing:
        path = folder / "labels" / f"{name}1.txt"
        files = _dtd_files(path)
        return _by_name(
            folder, [f"images/{file}" for file in files], [file.split("/")[0] for file in files], classes, str(path), ("partition 1",)
        )

    return joined(part("train"), part("val")) if split == "train" else part("test")


def read_aircraft(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of FGVC-Aircraft by variant: `images_variant_train.txt` with `…_val.txt`, and `…_test.txt`, lines `image variant`.

    Validation and test parts have the same size; which is which can be told where `…_trainval.txt` lies beside them.

    Raises:
        DataError: when they are missing or damaged, or do not agree with `images_variant_trainval.txt`.
    """
    del described
    listed = folder / "variants.txt"
    train = folder / "images_variant_train.txt"
    classes = [line for _, line in read_lines(listed)] if listed.exists() else sorted({name for _, name in _aircraft_rows(train)})

    def part(name: str) -> Listing:
        path = folder / f"images_variant_{name}.txt"
        rows = _aircraft_rows(path)
        _require_as_in_trainval(path, name, [image for image, _ in rows])
        return _by_name(folder, [f"images/{image}.jpg" for image, _ in rows], [variant for _, variant in rows], classes, str(path))

    return joined(part("train"), part("val")) if split == "train" else part("test")


def read_sun(described: DownstreamSet, folder: Path, split: SplitName) -> Listing:
    """Returns a split of SUN397's first partition: `Training_01.txt` and `Testing_01.txt`, lines `/letter/class/file`.

    The two files may lie beside the images' folder or in it, or in a folder `Partitions` there. Both splits have the same size, so
    files under each other's name cannot be told.

    Raises:
        UserError: when the partition files are not there.
        DataError: when they are damaged.
    """
    files = _sun_files(described, folder, "Testing_01.txt" if split == "test" else "Training_01.txt")
    train = files if split == "train" else _sun_files(described, folder, "Training_01.txt")
    listed = folder / "ClassName.txt"
    classes = (
        [line.strip("/") for _, line in read_lines(listed)] if listed.exists() else sorted({file.rpartition("/")[0] for file in train[1]})
    )
    source, names = files[0], [file.rpartition("/")[0] for file in files[1]]
    return _by_name(folder, files[1], names, classes, str(source), ("partition 1",))


def _food_rows(folder: Path, split: SplitName) -> list[tuple[str, str]]:
    path = folder / "meta" / f"{split}.json"
    if not path.exists() and (lines := path.with_suffix(".txt")).exists():
        return [(line.partition("/")[0], inside(line, f"{lines}: line {number}")) for number, line in read_lines(lines)]
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: missing; extract the archive again") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}") from None
    lists = list(tree.values()) if isinstance(tree, dict) else [None]
    if not all(isinstance(files, list) and all(isinstance(file, str) for file in files) for files in lists):
        raise DataError(f"{path}: damaged: not a mapping of classes to lists of images")
    rows = [(name, inside(file, f"{path}: class {name}")) for name, files in tree.items() for file in files]
    wrong = [f"{file} under {name}" for name, file in rows if not file.startswith(f"{name}/")]
    if wrong:
        raise DataError(f"{path}: images listed under a class that is not their folder: {shorten(wrong)}")
    return rows


def _dtd_files(path: Path) -> list[str]:
    files = [inside(line, f"{path}: line {number}") for number, line in read_lines(path)]
    if wrong := [file for file in files if file.count("/") != 1]:
        raise DataError(f"{path}: not `class/file`: {shorten(wrong)}")
    return files


def _aircraft_rows(path: Path) -> list[tuple[str, str]]:
    rows = []
    for number, line in read_lines(path):
        image, _, variant = line.partition(" ")
        if not variant:
            raise DataError(f"{path}: line {number}: {line!r} is not `image variant`")
        rows.append((inside(image, f"{path}: line {number}"), variant.strip()))
    return rows


def _require_as_in_trainval(path: Path, name: str, images: Sequence[str]) -> None:
    both = path.with_name("images_variant_trainval.txt")
    if not both.exists():
        return
    known = {image for image, _ in _aircraft_rows(both)}
    wrong = [image for image in images if (image in known) == (name == "test")]
    if not wrong:
        return
    others = "val or train" if name == "test" else name
    advice = f"{others} and test look swapped" if len(wrong) == len(images) else "extract the archive again"
    where = "are in it too" if name == "test" else "are not in it"
    raise DataError(f"{path}: does not agree with {both.name}: {len(wrong):,} of {len(images):,} images {where}; {advice}")


def _sun_files(described: DownstreamSet, folder: Path, name: str) -> tuple[Path, list[str]]:
    places = [folder, folder / "Partitions", folder.parent, folder.parent / "Partitions"]
    path = next((place / name for place in places if (place / name).exists()), None)
    if path is None:
        raise UserError(f"data_root: the images of SUN397 are in {folder}, but {name} is neither there nor beside it; {described.recipe}")
    files = [inside(line.removeprefix("/"), f"{path}: line {number}") for number, line in read_lines(path)]
    if wrong := [file for file in files if file.count("/") < 2]:
        raise DataError(f"{path}: not `/letter/class/file`: {shorten(wrong)}")
    return path, files


def _by_name(
    folder: Path, files: Sequence[str], names: Sequence[str], classes: Sequence[str], source: str, notes: tuple[str, ...] = ()
) -> Listing:
    """Returns a listing whose labels are the places of the rows' class names in `classes`."""
    ids = {name: i for i, name in enumerate(classes)}
    if unknown := sorted(set(names) - set(ids)):
        raise DataError(f"{source}: classes {unknown[:5]} are not among the {len(ids)} known ones")
    labels = np.array([ids[name] for name in names], np.int64)
    return Listing(folder=folder, files=files, labels=labels, class_names=tuple(classes), source=source, notes=notes)


def _names_of(labels: Iterable[int], names: Iterable[str], num_classes: int, source: str) -> tuple[str, ...]:
    """Returns the class names by class id that the rows themselves carry; the class id, where no row carries one."""
    found = dict[int, str]()
    for label, name in zip(labels, names, strict=True):
        if found.setdefault(label, name) != name:
            raise DataError(f"{source}: label {label + 1} stands for {found[label]!r} and for {name!r}")
    return tuple(found.get(label, str(label)) for label in range(num_classes))
