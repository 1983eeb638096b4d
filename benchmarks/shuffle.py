"""How well orders are shuffled: ours, webdataset's and a full shuffle, on a pool packed in random order and on one sorted by class.

python benchmarks/shuffle.py

full                   a permutation of all samples, which needs random access to everything
bamboo, window W       `bamboo.datasets.plan.order.Order`: W shards are read at a time, up to 2 W where two epochs meet
webdataset, buffer B   all shards in random order, read one after another through `webdataset.shuffle(B)`, one worker
"""

import argparse
import dataclasses
import random
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import webdataset
from provenance import provenance, write_results

from bamboo.datasets.plan.order import Order

SAMPLES, CLASSES, SHARDS, BATCH = 1_281_167, 1000, 1282, 256
WINDOWS, BUFFERS = (32, 64), (1000, 5000)
TARGET = 0.05

Ids = npt.NDArray[np.int64]

NOTES = f"""
One epoch of {SAMPLES:,} samples of {CLASSES:,} classes in {SHARDS:,} shards (ImageNet's size), seed 0.

- *displacement*: mean distance between a sample's place in storage and in the epoch, over N / 3, which a full shuffle has.
- *run*: mean length of runs of one class. *longest*: the longest one.
- *classes in a batch*: different classes among {BATCH} samples, mean over batches.
- *neighbours apart*: mean distance in the epoch between neighbours in storage, over N / 3: what no window of shards can give,
  since a shard is read within one window.

Target: displacement and run within {TARGET:.0%} of the full shuffle with at most 64 shards in the cache, so with a window of 32.
A pool packed by `bamboo shards pack` is in random order unless asked otherwise. One that others sorted by class shows what a
window cannot do: a batch then holds about as many classes as shards are open.
"""


@dataclasses.dataclass(frozen=True)
class Quality:
    """What an order is like."""

    displacement: float
    run: float
    longest: int
    classes: float
    apart: float


def quality(ids: Ids, labels: Ids) -> Quality:
    """Returns the figures of an epoch's sample ids, a permutation of N, over int64[N] labels by id."""
    places = np.empty_like(ids)
    places[ids] = np.arange(len(ids))
    seen = labels[ids]
    borders = np.flatnonzero(np.diff(seen)) + 1
    runs = np.diff(np.concatenate([[0], borders, [len(seen)]]))
    batches = np.sort(seen[: len(seen) // BATCH * BATCH].reshape(-1, BATCH), axis=1)
    third = len(ids) / 3
    return Quality(
        displacement=float(np.abs(places - np.arange(len(ids))).mean() / third),
        run=float(runs.mean()),
        longest=int(runs.max()),
        classes=float((np.diff(batches, axis=1) > 0).sum(1).mean() + 1),
        apart=float(np.abs(np.diff(places)).mean() / third),
    )


def peer(counts: Ids, buffer: int) -> Ids:
    """Returns the order in which webdataset's buffer hands out the samples of shuffled shards."""
    chance = random.Random(0)
    shards = list(range(len(counts)))
    chance.shuffle(shards)
    starts = np.cumsum(counts) - counts

    def stream() -> Iterator[int]:
        for shard in shards:
            yield from range(int(starts[shard]), int(starts[shard] + counts[shard]))

    shuffled = webdataset.shuffle(buffer, initial=buffer, rng=chance)(stream())
    return np.fromiter(shuffled, np.int64, int(counts.sum()))


def orders() -> dict[str, Ids]:
    """Returns one epoch of every contender."""
    counts = np.full(SHARDS, SAMPLES // SHARDS, np.int64)
    counts[: SAMPLES % SHARDS] += 1
    made = {"full": np.random.default_rng(0).permutation(SAMPLES)}
    made |= {f"bamboo, window {window}": Order(counts, seed=0, window=window).take(0, SAMPLES).ids for window in WINDOWS}
    made |= {f"webdataset, buffer {buffer:,}": peer(counts, buffer) for buffer in BUFFERS}
    return made


def main() -> None:
    """Measures, prints the table and writes the results."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    made = provenance(["numpy", "webdataset"])
    by_class = np.arange(SAMPLES) * CLASSES // SAMPLES
    pools = {"packed in random order": np.random.default_rng(1).permutation(by_class), "sorted by class": by_class}
    table = [["pool", "order", "displacement", "run", "longest", "classes in a batch", "neighbours apart"]]
    figures: dict[str, dict[str, float]] = {}
    contenders = orders()
    for pool, labels in pools.items():
        for name, ids in contenders.items():
            assert np.array_equal(np.sort(ids), np.arange(SAMPLES))
            found = quality(ids, labels)
            figures[f"{pool}: {name}"] = dataclasses.asdict(found)
            cells = [f"{found.displacement:.3f}", f"{found.run:.4f}", str(found.longest), f"{found.classes:.1f}", f"{found.apart:.4f}"]
            table.append([pool, name, *cells])
    for pool in pools:
        full, ours = figures[f"{pool}: full"], figures[f"{pool}: bamboo, window 32"]
        for name in ("displacement", "run"):
            off = ours[name] / full[name] - 1
            sys.stderr.write(f"{pool}: {name} {off:+.2%} of the full shuffle (target ± {TARGET:.0%})\n")
    write_results("shuffle", "Shuffle: quality of one epoch's order", made, table, NOTES, figures)


if __name__ == "__main__":
    sys.exit(main())
