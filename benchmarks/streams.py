"""What the loader benchmark compares: bamboo's stream in its forms, webdataset's, and a bare loop; and the pictures they stream."""

import contextlib
import http.server
import itertools
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg

from bamboo.cli.main import main as bamboo
from bamboo.datasets.augment.crops import NUM_DRAWS, TrainView, crop_box
from bamboo.datasets.counters import uniforms
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.rates import open_rates
from bamboo.datasets.plan.weighting import Weighting, compile_rates
from bamboo.datasets.remote.cache import ShardCache
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches

SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
BATCH, SHARDS, SEED, WINDOW = 64, 4, 0, 64
WARM_BATCHES = 4  # more than a worker makes ahead
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_PROCESS_CLOCK = 2  # with a process id, the clock that clock_getcpuclockid(3) gives on Linux


class Pictures(NamedTuple):
    """A pool: JPEGs of one size, and the side of the crops made of them."""

    width: int
    height: int
    size: int


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


def noise_image(width: int, height: int, seed: int) -> Image.Image:
    """Returns a photograph-like image: 1/f^1.5 noise, mostly grey; at 500×375 about 50 KB as a JPEG of quality 90."""
    chance = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    waves = chance.standard_normal((2, 3, height, width // 2 + 1)) / frequency**1.5
    fields = np.fft.irfft2(waves[0] + 1j * waves[1], (height, width))
    grey, blue, red = fields / fields.std(axis=(1, 2), keepdims=True) * np.array([1, 0.15, 0.15])[:, None, None]
    pixels = np.stack([grey + red, grey - 0.5 * (red + blue), grey + blue], axis=2)
    return Image.fromarray(np.clip(pixels * 48 + 118, 0, 255).astype(np.uint8))


def make_shards(folder: Path, pictures: Pictures, num_images: int) -> Path:
    """Returns a shard folder of `num_images` synthetic JPEGs of eight classes, with a weight column beside it."""
    for number in range(num_images):
        path = folder / "photos" / f"class {number % 8}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(pictures.width, pictures.height, number).save(path, "JPEG", quality=90, subsampling="4:2:0")
    shards = folder / "shards"
    code = bamboo(["shards", "pack", str(folder / "photos"), "--out", str(shards), "--samples-per-shard", str(-(-num_images // SHARDS))])
    assert code == 0
    opened = Shards.open(shards)
    np.save(folder / "weights.npy", np.random.default_rng(0).uniform(0.5, 1.5, num_images))
    compile_rates(Weighting(weights=folder / "weights.npy"), opened.index, opened.shard_counts, folder / "rates", "weights")
    return shards


def ours(
    location: Path | str,
    interpolation: Any,
    size: int,
    *,
    workers: int = 1,
    kind: Any = "processes",
    rates: Path | None = None,
    cache: ShardCache | None = None,
) -> Iterator[Any]:
    """Yields bamboo's batches."""
    shards = Shards.open(location, cache=cache)
    view = TrainView(size, scale=SCALE, ratio=RATIO, flip=FLIP, interpolation=interpolation)
    column = None if rates is None else open_rates(rates, shards.shard_counts)
    order = Order(shards.shard_counts, seed=SEED, window=WINDOW, rates=column)
    source = TrainBatches(shards, order, view, BATCH, rank=0, world_size=1)
    for batch in load_batches(source, range(sys.maxsize), workers=workers, kind=kind):
        assert batch.images.shape == (BATCH, size, size, 3)
        yield batch


def peer(folder: Path, interpolation: str, size: int, *, floats: bool) -> Iterator[Any]:
    """Yields webdataset's batches, made with Pillow transforms."""
    import webdataset  # who only packs pictures needs none

    mode = transforms.InterpolationMode(interpolation)
    crop = [transforms.RandomResizedCrop(size, SCALE, RATIO, mode), transforms.RandomHorizontalFlip(FLIP)]
    ends = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    stages = webdataset.WebDataset(urls, shardshuffle=len(urls)).repeat().shuffle(256).decode("pil").to_tuple("jpg", "json")
    dataset = stages.map_tuple(transforms.Compose([*crop, *ends]), _label).batched(BATCH)
    for images, labels in webdataset.WebLoader(dataset, batch_size=None, num_workers=1):
        assert images.shape == (BATCH, 3, size, size)
        yield images, labels


def _label(record: dict[str, Any]) -> int:
    return int(record["labels"][0])


def bare(folder: Path, interpolation: str, size: int, *, channels_last: bool) -> Iterator[int]:
    """Yields the number of images cropped, a batch at a time: bamboo's first epoch over and over, by the same boxes and flips."""
    shards = Shards.open(folder)
    source = [torch.frombuffer(bytearray(shards.read(sample)), dtype=torch.uint8) for sample in range(len(shards))]
    ids, keys = Order(shards.shard_counts, seed=SEED, window=WINDOW).take(0, len(shards))
    draws = uniforms(keys, ids, NUM_DRAWS).tolist()
    sides = [(int(shards.index.height[sample]), int(shards.index.width[sample])) for sample in ids]
    boxes = [crop_box(*side, SCALE, RATIO, drawn) for side, drawn in zip(sides, draws, strict=True)]
    work = [(source[sample], *box, drawn[-1] < FLIP) for sample, box, drawn in zip(ids, boxes, draws, strict=True)]
    for start in itertools.cycle(range(0, len(work) - BATCH + 1, BATCH)):
        for encoded, top, left, height, width, flips in work[start : start + BATCH]:
            crop = decode_jpeg(encoded, mode=ImageReadMode.RGB)[:, top : top + height, left : left + width]
            batch = crop.permute(1, 2, 0)[None].permute(0, 3, 1, 2) if channels_last else crop[None]
            view = interpolate(batch, (size, size), mode=interpolation, antialias=True)
            if flips:
                view = view.flip(3)
        yield BATCH


def epoch_of(location: Path | str, interpolation: str, size: int, num_batches: int, cache: Callable[[], ShardCache] | None = None) -> float:
    """Returns the CPU seconds of this process for opening a folder and streaming that many batches without a worker."""
    before = time.process_time()
    batches = ours(location, interpolation, size, workers=0, cache=cache() if cache else None)
    for _ in range(num_batches):
        next(batches)
    used = time.process_time() - before
    batches.close()  # type: ignore[attr-defined]  # a generator, as the function shows
    return used


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Gives the address of a web server of a folder, which runs in a process of its own."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    server = multiprocessing.get_context("fork").Process(target=_serve, args=(folder, sender), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        server.terminate()


def _serve(folder: Path, sender: Any) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the base class gave it
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    sender.send(running.server_address[1])
    threading.current_thread().name = "server"
    running.serve_forever()
