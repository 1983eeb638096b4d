"""The stream against `webdataset` with torchvision's Pillow transforms, and against a bare decode-and-crop loop.

    python benchmarks/loader.py
    python benchmarks/loader.py --rounds 3      # a quick look, which overwrites the results as well

Everyone turns the same 500×375 JPEGs into 224-pixel random-resized crops with flips, in batches:

    bamboo                TrainBatches → load_batches, uint8 batches, one worker
    webdataset            WebDataset → shuffle → decode("pil") → RandomResizedCrop, RandomHorizontalFlip, PILToTensor → batched,
                          one worker: the same uint8 pixels at the end
    webdataset, floats    the same with ToTensor and Normalize in place of PILToTensor, as the usual recipes have it
    bare                  decode_jpeg → slice → interpolate → flip, in this process, of encoded images in memory, with bamboo's
                          own boxes, drawn beforehand; it keeps nothing
    bare, channels last   the same with the strides that `bamboo.datasets.augment.crops.resize` sets: the floor of this machine
"""

import argparse
import functools
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from provenance import best_ratio, interleave, provenance, ratios, spread, write_results
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from bamboo.cli.main import main as bamboo
from bamboo.datasets.augment.crops import NUM_DRAWS, TrainView, crop_box
from bamboo.datasets.counters import uniforms
from bamboo.datasets.plan.order import Order
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches

SIZE, SCALE, RATIO, FLIP = 224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5
BATCH, SHARDS, SEED = 64, 4, 0
WARM_BATCHES = 4  # more than a worker makes ahead
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGETS = {"webdataset": 1.6, "bare": 0.9}

_PROCESS_CLOCK = 2  # with a process id, the clock that clock_getcpuclockid(3) gives on Linux

NOTES = f"""
{SIZE} px crops of 500×375 JPEGs (quality 90, 4:2:0, {{kilobytes:.0f}} KB on average, 1/f noise) packed by `bamboo shards pack`; one
loader worker (none for the bare loops), one thread per process, warm page cache; {{images}} images a round after
{WARM_BATCHES * BATCH} uncounted ones, {{rounds}} rounds in turn. CPU seconds are user and system time of parent and worker. Ratios
are taken within a round and given as median (least – greatest), and once more between everyone's best rounds, which other work on
the machine disturbs least.

- *webdataset*: `shuffle(256)`, `decode("pil")`, `RandomResizedCrop`, `RandomHorizontalFlip`, `PILToTensor`, `batched({BATCH})`: uint8
  batches, equal pixel work. *floats* ends with `ToTensor` and `Normalize` instead, as the usual recipes do in the worker.
- *bare*: torchvision's `decode_jpeg`, a slice, `interpolate(antialias=True)`, `flip`, over encoded images in memory with boxes
  drawn beforehand; nothing is read, batched, kept or handed over. *channels last* gives `interpolate` strides that spare it
  a re-packing (pytorch#68430), as bamboo does.

Targets: at least {TARGETS["webdataset"]} × webdataset (the stricter one, uint8) and {TARGETS["bare"]} × bare.
"""


class Stream:
    """A contender's endless batches, and the CPU time that this process and the contender's own workers spend on them."""

    def __init__(self, batches: Iterator[Any]) -> None:
        before = multiprocessing.active_children()
        self._batches = batches
        next(batches)  # starts the workers
        self._workers = [child.pid for child in multiprocessing.active_children() if child not in before]

    def round(self, num_batches: int) -> float:
        """Returns the CPU seconds of `num_batches` batches.

        What the worker made ahead is drained before, and what it makes ahead is waited for after, so that it disturbs nobody's round.
        """
        self._pull(WARM_BATCHES)
        before = self._cpu_s()
        self._pull(num_batches)
        used = self._cpu_s() - before
        self._settle()
        return used

    def _settle(self) -> None:
        before = -1.0
        while self._workers and self._cpu_s() - before > 0.005:
            before = self._cpu_s()
            time.sleep(0.05)

    def _pull(self, num_batches: int) -> None:
        for _ in range(num_batches):
            next(self._batches)

    def _cpu_s(self) -> float:
        clocks = [time.CLOCK_PROCESS_CPUTIME_ID, *(~pid << 3 | _PROCESS_CLOCK for pid in self._workers)]
        return sum(time.clock_gettime(clock) for clock in clocks)


def noise_image(seed: int) -> Image.Image:
    """Returns a 500×375 photograph-like image: 1/f^1.5 noise, mostly grey, about 50 KB as a JPEG of quality 90."""
    width, height = 500, 375
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    waves = random.standard_normal((2, 3, height, width // 2 + 1)) / frequency**1.5
    fields = np.fft.irfft2(waves[0] + 1j * waves[1], (height, width))
    grey, blue, red = fields / fields.std(axis=(1, 2), keepdims=True) * np.array([1, 0.15, 0.15])[:, None, None]
    pixels = np.stack([grey + red, grey - 0.5 * (red + blue), grey + blue], axis=2)
    return Image.fromarray(np.clip(pixels * 48 + 118, 0, 255).astype(np.uint8))


def make_shards(folder: Path, num_images: int) -> Path:
    """Returns a shard folder of `num_images` synthetic JPEGs of eight classes."""
    for number in range(num_images):
        path = folder / "photos" / f"class {number % 8}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(number).save(path, "JPEG", quality=90, subsampling="4:2:0")
    shards = folder / "shards"
    code = bamboo(["shards", "pack", str(folder / "photos"), "--out", str(shards), "--samples-per-shard", str(-(-num_images // SHARDS))])
    assert code == 0
    return shards


def ours(folder: Path, interpolation: Any) -> Iterator[Any]:
    """Yields bamboo's batches."""
    shards = Shards.open(folder)
    view = TrainView(SIZE, scale=SCALE, ratio=RATIO, flip=FLIP, interpolation=interpolation)
    source = TrainBatches(shards, Order(shards.shard_counts, seed=SEED, window=64), view, SEED, BATCH, rank=0, world_size=1)
    for batch in load_batches(source, range(sys.maxsize), workers=1):
        assert batch.images.shape == (BATCH, SIZE, SIZE, 3)
        yield batch


def peer(folder: Path, interpolation: str, *, floats: bool) -> Iterator[Any]:
    """Yields webdataset's batches, made with Pillow transforms."""
    mode = transforms.InterpolationMode(interpolation)
    crop = [transforms.RandomResizedCrop(SIZE, SCALE, RATIO, mode), transforms.RandomHorizontalFlip(FLIP)]
    ends = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    stages = webdataset.WebDataset(urls, shardshuffle=len(urls)).repeat().shuffle(256).decode("pil").to_tuple("jpg", "json")
    dataset = stages.map_tuple(transforms.Compose([*crop, *ends]), _label).batched(BATCH)
    for images, labels in webdataset.WebLoader(dataset, batch_size=None, num_workers=1):
        assert images.shape == (BATCH, 3, SIZE, SIZE)
        yield images, labels


def _label(record: dict[str, Any]) -> int:
    return int(record["labels"][0])


def bare(folder: Path, interpolation: str, *, channels_last: bool) -> Iterator[int]:
    """Yields the number of images cropped, a batch at a time: bamboo's first epoch over and over, by the same boxes and flips."""
    shards = Shards.open(folder)
    source = [torch.frombuffer(bytearray(shards.read(sample)), dtype=torch.uint8) for sample in range(len(shards))]
    ids, keys = Order(shards.shard_counts, seed=SEED, window=64).take(0, len(shards))
    draws = uniforms(keys, ids, NUM_DRAWS).tolist()
    boxes = [crop_box(375, 500, SCALE, RATIO, drawn) for drawn in draws]
    work = [(source[sample], *box, drawn[-1] < FLIP) for sample, box, drawn in zip(ids, boxes, draws, strict=True)]
    for start in itertools.cycle(range(0, len(work) - BATCH + 1, BATCH)):
        for encoded, top, left, height, width, flips in work[start : start + BATCH]:
            crop = decode_jpeg(encoded, mode=ImageReadMode.RGB)[:, top : top + height, left : left + width]
            batch = crop.permute(1, 2, 0)[None].permute(0, 3, 1, 2) if channels_last else crop[None]
            view = interpolate(batch, (SIZE, SIZE), mode=interpolation, antialias=True)
            if flips:
                view = view.flip(3)
        yield BATCH


def contenders(folder: Path, interpolation: Any) -> dict[str, Stream]:
    """Returns everyone, started."""
    return {
        "bamboo": Stream(ours(folder, interpolation)),
        "webdataset": Stream(peer(folder, interpolation, floats=False)),
        "webdataset, floats": Stream(peer(folder, interpolation, floats=True)),
        "bare": Stream(bare(folder, interpolation, channels_last=False)),
        "bare, channels last": Stream(bare(folder, interpolation, channels_last=True)),
    }


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=256, help="images a round")
    parser.add_argument("--interpolation", choices=["bicubic", "bilinear"], nargs="+", default=["bicubic"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(["torch", "torchvision", "webdataset", "pillow", "numpy"])
    num_batches = -(-options.images // BATCH)
    table = [["interpolation", "contender", "images per CPU second", "bamboo's ratio", "of best rounds", "target"]]
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_shards(Path(temporary), 512)
        kilobytes = float(Shards.open(folder).index.size.mean()) / 1000
        for interpolation in options.interpolation:
            started = contenders(folder, interpolation)
            rounds = {name: functools.partial(stream.round, num_batches) for name, stream in started.items()}
            measured[interpolation] = seconds = interleave(rounds, options.rounds)
            for name, used in seconds.items():
                rate = spread([num_batches * BATCH / value for value in used])
                ratio = [str(ratios(used, seconds["bamboo"])), f"{best_ratio(used, seconds['bamboo']):.3f}"]
                target = f"≥ {TARGETS[name]}" if name in TARGETS else ""
                table.append([interpolation, name, f"{rate.median:.0f}", *(["1", "1"] if name == "bamboo" else ratio), target])
            del started, rounds  # ends the workers
    notes = NOTES.format(kilobytes=kilobytes, images=num_batches * BATCH, rounds=options.rounds)
    write_results("loader", "Loader: images per CPU second", made, table, notes, {"unit": "CPU seconds", **measured})


if __name__ == "__main__":
    sys.exit(main())
