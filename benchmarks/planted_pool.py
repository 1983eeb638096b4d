"""A pool of real images with redundancy planted in it: CIFAR-10's training images, some classes copied, most copies of a few images.

Of the 50,000 training images, in an order drawn from a fixed seed, each class gives `BASE` images to the pool, the next `BASE` to a
calibration set, which tells how near distinct images lie to one another, and the next `PROBE` to the linear probe's training set. The
three have no image in common, and none of them has one of the test images.

Three classes are repeated as they are, byte by byte, three as near-copies, and four are left alone. Image r of a copied class, in random
order, gets a share 1 / r of its class's copies (Zipf's law, as counts of web images have it), so that a few images fill most of the pool.
"""

import dataclasses
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from bamboo.datasets.atomic import publish_folder, write_text

EXACT, NEAR = ("airplane", "cat", "horse"), ("bird", "frog", "truck")
BASE, COPIES, PROBE = 1000, 3333, 500
"""Images of a class in the pool, copies of them beside where its class is copied, and training images of the probe."""
SEED = 0
SAMPLES_PER_SHARD = 1000
SHIFT, BRIGHTNESS, QUALITY = 2, 0.1, (60, 90)
"""Greatest shift in pixels and change of brightness of a near-copy, and the bounds of its JPEG quality."""

UNIQUE_KIND, EXACT_KIND, NEAR_KIND = 0, 1, 2
TRUTH_NAME = "truth.npz"

Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Truth:
    """What was planted, in the order of the pool."""

    origin: Ids
    """Which of the distinct images each one is, or is a copy of."""
    kind: Ids
    """Whether its class is left alone, repeated or near-copied."""

    @property
    def is_repeat(self) -> npt.NDArray[np.bool_]:
        """Whether an image of the same origin arrived before."""
        first = np.zeros(len(self.origin), np.bool_)
        first[np.unique(self.origin, return_index=True)[1]] = True
        return ~first

    @property
    def appearances(self) -> Ids:
        """How often the origin of each is in the pool."""
        counts: Ids = np.bincount(self.origin)[self.origin]
        return counts


def copies_of(num_images: int, copies: int) -> Ids:
    """Returns how often each of so many images is copied: `copies` divided by Zipf's law, largest remainders first."""
    shares = 1 / np.arange(1, num_images + 1)
    exact = copies * shares / shares.sum()
    counts: Ids = exact.astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: copies - counts.sum()]] += 1
    return counts


def near_copy(data: bytes, chance: np.random.Generator) -> bytes:
    """Returns a JPEG of the same picture: encoded anew, and each with probability ½ shifted, mirrored, lighter or darker."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if chance.random() < 0.5:
        down, right = chance.integers(-SHIFT, SHIFT + 1, 2)
        padded = np.pad(pixels, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
        pixels = padded[SHIFT + down :, SHIFT + right :][: pixels.shape[0], : pixels.shape[1]]
    if chance.random() < 0.5:
        pixels = pixels[:, ::-1]
    if chance.random() < 0.5:
        lighter = pixels * (1 + chance.uniform(-BRIGHTNESS, BRIGHTNESS))
        pixels = np.clip(np.rint(lighter), 0, 255).astype(np.uint8)
    made = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(made, "JPEG", quality=int(chance.integers(QUALITY[0], QUALITY[1] + 1)))
    return made.getvalue()


def plant(cifar: Path, folder: Path) -> None:
    """Writes the images of all sets below `folder`, with a list file each, once: pool, calibration, and the probe's train and test."""
    if (folder / TRUTH_NAME).exists():
        return
    chance = np.random.default_rng(SEED)
    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    classes = sorted(path.name for path in (cifar / "train").iterdir())
    write_text(building / "classes.txt", "".join(f"{name}\n" for name in classes))
    pool, calibration = list[tuple[str, int, int, int]](), list[str]()
    for label, name in enumerate(classes):
        files = sorted((cifar / "train" / name).iterdir())
        files = [files[number] for number in chance.permutation(len(files))]
        for place, origin, kind in _pool_images(files[:BASE], name, label * BASE, building, chance):
            pool.append((place, label, origin, kind))
        calibration += [f"{_copied(path, building / 'calibration' / name)} {label}" for path in files[BASE : 2 * BASE]]
        for path in files[2 * BASE : 2 * BASE + PROBE]:
            _copied(path, building / "probe" / "train" / name)
        shutil.copytree(cifar / "test" / name, building / "probe" / "test" / name)
    pool = [pool[number] for number in chance.permutation(len(pool))]
    write_text(building / "pool.txt", "".join(f"{place} {label}\n" for place, label, _, _ in pool))
    write_text(building / "calibration.txt", "".join(f"{line}\n" for line in calibration))
    np.savez(building / TRUTH_NAME, origin=[row[2] for row in pool], kind=[row[3] for row in pool])
    publish_folder(building, folder)


def read_truth(folder: Path) -> Truth:
    """Returns what `plant` planted."""
    arrays = np.load(folder / TRUTH_NAME)
    return Truth(arrays["origin"], arrays["kind"])


def _pool_images(files: list[Path], name: str, first: int, building: Path, chance: np.random.Generator) -> Iterator[tuple[str, int, int]]:
    """Writes the images of a class and their copies, and yields (path, origin, kind) of each."""
    kind = EXACT_KIND if name in EXACT else NEAR_KIND if name in NEAR else UNIQUE_KIND
    counts = copies_of(len(files), COPIES) if kind else np.zeros(len(files), np.int64)
    folder = building / "pool" / name
    folder.mkdir(parents=True)
    for number, (file, copies) in enumerate(zip(files, counts, strict=True)):
        data = file.read_bytes()
        for copy in range(copies + 1):
            path = folder / f"{number:04d}-{copy:03d}.jpg"
            path.write_bytes(near_copy(data, chance) if copy and kind == NEAR_KIND else data)
            yield f"pool/{name}/{path.name}", first + number, kind


def _copied(file: Path, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / file.name)
    return f"{folder.parent.name}/{folder.name}/{file.name}"
