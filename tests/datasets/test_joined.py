"""Several shard folders as one store, against each folder alone."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bamboo.cli.errors import UserError
from bamboo.datasets.joined import JoinedShards
from bamboo.datasets.shards import Shards
from tests.conftest import pack, write_pool


def test_samples_and_shards_are_numbered_through(pool: Path) -> None:
    """Training and validation folder joined: pixels, labels, names and shards of each sample are its folder's; also from a pickled copy."""
    parts = [Shards.open(pool / "train"), Shards.open(pool / "val")]
    joined = JoinedShards(parts)
    assert len(joined) == 138
    for store in (joined, pickle.loads(pickle.dumps(joined))):
        for sample, part, inside in ((0, 0, 0), (100, 0, 100), (101, 1, 0), (137, 1, 36)):
            assert torch.equal(store.load(sample), parts[part].load(inside))
            assert store.name(sample).endswith(parts[part].name(inside))
            ordinal, name = parts[part].shard_of(inside)
            assert store.shard_of(sample) == (ordinal + 6 * part, name)
    expected = np.concatenate([part.labels for part in parts])
    assert np.array_equal(joined.labels, expected)
    samples = np.array([137, 5, -1, 101, 100])
    assert joined.labels_of(samples).tolist() == [*expected[[137, 5]].tolist(), -1, *expected[[101, 100]].tolist()]


def test_a_single_folder_keeps_its_identity(pool: Path) -> None:
    """One folder: its own data hash; two: another, which depends on their order."""
    train, val = Shards.open(pool / "train"), Shards.open(pool / "val")
    assert JoinedShards([train]).data_hash == train.data_hash
    hashes = {JoinedShards(parts).data_hash for parts in ([train], [val], [train, val], [val, train])}
    assert len(hashes) == 4


def test_other_classes_are_refused(pool: Path, tmp_path: Path) -> None:
    """A folder of other classes: both counts and the remedy."""
    write_pool(tmp_path / "images", 9, seed=3)
    (tmp_path / "images" / "waves").rename(tmp_path / "images" / "ripples")
    pack(tmp_path / "images", tmp_path / "more")
    with pytest.raises(UserError, match="pack both with one --classes"):
        JoinedShards([Shards.open(pool / "train"), Shards.open(tmp_path / "more")])
