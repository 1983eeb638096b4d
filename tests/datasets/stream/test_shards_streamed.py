"""Real shards streamed: the same global batches whatever number of ranks and workers makes them, from wherever it starts."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bamboo.cli.errors import DataError
from bamboo.datasets.augment.crops import EvalView, TrainView
from bamboo.datasets.plan.order import Order
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import EvalBatches, TrainBatches
from bamboo.datasets.stream.loader import load_batches

GLOBAL_BATCH = 12
VIEW = TrainView(16, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")
EVAL_VIEW = EvalView(16, crop_fraction=1.0, interpolation="bilinear")

Rows = list[tuple[int, int, int, bytes]]


@pytest.fixture
def shards(pool: Path) -> Shards:
    """Returns the 101 training samples in six shards."""
    return Shards.open(pool / "train")


def source(shards: Shards, rank: int = 0, world_size: int = 1, seed: int = 0, unit: int = 1) -> TrainBatches:
    """Returns one rank's training batches."""
    return TrainBatches(shards, Order(shards.shard_counts, seed=seed, window=2), VIEW, GLOBAL_BATCH, rank, world_size, unit)


def joined(batches: Iterable[Rows]) -> Rows:
    """Returns the rows of several batches as one list."""
    return [row for batch in batches for row in batch]


def rows(batches: Any, numbers: range, workers: int = 0) -> list[Rows]:
    """Returns each batch as (id, place, label, pixels) rows."""
    made = []
    for batch in load_batches(batches, numbers, workers=workers):
        pixels = [image.numpy().tobytes() for image in batch.images]
        made.append(list(zip(batch.ids.tolist(), batch.places.tolist(), batch.labels.tolist(), pixels, strict=True)))
    return made


def test_batches_do_not_depend_on_workers(shards: Shards) -> None:
    """0, 1 and 3 workers, across an epoch's border: equal ids, places, labels and pixels."""
    expected = rows(source(shards), range(20))
    for workers in (1, 3):
        assert rows(source(shards), range(20), workers) == expected


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_global_batches_do_not_depend_on_ranks(shards: Shards, world_size: int) -> None:
    """The ranks' slices side by side against one rank's batches: equal, pixels included, also where slices are uneven."""
    expected = rows(source(shards), range(10))
    parts = [rows(source(shards, rank, world_size), range(10)) for rank in range(world_size)]
    assert [joined(batch) for batch in zip(*parts, strict=True)] == expected


def test_starting_anywhere_continues_the_sequence(shards: Shards) -> None:
    """Batches from number 7 on, with another number of workers, against the tail of the whole sequence."""
    assert rows(source(shards), range(7, 15), workers=2) == rows(source(shards), range(15))[7:]


def test_every_sample_once_an_epoch(shards: Shards) -> None:
    """Two epochs of 101 samples in batches of 12: each id twice, each place once, labels as in the index."""
    seen = joined(rows(source(shards), range(17)))[: 2 * 101]
    assert sorted(row[0] for row in seen) == sorted([*range(101)] * 2)
    assert [row[1] for row in seen] == list(range(202))
    assert all(row[2] == shards.labels[row[0]] for row in seen)


def test_crops_are_keyed_by_sample_and_epoch(shards: Shards) -> None:
    """A sample's two crops of two epochs differ; another seed's differ; the same epoch's are equal whatever batch they are in."""
    seen = joined(rows(source(shards), range(17)))
    first, second = ({row[0]: row[3] for row in seen if row[1] // 101 == epoch} for epoch in (0, 1))
    assert np.mean([first[sample] != second[sample] for sample in first]) > 0.95
    other = {row[0]: row[3] for row in joined(rows(source(shards, seed=1), range(8)))}
    assert np.mean([first[sample] != other[sample] for sample in other]) > 0.95


def test_batches_are_channels_last_bytes(shards: Shards) -> None:
    """uint8[B, S, S, 3], contiguous, so that the model's channels-last view is a permutation of strides."""
    batch = next(iter(load_batches(source(shards), range(1), workers=0)))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (12, 16, 16, 3)
    assert batch.images.permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)
    assert batch.valid.all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_until_the_next_is_taken(shards: Shards, workers: int) -> None:
    """Slots of the ring are not written while their batch is in use: pixels at hand equal a copy made at once, after a pause."""
    import time

    expected = rows(source(shards), range(12))
    for batch, wanted in zip(load_batches(source(shards), range(12), workers=workers), expected, strict=True):
        time.sleep(0.03)
        assert [image.numpy().tobytes() for image in batch.images] == [row[3] for row in wanted]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_sample_once(shards: Shards, world_size: int) -> None:
    """Batches of 7 over 101 samples: every rank the same number, valid rows are each sample once, padding is marked."""
    sources = [EvalBatches(shards, EVAL_VIEW, 7, rank, world_size) for rank in range(world_size)]
    assert len({len(part) for part in sources}) == 1
    seen, padding = [], 0
    for part in sources:
        for batch in load_batches(part, range(len(part)), workers=0):
            assert len(batch.images) == 7
            assert torch.equal(batch.labels[~batch.valid], torch.full((int((~batch.valid).sum()),), -1))
            seen += batch.ids[batch.valid].tolist()
            padding += int((~batch.valid).sum())
    assert sorted(seen) == list(range(101))
    assert padding == len(sources[0]) * 7 * world_size - 101


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["image", "shard"])
def test_damage_is_named(pool: Path, tmp_path: Path, workers: int, damage: str) -> None:
    """An image overwritten, or a shard cut after it was opened: DataError with the shard, and the key of the image."""
    import shutil

    shutil.copytree(pool / "train", tmp_path / "train")
    shards = Shards.open(tmp_path / "train")
    victim = tmp_path / "train" / shards.manifest.shards[2].name
    with victim.open("r+b") as file:
        if damage == "shard":
            file.truncate(2000)
        else:
            sample = int(shards.shard_counts[:2].sum())
            file.seek(int(shards.index.offset[sample]))
            file.write(b"\0" * int(shards.index.size[sample]))
    with pytest.raises(DataError, match=victim.name) as caught:
        rows(source(shards), range(9), workers)
    assert ("000000040" in str(caught.value)) == (damage == "image")
    assert "Traceback" not in str(caught.value)
