"""Tiny downstream sets on disk, in the file names and formats of their official archives."""

import dataclasses
import functools
import io
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.io
from PIL import Image

from bamboo.datasets.downstream.facts import SETS, DownstreamSet

Rows = list[tuple[str, int]]  # (path below the root, class id)


def tiny(name: str, num_classes: int, train: int, test: int, **facts: Any) -> DownstreamSet:
    """Returns the facts of a set with other numbers."""
    facts = {"class_counts": {}, **facts}
    return dataclasses.replace(SETS[name], num_classes=num_classes, counts={"train": train, "test": test}, **facts)


TINY: dict[str, DownstreamSet] = {
    entry.name: entry
    for entry in (
        tiny("cifar10", 10, 50, 20, class_counts={"train": 5, "test": 2}),
        tiny("cifar100", 5, 20, 10, class_counts={"train": 4, "test": 2}),
        tiny("food", 3, 9, 6, class_counts={"train": 3, "test": 2}),
        tiny("pet", 3, 8, 6),
        tiny("flower", 3, 6, 10, class_counts={"train": 2}, validation=3),
        tiny("sun", 3, 6, 6, class_counts={"train": 2, "test": 2}),
        tiny("sun-seeded", 3, 6, 6, class_counts={"train": 2, "test": 2}),
        tiny("car", 3, 8, 5),
        tiny("dtd", 3, 12, 6, class_counts={"train": 4, "test": 2}, validation=6),
        tiny("caltech", 3, 9, 6, class_counts={"train": 3}),
        tiny("aircraft", 3, 7, 3, validation=3),
        tiny("imagenet", 3, 12, 6, class_counts={"test": 2}),
    )
}


@dataclasses.dataclass(frozen=True)
class Written:
    """What was written: rows of each split in the order of the source, and the paths of the official validation part."""

    train: Rows
    test: Rows
    validation: frozenset[str] | None = None


@functools.cache
def image(seed: int) -> bytes:
    """Returns an 8 × 8 JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def put_images(root: Path, files: Sequence[str]) -> None:
    """Writes an image to each path, no two of them alike."""
    for seed, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(seed))


def put_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def round_robin(described: DownstreamSet, split: str) -> list[int]:
    """Returns class ids that go round the classes, as many as the split has images."""
    assert described.counts is not None and described.num_classes is not None
    return [row % described.num_classes for row in range(described.counts[split])]


def food(root: Path, *, text: bool = False) -> Written:
    classes = ("apple_pie", "baby_back_ribs", "churros")
    written = {}
    for split, count, first in (("train", 3, 0), ("test", 2, 10)):
        tree = {name: [f"{name}/{first + number}" for number in range(count)] for name in classes}
        path = root / "food-101" / "meta" / f"{split}.{'txt' if text else 'json'}"
        put_lines(path, [file for files in tree.values() for file in files] if text else [json.dumps(tree)])
        written[split] = [(f"food-101/images/{file}.jpg", label) for label, name in enumerate(classes) for file in tree[name]]
    put_images(root, [file for rows in written.values() for file, _ in rows])
    return Written(written["train"], written["test"])


def pet(root: Path, *, inner: str = "oxford-iiit-pet/") -> Written:
    breeds = ("Abyssinian", "american_bulldog", "Bengal")
    written = {}
    for split, name, first in (("train", "trainval", 0), ("test", "test", 100)):
        rows = [(f"{breeds[label]}_{first + row}", label) for row, label in enumerate(round_robin(TINY["pet"], split))]
        put_lines(root / f"{inner}annotations/{name}.txt", [f"{file} {label + 1} 1 1" for file, label in rows])
        written[split] = [(f"{inner}images/{file}.jpg", label) for file, label in rows]
    put_images(root, [file for rows in written.values() for file, _ in rows])
    return Written(written["train"], written["test"])


FLOWER_LABELS = np.array([1, 2, 3, 3, 2, 1, *[1, 2, 3] * 3, 1], np.uint8)
FLOWER_IDS = {"trnid": [1, 2, 3], "valid": [4, 5, 6], "tstid": list(range(16, 6, -1))}


def flower(root: Path, *, inner: str = "flowers-102/", ids: Mapping[str, Any] = FLOWER_IDS, labels: Any = FLOWER_LABELS) -> Written:
    folder = root / inner
    put_images(folder, [f"jpg/image_{number:05d}.jpg" for number in range(1, 17)])
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.atleast_2d(labels)})
    scipy.io.savemat(folder / "setid.mat", {key: np.atleast_2d(np.array(value, np.uint16)) for key, value in ids.items()})

    def rows(*parts: str) -> Rows:
        numbers = [number for part in parts for number in FLOWER_IDS[part]]
        return [(f"{inner}jpg/image_{number:05d}.jpg", int(FLOWER_LABELS[number - 1]) - 1) for number in numbers]

    return Written(rows("trnid", "valid"), rows("tstid"), frozenset(file for file, _ in rows("valid")))


SUN_CLASSES = ("a/abbey", "a/apartment_building/outdoor", "b/bakery/shop")


def sun(root: Path, *, partitions: str = "", named: bool = True, inner: str = "SUN397/") -> Written:
    folder = root / inner
    put_images(folder, [f"{name}/sun_{name[0]}{number}.jpg" for name in SUN_CLASSES for number in range(5)])
    if named:
        put_lines(folder / "ClassName.txt", [f"/{name}" for name in SUN_CLASSES])
    written = {}
    for split, name, numbers in (("train", "Training_01.txt", (0, 3)), ("test", "Testing_01.txt", (1, 4))):
        rows = [(f"{name}/sun_{name[0]}{number}.jpg", label) for label, name in enumerate(SUN_CLASSES) for number in numbers]
        put_lines(root / partitions / name, [f"/{file}" for file, _ in rows])
        written[split] = [(inner + file, label) for file, label in rows]
    return Written(written["train"], written["test"])


CAR_NAMES = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], object)


def annotations(**columns: Sequence[Any]) -> Any:
    """Returns a struct array as the devkit of the cars has it."""
    kinds = [(name, object) for name in ("bbox_x1", *columns)]
    return np.array([(0, *row) for row in zip(*columns.values(), strict=True)], dtype=kinds)


def car(root: Path, *, inner: str = "stanford_cars/", doubled: bool = False, test_annotations: str = "", change: int = 0) -> Written:
    folder, written = root / inner, {}
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": CAR_NAMES})
    places = {"train": "devkit/cars_train_annos.mat", "test": f"{test_annotations}cars_test_annos_withlabels.mat"}
    for split, place in places.items():
        labels = round_robin(TINY["car"], split)
        names = [f"{number:05d}.jpg" for number in range(1, len(labels) + 1)]
        rows = annotations(**{"class": [label + 1 + change for label in labels], "fname": names})
        scipy.io.savemat(folder / place, {"annotations": rows})
        images = f"cars_{split}/" * (2 if doubled else 1)
        written[split] = [(f"{inner}{images}{name}", label) for name, label in zip(names, labels, strict=True)]
    put_images(root, [file for rows in written.values() for file, _ in rows])
    return Written(written["train"], written["test"])


def car_in_one_folder(root: Path) -> Written:
    labels = [*round_robin(TINY["car"], "train"), *round_robin(TINY["car"], "test")]
    files = [f"car_ims/{number:06d}.jpg" for number in range(1, len(labels) + 1)]
    is_test = [int(row >= 8) for row in range(len(labels))]
    rows = annotations(**{"relative_im_path": files, "class": [label + 1 for label in labels], "test": is_test})
    scipy.io.savemat(root / "cars_annos.mat", {"annotations": rows, "class_names": CAR_NAMES})
    put_images(root, files)
    written = list(zip(files, labels, strict=True))
    return Written(written[:8], written[8:])


def dtd(root: Path, *, inner: str = "dtd/dtd/") -> Written:
    classes, written = ("banded", "blotchy", "zigzagged"), {}
    for part, first in (("train", 0), ("val", 10), ("test", 20)):
        rows = [(f"{name}/{name}_{first + number:04d}.jpg", label) for label, name in enumerate(classes) for number in range(2)]
        put_lines(root / f"{inner}labels/{part}1.txt", [file for file, _ in rows])
        written[part] = [(f"{inner}images/{file}", label) for file, label in rows]
    put_images(root, [file for rows in written.values() for file, _ in rows])
    return Written(written["train"] + written["val"], written["test"], frozenset(file for file, _ in written["val"]))


def aircraft(root: Path, *, inner: str = "fgvc-aircraft-2013b/data/", named: bool = True) -> Written:
    variants, written = ("707-320", "Boeing 717", "F/A-18"), {}
    for part, labels, first in (("train", (0, 1, 2, 1), 34021), ("val", (2, 0, 1), 1025794), ("test", (0, 1, 2), 56978)):
        rows = [(f"{first + row:07d}", label) for row, label in enumerate(labels)]
        put_lines(root / f"{inner}images_variant_{part}.txt", [f"{file} {variants[label]}" for file, label in rows])
        written[part] = [(f"{inner}images/{file}.jpg", label) for file, label in rows]
    both = [(root / f"{inner}images_variant_{part}.txt").read_text() for part in ("train", "val")]
    (root / f"{inner}images_variant_trainval.txt").write_text("".join(both))
    if named:
        put_lines(root / f"{inner}variants.txt", variants)
    put_images(root, [file for rows in written.values() for file, _ in rows])
    return Written(written["train"] + written["val"], written["test"], frozenset(file for file, _ in written["val"]))


def caltech(root: Path, *, inner: str = "caltech101/101_ObjectCategories/", stray: bool = True) -> list[tuple[str, int]]:
    """Writes Caltech-101 and returns all of its images: it has no official split."""
    classes = {"BACKGROUND_Google": 4, "Faces": 5, "accordion": 6}
    rows = [
        (f"{inner}{name}/image_{number:04d}.jpg", label)
        for label, (name, count) in enumerate(classes.items())
        for number in range(1, count + 1)
    ]
    put_images(root, [file for file, _ in rows])
    if stray:
        (root / inner / "BACKGROUND_Google" / "tmp").write_bytes(b"stray")
    return rows


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # typeshed leaves out the pickler in Python
    """Writes bytes as Python 2 wrote its strings, which is what the official files hold."""

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(data)

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, bytes: save_bytes}  # type: ignore[attr-defined]  # as above: not in typeshed


def python2_pickle(value: object) -> bytes:
    """Returns a pickle of protocol 2 as Python 2 would have written it."""
    buffer = io.BytesIO()
    Python2Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def cifar(root: Path, name: str, *, binary: bool = False, change: Callable[[dict[bytes, Any]], object] = lambda batch: None) -> Path:
    """Writes CIFAR-10 or -100 with tiny numbers; `change` alters the pickled test batch. Returns its folder."""
    ten, described = name == "cifar10", TINY[name]
    names = SETS["cifar10"].class_names or () if ten else ("apple", "aquarium_fish", "baby", "bear", "worm")
    files = {"train": [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"], "test": ["test_batch" if ten else "test"]}
    folder = root / (
        ("cifar-10-batches-bin" if ten else "cifar-100-binary") if binary else ("cifar-10-batches-py" if ten else "cifar-100-python")
    )
    folder.mkdir(parents=True)
    for split, batches in files.items():
        labels = np.array(round_robin(described, split)).reshape(len(batches), -1)
        rows = np.random.default_rng(len(split)).integers(0, 256, (*labels.shape, 3072), dtype=np.uint8)
        for file, batch_labels, pixels in zip(batches, labels.tolist(), rows, strict=True):
            if binary:
                columns = np.array(batch_labels, np.uint8)[:, None].repeat(1 if ten else 2, axis=1)
                (folder / f"{file}.bin").write_bytes(np.concatenate([columns, pixels], axis=1).tobytes())
                continue
            batch = {b"data": pixels, b"labels" if ten else b"fine_labels": batch_labels}
            if split == "test":
                change(batch)
            (folder / file).write_bytes(python2_pickle(batch))
    if binary:
        put_lines(folder / ("batches.meta.txt" if ten else "fine_label_names.txt"), names)
    else:
        meta = {b"label_names" if ten else b"fine_label_names": [each.encode() for each in names]}
        (folder / ("batches.meta" if ten else "meta")).write_bytes(python2_pickle(meta))
    return folder


def meta_lists(root: Path, described: DownstreamSet, *, validation: int = 0) -> Written:
    """Writes `train_meta.list` and `test_meta.list`, their images in folders and with blanks in their names."""
    written = {}
    for split in ("train", "test"):
        rows = [(f"{split}/an image {row:04d}.jpg", label) for row, label in enumerate(round_robin(described, split))]
        put_lines(root / f"{split}_meta.list", [f"{file} {label}" for file, label in rows])
        written[split] = rows
    put_images(root, [file for rows in written.values() for file, _ in rows])
    held = written["train"][len(written["train"]) - validation :]
    if validation:
        put_lines(root / "val_meta.list", [f"{file}\t{label}" for file, label in held])
    return Written(written["train"], written["test"], frozenset(file for file, _ in held) if validation else None)


def class_folders(root: Path, described: DownstreamSet, *, test_name: str = "test", validation: int = 0) -> Written:
    """Writes `train/CLASS/*.jpg` and `test/CLASS/*.jpg`; with `validation`, as many of the training images in `val/`."""
    assert described.num_classes is not None
    names = sorted(described.class_names or [f"n{label:08d}" for label in range(described.num_classes)])
    labels = round_robin(described, "train")
    parts = {
        "train": labels[: len(labels) - validation],
        "val": labels[len(labels) - validation :],
        test_name: round_robin(described, "test"),
    }
    if not validation and test_name != "val":
        del parts["val"]
    written = {
        part: sorted((f"{part}/{names[label]}/{row:04d}.JPEG", label) for row, label in enumerate(rows)) for part, rows in parts.items()
    }
    put_images(root, [file for rows in written.values() for file, _ in rows])
    held = written["val"] if validation else []
    return Written(written["train"] + held, written[test_name], frozenset(file for file, _ in held) if validation else None)
