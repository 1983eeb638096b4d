"""The stream against `webdataset` with torchvision's Pillow transforms, against a bare decode-and-crop loop, weighted and remote.

    python benchmarks/loader.py
    python benchmarks/loader.py --rounds 3      # a quick look, which overwrites the results as well

Everyone turns the same JPEGs (500×375 and 64×64) into random-resized crops (of 224 and 64 pixels) with flips, in batches:

    bamboo                TrainBatches → load_batches, uint8 batches, one worker process
    bamboo, weighted      the same on a plan with a weight column
    bamboo, thread        the same as bamboo with one worker thread
    webdataset            WebDataset → shuffle → decode("pil") → RandomResizedCrop, RandomHorizontalFlip, PILToTensor → batched,
                          one worker: the same uint8 pixels at the end
    webdataset, floats    the same with ToTensor and Normalize in place of PILToTensor, as the usual recipes have it
    bare                  decode_jpeg → slice → interpolate → flip, in this process, of encoded images in memory, with bamboo's
                          own boxes, drawn beforehand; it keeps nothing
    bare, channels last   the same with the strides that `bamboo.datasets.augment.crops.resize` sets: the floor of this machine

and bamboo without a worker from the disk, from a web server with an empty cache (cold), and with a full one (warm).
"""

import argparse
import functools
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from provenance import best_ratio, interleave, provenance, ratios, spread, write_results
from streams import BATCH, WARM_BATCHES, Pictures, Stream, bare, epoch_of, make_shards, ours, peer, served

from bamboo.datasets.remote.cache import ShardCache
from bamboo.datasets.shards import Shards

POOLS = {"500×375 to 224": Pictures(500, 375, 224), "64×64 to 64": Pictures(64, 64, 64)}
IMAGES = {"500×375 to 224": 512, "64×64 to 64": 4096}  # in the pool; a round of small ones takes as many times more
ROUND_FACTOR = {"500×375 to 224": 1, "64×64 to 64": 8}
TARGETS = {
    "500×375 to 224": {"webdataset": "≥ 1.6", "bare": "≥ 0.9", "bamboo, weighted": "≤ 1.05"},
    "64×64 to 64": {"webdataset": "≥ 2", "bamboo, weighted": "≤ 1.05"},
}

NOTES = f"""
Crops of JPEGs (quality 90, 4:2:0, 1/f noise; {{kilobytes}}) packed by `bamboo shards pack`; one loader worker
(none for the bare loops and from the cache), one thread per process, warm page cache; {{images}} images a round after
{WARM_BATCHES * BATCH} uncounted ones, {{rounds}} rounds in turn. CPU seconds are user and system time of parent and worker. Ratios
are a contender's CPU seconds over bamboo's, taken within a round and given as median (least – greatest), and once more between
everyone's best rounds, which other work on the machine disturbs least.

- *webdataset*: `shuffle(256)`, `decode("pil")`, `RandomResizedCrop`, `RandomHorizontalFlip`, `PILToTensor`, `batched({BATCH})`: uint8
  batches, equal pixel work. *floats* ends with `ToTensor` and `Normalize` instead, as the usual recipes do in the worker.
- *bare*: torchvision's `decode_jpeg`, a slice, `interpolate(antialias=True)`, `flip`, over encoded images in memory with boxes
  drawn beforehand; nothing is read, batched, kept or handed over. *channels last* gives `interpolate` strides that spare it
  a re-packing (pytorch#68430), as bamboo does.
- *weighted*: rates from 0.5 to 1.5 an epoch. *thread*: a worker thread in place of a process.
- *disk*, *warm*, *cold*: bamboo's CPU seconds from opening the folder to the last of {{epoch}} images without a worker: from the
  disk, through the cache of a web server's folder, and with that cache empty, so with fetching and checking all shards. The server is
  a process of its own, on the same machine, and is not counted.
"""


def contenders(folder: Path, interpolation: Any, size: int) -> dict[str, Stream]:
    """Returns everyone, started."""
    rates = folder.parent / "rates"
    return {
        "bamboo": Stream(ours(folder, interpolation, size)),
        "bamboo, weighted": Stream(ours(folder, interpolation, size, rates=rates)),
        "bamboo, thread": Stream(ours(folder, interpolation, size, kind="threads")),
        "webdataset": Stream(peer(folder, interpolation, size, floats=False)),
        "webdataset, floats": Stream(peer(folder, interpolation, size, floats=True)),
        "bare": Stream(bare(folder, interpolation, size, channels_last=False)),
        "bare, channels last": Stream(bare(folder, interpolation, size, channels_last=True)),
    }


def measure_streams(folder: Path, pool: str, interpolation: Any, num_batches: int, rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of every round of every contender."""
    started = contenders(folder, interpolation, POOLS[pool].size)
    return interleave({name: functools.partial(stream.round, num_batches) for name, stream in started.items()}, rounds)


def measure_remote(folder: Path, pool: str, interpolation: Any, num_batches: int, rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of every round from the disk, from a full and from an empty cache."""
    size, cold, warm = POOLS[pool].size, folder.parent / "cold", folder.parent / "warm"

    def empty_cache() -> ShardCache:
        shutil.rmtree(cold, ignore_errors=True)
        return ShardCache(cold)

    with served(folder) as address:
        ways = {
            "disk": functools.partial(epoch_of, folder, interpolation, size, num_batches),
            "cache, warm": functools.partial(epoch_of, address, interpolation, size, num_batches, lambda: ShardCache(warm)),
            "cache, cold": functools.partial(epoch_of, address, interpolation, size, num_batches, empty_cache),
        }
        return interleave(ways, rounds)


def rows(pool: str, interpolation: str, seconds: dict[str, list[float]], base: str, num_images: int) -> list[list[str]]:
    """Returns the lines of the table for one group of contenders."""
    lines = []
    for name, used in seconds.items():
        rate = spread([num_images / value for value in used])
        ratio = ["1", "1"] if name == base else [str(ratios(used, seconds[base])), f"{best_ratio(used, seconds[base]):.3f}"]
        lines.append([pool, interpolation, name, f"{rate.median:.0f}", *ratio, TARGETS[pool].get(name, "")])
    return lines


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=256, help="images a round; of small ones eight times as many")
    parser.add_argument("--interpolation", choices=["bicubic", "bilinear"], nargs="+", default=["bicubic"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(["torch", "torchvision", "webdataset", "pillow", "numpy"])
    table = [["images", "interpolation", "contender", "images per CPU second", "CPU seconds over bamboo's", "of best rounds", "target"]]
    measured: dict[str, Any] = {}
    kilobytes = []
    for pool, pictures in POOLS.items():
        num_batches = -(-options.images * ROUND_FACTOR[pool] // BATCH)
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_shards(Path(temporary), pictures, IMAGES[pool])
            kilobytes.append(f"{pool.split()[0]}: {float(Shards.open(folder).index.size.mean()) / 1000:.1f} KB on average")
            for interpolation in options.interpolation:
                streams = measure_streams(folder, pool, interpolation, num_batches, options.rounds)
                remote = measure_remote(folder, pool, interpolation, IMAGES[pool] // BATCH, max(options.rounds // 3, 3))
                table += rows(pool, interpolation, streams, "bamboo", num_batches * BATCH)
                table += rows(pool, interpolation, remote, "disk", IMAGES[pool])
                measured[f"{pool}, {interpolation}"] = {**streams, **remote}
    images = " and ".join(f"{-(-options.images * factor // BATCH) * BATCH:,}" for factor in ROUND_FACTOR.values())
    epoch = " and ".join(f"{number:,}" for number in IMAGES.values())
    notes = NOTES.format(kilobytes=", ".join(kilobytes), images=images, rounds=options.rounds, epoch=epoch)
    write_results("loader", "Loader: images per CPU second", made, table, notes, {"unit": "CPU seconds", **measured})


if __name__ == "__main__":
    sys.exit(main())
