"""The validation split: its properties for any labels, and a golden digest that must be the same on every machine."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bamboo.linear_probe.splits import stratified_split


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 6), min_size=2, max_size=120).filter(
        lambda labels: any(labels.count(label) > 1 for label in set(labels) - {-1})
    ),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_every_property_of_a_stratified_split(labels: list[int], fraction: float, seed: int) -> None:
    """Any labels: the sides are disjoint and complete, classes of ≥ 2 rows are on both, quotas are within one row of fraction · n_c."""
    array = np.array(labels, np.int64)
    split = stratified_split(array, fraction, seed)
    assert sorted([*split.train.tolist(), *split.val.tolist()]) == np.flatnonzero(array >= 0).tolist()
    assert split.digest == stratified_split(array, fraction, seed).digest
    for label in set(labels) - {-1}:
        total = labels.count(label)
        held = int((array[split.val] == label).sum())
        if total == 1:
            assert held == 0
        else:
            assert 1 <= held <= total - 1
            assert held in (1, total - 1) or abs(held - fraction * total) < 1
    assert set(split.train.dtype.str) <= set("<i8>=")


def test_the_total_is_rounded_once() -> None:
    """Ten classes of 13 rows at 20 %: quotas of 2.6 make 26 rows in all (largest remainder), lower ids first at equal remainders."""
    labels = np.repeat(np.arange(10), 13)
    split = stratified_split(labels, 0.2, 0)
    assert np.bincount(labels[split.val]).tolist() == [3] * 6 + [2] * 4


def test_the_split_is_golden(tmp_path: Path) -> None:
    """Rows chosen for a fixed seed against recorded ones: a change is a breaking change; another seed differs; the file holds it."""
    labels = np.arange(40) % 4
    split = stratified_split(labels, 0.25, 7)
    assert split.val.tolist() == GOLDEN
    assert stratified_split(labels, 0.25, 8).digest != split.digest
    split.write(tmp_path / "split.npz")
    with np.load(tmp_path / "split.npz", allow_pickle=False) as stored:
        assert stored["val"].tolist() == GOLDEN
        assert str(stored["digest"]) == split.digest


def test_what_cannot_be_split_is_refused() -> None:
    """One row per class, and fractions out of range."""
    with pytest.raises(ValueError, match="no class has two rows"):
        stratified_split(np.arange(5), 0.2, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_split(np.zeros(5, np.int64), 1.0, 0)


GOLDEN = [4, 8, 16, 23, 29, 31, 33, 34, 37, 38]
