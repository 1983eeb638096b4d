"""Growing over a pool of features, in a process of its own: our way, and InfoGrowth's. `growth.py` starts these.

    python benchmarks/growth_ways.py ours POOL.npy 60000 FOLDER      prints the figures as JSON, leaves gains.npy in FOLDER
    torchrun --nproc-per-node 2 benchmarks/growth_ways.py ours POOL.npy 60000 FOLDER

InfoGrowth's is written from the description of its method (arXiv 2405.18347): a graph by hnswlib, cosine, M 48, efConstruction 100,
ef 32; one sample at a time is looked for, k = 4, and then goes in.
"""

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bamboo.datasets.atomic import sha256_json
from bamboo.datasets.feature_folder import FeatureFolder
from bamboo.datasets.growth.audit import audit, audited_rows
from bamboo.datasets.growth.codes import Codes
from bamboo.datasets.growth.growing import Memory, Rules, grow_source
from bamboo.datasets.growth.hnsw import BUILD_WIDTH, LINKS, SEARCH_WIDTH
from bamboo.datasets.growth.index import CellIndex, CodeStore
from bamboo.datasets.growth.inputs import Encoded, Inputs
from bamboo.datasets.growth.lists import FaissLists, Ids, Neighbours
from bamboo.datasets.growth.settings import EFFORT, EngineSettings
from bamboo.datasets.growth.settling import settled_gains
from bamboo.datasets.growth.state import Codebook, SourceFolder
from bamboo.datasets.ranks import Ranks, start_ranks

K, AUDITED = 4, 1500
RULES = Rules(k=K, alignment=0.4, duplicate_distance=0.05)

_SHARD, _LOOK_EVERY_S = 10_000, 0.05

Figures = dict[str, Any]


class Clock:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds what the block takes to a part."""
        started = time.process_time()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - started


class TimedLists(FaissLists):
    """faiss' lists, timed."""

    def __init__(self, width: int, num_cells: int, clock: Clock) -> None:
        super().__init__(width, num_cells)
        self._clock = clock

    def add(self, codes_BD: Codes, ids: Ids, cells: Ids) -> None:
        """As `FaissLists` does."""
        with self._clock("add"):
            super().add(codes_BD, ids, cells)

    def search(self, codes_BD: Codes, cells_BP: Ids, k: int, before_B: Ids) -> Neighbours:
        """As `FaissLists` does."""
        with self._clock("scan"):
            return super().search(codes_BD, cells_BP, k, before_B)


class TimedIndex(CellIndex):
    """The index, timed; it notes how many cells were compared with each sample."""

    def __init__(self, width: int, ranks: Ranks, clock: Clock) -> None:
        super().__init__(width, ranks, EFFORT, 0, lambda width, cells: TimedLists(width, cells, clock))
        self._clock, self.cells_compared, self.samples = clock, 0, 0

    def take(self, codes_BD: Codes, ids_B: Ids, k: int) -> Neighbours:
        """As `CellIndex` does."""
        self.cells_compared += len(ids_B) * (self.num_cells if self.num_cells > 1 else 0)
        self.samples += len(ids_B)
        with self._clock("take"):
            return super().take(codes_BD, ids_B, k)

    def settle(self, store: CodeStore) -> None:
        """As `CellIndex` does."""
        before = self._clock.seconds.get("add", 0.0)
        with self._clock("settle"):
            super().settle(store)
        self._clock.seconds["settle_add"] = self._clock.seconds.get("settle_add", 0.0) + self._clock.seconds.get("add", 0.0) - before


class OwnMemory:
    """The greatest memory a process held for itself, mapped files apart, above what it held before; in MB."""

    def __init__(self) -> None:
        self._before = self.peak = own_mb()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(_LOOK_EVERY_S):
            self.peak = max(self.peak, own_mb())

    def end(self) -> Figures:
        """Returns `peak_mb` and, of now, `held_mb`."""
        self._is_over.set()
        self._thread.join()
        held = own_mb()
        return {"peak_mb": max(self.peak, held) - self._before, "held_mb": held - self._before}


def own_mb() -> float:
    """Returns the resident memory of this process that is no file's."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


def inputs_over(path: Path, count: int) -> Inputs:
    """Returns the first `count` features of a pool, as those of a shard folder that is not there."""
    features = np.load(path, mmap_mode="r")[:count]
    folder = FeatureFolder(path, features, np.zeros(0, np.int64), {"identity": {}, "features_sha256": path.stem})
    counts = np.full(-(-count // _SHARD), _SHARD, np.int64)
    counts[-1] = count - counts[:-1].sum()
    return Inputs(
        location=path.stem,
        data_hash=path.stem,
        shards=tuple(f"shard-{number:06d}.tar" for number in range(len(counts))),
        shard_counts=counts,
        shard_bytes=tuple(counts.tolist()),
        classes=(),
        labels=(np.arange(count) % 1000).astype(np.int32),
        place=(np.arange(count, dtype=np.uint64), np.arange(count) * 512, np.full(count, 400)),
        encoded={"image": Encoded(folder, "--image")},
        recaptions=None,
    )


def ours(path: Path, count: int, folder: Path) -> Figures:
    """Grows as `bamboo grow` does: a state on the disk, columns, audit, hashes; and, counted apart, the settled gains."""
    ranks, clock = start_ranks("cpu"), Clock()
    inputs, source = inputs_over(path, count), SourceFolder(folder, 0)
    started, wall, own = time.process_time(), time.perf_counter(), OwnMemory()
    index, codebook = TimedIndex(inputs.encoded["image"].width, ranks, clock), Codebook(folder, "image", inputs.encoded["image"].width)
    memory = Memory({"image": index}, {"image": codebook}, [inputs.labels])
    if ranks.is_first:
        source.begin({"shards": list(inputs.shards)}, inputs.labels)
    ranks.barrier()
    grow_source(inputs, source, memory, RULES, ranks)
    with clock("audit"):
        rows = audited_rows(count, EngineSettings().audit_samples, 0, 0)
        gains = source.columns_of_parts()["image_gain"]
        audit("image", codebook, rows, gains[rows], K, index.num_cells, ranks)
    with clock("finish"):
        if ranks.is_first:
            source.finish(inputs.shards, inputs.shard_counts, {})
        ranks.barrier()
    seconds, wall_s, held = time.process_time() - started, time.perf_counter() - wall, own.end()
    parts = dict(clock.seconds)
    rows = audited_rows(count, AUDITED, 0, 0)
    audited = audit("image", codebook, rows, gains[rows], K, index.num_cells, ranks)  # the more samples, for the table
    with clock("settled pass"):
        settled = settled_gains(memory, K, ranks)["image"]
    np.save(folder / "gains.npy", gains) if ranks.is_first else None
    ranks.close()
    return {
        "cpu_s": seconds,
        "wall_s": wall_s,
        **held,
        "disk_bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "gains.npy"),
        "cells": index.num_cells,
        "cells_compared": index.cells_compared / index.samples,
        "parts_s": {**parts, "settled pass": clock.seconds["settled pass"]},
        "missed_p99": audited.p99,
        "result": sha256_json([source.card["files"], settled.tobytes().hex()]),
    }


def seed(path: Path, count: int, folder: Path) -> Figures:
    """Grows as InfoGrowth does; its graph is written once the clock has stopped, only to see its size."""
    import hnswlib

    features = np.load(path, mmap_mode="r")
    started, wall, own = time.process_time(), time.perf_counter(), OwnMemory()
    index = hnswlib.Index(space="cosine", dim=features.shape[1])
    index.init_index(max_elements=count, M=LINKS, ef_construction=BUILD_WIDTH)
    index.set_ef(SEARCH_WIDTH)
    index.set_num_threads(1)
    gains = np.ones(count, np.float32)
    for row in range(count):
        feature = features[row : row + 1]
        if row:
            gains[row] = index.knn_query(feature, k=min(K, row))[1].mean()
        index.add_items(feature, [row])
    seconds, wall_s, held = time.process_time() - started, time.perf_counter() - wall, own.end()
    np.save(folder / "gains.npy", gains)
    index.save_index(str(folder / "graph"))
    return {"cpu_s": seconds, "wall_s": wall_s, **held, "disk_bytes": (folder / "graph").stat().st_size}


WAYS: dict[str, Callable[[Path, int, Path], Figures]] = {"ours": ours, "seed": seed}


def exact_gains(features: npt.NDArray[np.float32], rows: Ids) -> npt.NDArray[np.float64]:
    """Returns float64[A] the causal gains of some rows, by all earlier features as they are."""
    wanted, best = torch.from_numpy(np.asarray(features[rows])), torch.full((len(rows), K), -torch.inf)
    for start in range(0, int(rows.max(initial=0)) + 1, _SHARD):
        near = wanted @ torch.from_numpy(np.array(features[start : start + _SHARD])).T
        near.masked_fill_(torch.arange(start, start + near.shape[1])[None] >= torch.from_numpy(rows)[:, None], -torch.inf)
        best = torch.cat([best, near.topk(K, dim=1)[0]], 1).topk(K, dim=1)[0]
    cosines = best.double().numpy()
    is_there = np.isfinite(cosines)
    return np.where(is_there.any(1), np.where(is_there, 1 - cosines, 0).sum(1) / np.maximum(is_there.sum(1), 1), 1.0)


def bare_product_s(features: npt.NDArray[np.float32], count: int) -> float:
    """Returns the CPU seconds that the matrix product of every sample with all earlier ones would take: a slice of it, scaled up."""
    rows, others = (torch.from_numpy(np.array(features[:size])) for size in (1024, 16_384))
    rows @ others.T
    best = float("inf")
    for _ in range(5):
        started = time.process_time()
        rows @ others.T
        best = min(best, time.process_time() - started)
    return best * (count / len(rows)) * (count / len(others)) / 2


def main() -> None:
    """Runs one way, and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("pool", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(WAYS[options.way](options.pool, options.count, options.folder)) + "\n")


if __name__ == "__main__":
    main()
