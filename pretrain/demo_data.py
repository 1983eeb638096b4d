"""The images of `bamboo demo`: scikit-learn's handwritten digits as PNG files in class folders, split without overlap.

Pretraining sees the digits 0 to 4 only, each in four rotations, every rotation a class of its own (as few-shot work on Omniglot makes
classes: Santoro et al. 2016, 4.1): five classes alone teach little that others could use. The digits 5 to 9 are unseen. The cut is in the
middle of the ten, and keeps 6 and 9, which are one another turned, on the same side.

The originals are cut out and centred, which no photograph is: as such, raw pixels are as good as any backbone (the set `centred` shows
it). Here each lies anywhere in its frame, as in Cluttered MNIST (Mnih et al. 2014), in pretraining and in the probes alike.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..cli.errors import missing_extra
from ..cli.progress import Progress
from ..datasets.atomic import write_json
from ..datasets.counters import key, mix, uniforms

SEEN, UNSEEN = range(5), range(5, 10)
ROTATIONS = 4
NUM_HELD_OUT = 45
"""Test images per class of the probe on all ten; of the seen digits, no other use is made of them."""
NUM_VAL = 15
"""Images per seen digit that only draw the validation curve."""
SIDE, DIGIT_SIDE = 32, 20
"""Pixels of the PNG files, and of the digit in them; the originals have 8."""
SPLIT_NAME = "split.json"

SPLITS = ("pretrain/train", "pretrain/val", "all/train", "all/test", "unseen/train", "unseen/test", "centred/train", "centred/test")

_DIGIT_STREAM = 0x44494749  # "DIGI": keeps this use of the seed apart from any other
_PLACE_STREAM = 0x504C4143  # "PLAC"
_WHITE = 16  # the originals' largest value


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: uint8[N, 8, 8] in [0, 255] and int64[N] labels."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def load_digits() -> Digits:
    """Returns the 1,797 digits that come with scikit-learn (UCI's optical recognition of handwritten digits, test part).

    Raises:
        UserError: when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise missing_extra("scikit-learn", "demo") from None
    loaded = load()
    return Digits(np.rint(loaded.images * (255 / _WHITE)).astype(np.uint8), loaded.target.astype(np.int64))


def split_digits(labels: npt.NDArray[np.int64], seed: int, shots: int) -> dict[str, dict[int, list[int]]]:
    """Returns split → digit → numbers of its images, as `SPLITS` names them. No image tests what it trained.

    In a seeded order of each digit's images, with h = NUM_HELD_OUT and v = NUM_VAL:

        seen:    [0, h) all/test    [h, h + v) pretrain/val    [h + v, …) pretrain/train, the first `shots` of them also all/train
        unseen:  [0, h) all/test    [0, n − shots) unseen/test    [n − shots, n) unseen/train and all/train

    `centred` has the images of `unseen`.
    """
    split: dict[str, dict[int, list[int]]] = {name: {} for name in SPLITS}
    for digit in (*SEEN, *UNSEEN):
        numbers = np.flatnonzero(labels == digit)
        order = numbers[np.argsort(mix(numbers.astype(np.uint64) ^ key(_DIGIT_STREAM, seed)), kind="stable")].tolist()
        split["all/test"][digit] = order[:NUM_HELD_OUT]
        if digit in SEEN:
            start = NUM_HELD_OUT + NUM_VAL
            split["pretrain/val"][digit], split["pretrain/train"][digit] = order[NUM_HELD_OUT:start], order[start:]
            split["all/train"][digit] = order[start : start + shots]
        else:
            split["unseen/test"][digit], split["unseen/train"][digit] = order[:-shots], order[-shots:]
            split["all/train"][digit] = order[-shots:]
    for side in ("train", "test"):
        split[f"centred/{side}"] = split[f"unseen/{side}"]
    return split


@dataclasses.dataclass(frozen=True)
class View:
    """One PNG file: an image, how it is turned, and whether it lies in the middle."""

    path: str
    number: int
    turns: int
    is_centred: bool


def write_digits(digits: Digits, split: Mapping[str, Mapping[int, list[int]]], seed: int, folder: Path) -> None:
    """Writes `folder`/SPLIT/CLASS/NUMBER.png for every image of a split, and `split.json`, which is there when all of them are."""
    shutil.rmtree(folder, ignore_errors=True)
    views = list(_views(split))
    with Progress(len(views), "write PNG files") as progress:
        for view in views:
            path = folder / view.path
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(digits.images[view.number], view, seed).save(path)
            progress.advance()
    write_json(folder / SPLIT_NAME, split)


def draw(pixels: npt.NDArray[np.uint8], view: View, seed: int) -> Image.Image:
    """Returns the digit, turned and enlarged, on black: in the middle, or at a place that seed, number and turn decide."""
    turned = np.ascontiguousarray(np.rot90(pixels, view.turns))
    enlarged = Image.fromarray(turned).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)
    draws = uniforms(key(_PLACE_STREAM, seed, view.turns), np.array([view.number]), 2)[0]
    room = SIDE - DIGIT_SIDE
    left, top = (room // 2, room // 2) if view.is_centred else (int(share * (room + 1)) for share in draws)
    frame = Image.new("L", (SIDE, SIDE))
    frame.paste(enlarged, (left, top))
    return frame


def _views(split: Mapping[str, Mapping[int, list[int]]]) -> Iterator[View]:
    for name, classes in split.items():
        for turns in range(ROTATIONS if name.startswith("pretrain/") else 1):
            for digit, numbers in classes.items():
                for number in numbers:
                    yield View(f"{name}/{class_name(digit, turns)}/{number:04d}.png", number, turns, name.startswith("centred/"))


def class_name(digit: int, turns: int = 0) -> str:
    """Returns the class of a digit after so many quarter turns, counter-clockwise."""
    return f"{digit}-turned-{90 * turns}" if turns else str(digit)
