"""`bamboo shards bench`: how fast a shard folder streams, stage by stage, and which stage to do something about.

bamboo shards bench shards/ --workers 4
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from ...cli.errors import EXIT_DONE, UserError
from ...cli.progress import Progress
from ..augment.crops import TrainView
from ..plan.order import Order
from ..shard_settings import BenchSettings
from ..shards import Shards
from .batches import Batch, TrainBatches
from .feed import HOLD, CudaCopier, feed
from .loader import Loader
from .stages import Stage

_WARM_S = 0.5
_SCALE, _RATIO, _FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5
_COPIES = 10  # of one batch, to time the transfer alone

_REMEDIES = {
    "plan": "a larger --batch-size spreads the cost of planning over more images",
    "read": "put the shards on a local disk or in a cache that holds the window, or read fewer bytes: pack with --resize",
    "fetch": "shards come slower than they are used: a faster link, a cache that holds the window; run again for a warm cache",
    "queue": "workers wait for shards that others fetch: a faster link; run again for a warm cache",
    "decode": "fewer pixels to decode: pack with --resize; or more workers, while there are idle cores",
    "load": "fewer pixels and bytes: pack with --resize; or more workers, while there are idle cores",
    "crop": "a smaller --image-size, `bilinear` in place of `bicubic`, or more workers, while there are idle cores",
    "collate": "a larger --batch-size",
    "transfer": "the link to the device is the limit: more workers bring nothing",
    "wait": "the workers wait for their consumer: fewer of them do as well",
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run gave: images decoded in `wall_s` seconds, and the seconds that all workers together spent in each stage.

    Not images handed over: the batches that are under way at both ends differ, and with them the work that belongs to an image.
    """

    images: int
    wall_s: float
    workers: int
    spent_s: dict[str, float]
    consumer_waited_s: float
    transfer_s: float  # per image, measured alone; 0 without a device

    def summary(self) -> dict[str, Any]:
        """Returns plain data: rates in images/s, `us` per image, `share` of all workers' time (of the wall clock for transfer)."""
        total = max(sum(self.spent_s.values()), 1e-9)
        stages: dict[str, dict[str, float | None]] = {}
        for name, spent in self.spent_s.items():
            rate = self.images * self.workers / spent if spent and name != "wait" else None
            stages[name] = {"images_per_s": rate, "us": spent / self.images * 1e6, "share": spent / total}
        slowest = max(self.spent_s, key=self.spent_s.__getitem__)
        if self.transfer_s:
            share = self.transfer_s * self.images / self.wall_s
            stages["transfer"] = {"images_per_s": 1 / self.transfer_s, "us": self.transfer_s * 1e6, "share": share}
            if share > 1 - self.spent_s.get("wait", 0.0) / total:  # the link is busier than the workers: it is what all wait for
                slowest = "transfer"
        return {
            "images": self.images,
            "wall_s": self.wall_s,
            "images_per_s": self.images / self.wall_s,
            "consumer_waited_share": self.consumer_waited_s / self.wall_s,
            "stages": stages,
            "slowest": slowest,
            "remedy": _REMEDIES[slowest],
        }


def run(config: BenchSettings) -> int:
    """Measures, prints the table or JSON, and returns the exit code."""
    shards = Shards.open(config.folder)
    if len(shards) == 0:
        raise UserError(f"{shards.folder}: holds no sample")
    summary = measure(shards, config).summary()
    summary["settings"] = {name: getattr(config, name) for name in ("workers", "kind", "batch_size", "image_size", "window", "device")}
    if config.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(table(str(shards.folder), summary)) + "\n")
    return EXIT_DONE


def measure(shards: Shards, config: BenchSettings) -> Measured:
    """Streams training batches of random-resized crops and returns what the workers' clocks say."""
    device = _device(config.device)
    view = TrainView(config.image_size, scale=_SCALE, ratio=_RATIO, flip=_FLIP, interpolation=config.interpolation)
    order = Order(shards.shard_counts, seed=config.seed, window=config.window)
    source = TrainBatches(shards, order, view, config.batch_size, rank=0, world_size=1)
    loader = Loader(source, range(sys.maxsize), workers=config.workers, prefetch=config.prefetch, kind=config.kind, hold=HOLD)
    with loader:
        batches = feed(loader, device)
        rate = _warm(batches, config)
        before, waited = _spent(loader), loader.waited_s
        images, wall_s = _pull(batches, loader, config, rate, str(shards.folder))
        after = _spent(loader)
        spent = {name: after[name] - before[name] for name in after if after[name]}
        transfer_s = _transfer_s(loader, device, next(iter(batches))) if device.type == "cuda" else 0.0
        return Measured(images, wall_s, max(config.workers, 1), spent, loader.waited_s - waited, transfer_s)


def table(what: str, summary: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the report."""
    yield f"{what}: {summary['images_per_s']:,.0f} images/s ({summary['images']:,} images in {summary['wall_s']:.1f} s)"
    yield f"{'stage':<10}{'images/s':>12}{'µs an image':>14}{'share':>9}"
    for name, stage in summary["stages"].items():
        rate = "" if stage["images_per_s"] is None else f"{stage['images_per_s']:,.0f}"
        yield f"{name:<10}{rate:>12}{stage['us']:>14.1f}{stage['share']:>9.1%}"
    yield "images/s: what the workers would reach if they did nothing else; share: of their time (transfer: of the wall clock)"
    yield f"the consumer waited for {summary['consumer_waited_share']:.0%} of the time"
    yield f"slowest: {summary['slowest']}; {summary['remedy']}"


def _device(name: str) -> torch.device:
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise UserError("--device=cuda: this machine has no CUDA device; use --device cpu or auto")
    return torch.device("cpu")


def _warm(batches: Iterator[Batch], config: BenchSettings) -> float:
    """Takes what was made ahead, and then some; returns images per second."""
    for _ in range(config.workers * config.prefetch + 1):
        next(batches)
    started, images = time.perf_counter(), 0
    while not images or time.perf_counter() - started < _WARM_S:
        images += len(next(batches).labels)
    return images / (time.perf_counter() - started)


def _pull(batches: Iterator[Batch], loader: Loader, config: BenchSettings, rate: float, what: str) -> tuple[int, float]:
    """Takes batches until as many images are decoded as asked for, or about as many as take the seconds; returns (images, seconds)."""
    wanted = config.images or max(round(rate * config.seconds), 1)
    limit_s = float("inf") if config.images else 2 * config.seconds
    started, before, images = time.perf_counter(), _images(loader), 0
    with Progress(wanted, f"bench of {what}") as progress:
        while images < wanted and time.perf_counter() - started < limit_s:
            next(batches)
            done, images = images, _images(loader) - before
            progress.advance(images - done)
    return images, time.perf_counter() - started


def _images(loader: Loader) -> int:
    return sum(loader.readings.images(worker) for worker in range(loader.readings.num_workers))


def _spent(loader: Loader) -> dict[str, float]:
    readings = [loader.readings.spent_s(worker) for worker in range(loader.readings.num_workers)]
    return {stage.name.lower(): sum(spent[stage] for spent in readings) for stage in (*list(Stage)[1:], Stage.WAIT)}


def _transfer_s(loader: Loader, device: torch.device, batch: Batch) -> float:
    """Returns the seconds per image of the copy to the device alone."""
    host = batch._replace(images=loader.slots[0], labels=batch.labels.cpu())
    copier = CudaCopier(device, locked=loader.slots.is_pinned())
    copier.start(host).source_is_free()
    started = time.perf_counter()
    for _ in range(_COPIES):
        copier.start(host).source_is_free()
    return (time.perf_counter() - started) / (_COPIES * len(batch.labels))
