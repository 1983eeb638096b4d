"""Vectors to grow over, growth without images, exact gains to compare with, and ranks that are threads.

    torchrun --nproc-per-node 2 -m tests.datasets.growth.grown STATE      grows over 20,000 vectors
"""

import dataclasses
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bamboo.datasets.feature_folder import read_features, write_features
from bamboo.datasets.growth.columns import Columns
from bamboo.datasets.growth.growing import Memory, Rules, grow_source
from bamboo.datasets.growth.index import CellIndex
from bamboo.datasets.growth.inputs import Encoded, Inputs
from bamboo.datasets.growth.state import Codebook, SourceFolder
from bamboo.datasets.ranks import ALONE, Ranks, start_ranks

T = TypeVar("T")
Floats = npt.NDArray[np.float32]

RULES = Rules(k=4, alignment=0.4, duplicate_distance=0.05)
IDENTITY = {"checkpoint": "c0ffee", "preprocessing": {"size": 32}, "precision": "fp32"}


def vectors(count: int, width: int = 64, seed: int = 0, num_clusters: int = 300) -> Floats:
    """Returns float32[count, width] vectors in clusters of uneven size, in random order."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_clusters, width))
    share = 1 / np.arange(1, num_clusters + 1)
    cluster = random.choice(num_clusters, count, p=share / share.sum())
    return np.asarray(centres[cluster] + 0.7 * random.normal(size=(count, width)), np.float32)


def exact_gains(features: npt.NDArray[Any], k: int = 4, kept: npt.NDArray[np.bool_] | None = None) -> Floats:
    """Returns float32[N] causal gains by brute force over unrounded features; `kept` says who counts as a neighbour."""
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    gains = np.ones(len(unit))
    for start in range(0, len(unit), 1000):
        near = unit[start : start + 1000] @ unit[: start + 1000].T
        near[np.arange(near.shape[1])[None] >= np.arange(start, start + len(near))[:, None]] = -np.inf
        if kept is not None:
            near[:, ~kept[: near.shape[1]]] = -np.inf
        best = np.sort(near, axis=1)[:, -k:]
        counts = np.isfinite(best).sum(1)
        sums = np.where(np.isfinite(best), 1 - best, 0).sum(1)
        gains[start : start + 1000] = np.where(counts > 0, sums / np.maximum(counts, 1), 1)
    return gains.astype(np.float32)


def encoded(folder: Path, features: npt.NDArray[Any], data_hash: str = "da7a", option: str = "--image", **identity: object) -> Encoded:
    """Returns features, written as a feature folder and read again."""
    labels = np.full(len(features), -1, np.int64)
    write_features(folder, features, labels, [], {"data": data_hash, **IDENTITY, **identity}, {"numpy": np.__version__})
    return Encoded(read_features(folder), option)


def inputs_of(parts: dict[str, Encoded], labels: npt.NDArray[Any] | None = None, recaptions: Encoded | None = None) -> Inputs:
    """Returns the inputs of a step over a shard folder that is not there: two shards of samples."""
    count = len(next(iter(parts.values())).folder.features)
    place = np.arange(count, dtype=np.uint64), np.arange(count) * 1000, np.full(count, 500)
    return Inputs(
        location="nowhere",
        data_hash="da7a",
        shards=("a.tar", "b.tar"),
        shard_counts=np.array([count // 3, count - count // 3]),
        shard_bytes=(1000, 2000),
        classes=(),
        labels=np.full(count, -1, np.int32) if labels is None else np.asarray(labels, np.int32),
        place=place,
        encoded=parts,  # type: ignore[arg-type]  # the two names of modalities
        recaptions=recaptions,
    )


def grow(inputs: Inputs, state: Path, ranks: Ranks = ALONE, *, effort: int = 2200, index: Callable[..., Any] | None = None) -> Columns:
    """Grows over one source of an empty state, or goes on with it, and returns its columns."""
    folder = SourceFolder(state, 0)
    codebooks = {name: Codebook(state, name, part.width) for name, part in inputs.encoded.items()}
    make = index or (lambda width: CellIndex(width, ranks, effort, 0))
    memory = Memory({name: make(part.width) for name, part in inputs.encoded.items()}, codebooks, [inputs.labels])
    for number in range(folder.num_parts()):
        for codebook in codebooks.values():
            codebook.append(folder.part(number, tuple(codebooks)))
    memory.settle()
    grow_source(inputs, folder, memory, RULES, ranks)
    return folder.columns_of_parts()


class ThreadRanks(Ranks):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, box: list[Any]) -> None:
        super().__init__(rank, rank, world_size, torch.device("cpu"))
        vars(self).update(wall=barrier, box=box)

    def barrier(self) -> None:
        """Waits for all threads."""
        vars(self)["wall"].wait(60)

    def from_all(self, value: T) -> list[T]:
        """Returns the values of all threads."""
        box: list[Any] = vars(self)["box"]
        box[self.rank] = value
        self.barrier()
        found = list(box)
        self.barrier()
        return found


def with_ranks(count: int, work: Callable[[Ranks], T]) -> list[T]:
    """Returns what `work` returns in every one of `count` threads; what one raises is raised."""
    barrier, box = threading.Barrier(count), [None] * count
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, count, barrier, box))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            results[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, threading.BrokenBarrierError):
            raise result
    return results


def main() -> None:
    """Grows over 20,000 vectors as one rank of a job, from a feature folder beside the state."""
    torch.set_num_threads(1)
    ranks, state = start_ranks("cpu"), Path(sys.argv[1])
    inputs = inputs_of({"image": dataclasses.replace(Encoded(read_features(state.parent / "features"), "--image"))})
    grow(inputs, state, ranks)
    ranks.close()


if __name__ == "__main__":
    main()
