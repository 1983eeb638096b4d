"""The validation split: its properties for any labels, and a golden digest that must be the same on every machine."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bamboo.linear_probe.splits import digest_of, official_split, stratified_split, write_split


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
    write_split(tmp_path / "split.npz", np.arange(40), split)
    with np.load(tmp_path / "split.npz", allow_pickle=False) as stored:
        assert stored["val"].tolist() == GOLDEN
        assert stored["rows"].tolist() == list(range(40))
        assert (str(stored["digest"]), str(stored["rows_digest"])) == (split.digest, digest_of(np.arange(40)))
    write_split(tmp_path / "rows.npz", np.arange(40), None)
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as stored:
        assert set(stored.files) == {"rows", "rows_digest"}


def test_the_official_split_is_taken_as_it_is() -> None:
    """Validation rows in any order: that side ascending, the labelled others train; each way in which they cannot be right is refused."""
    labels = np.array([0, 1, 0, 1, -1, 0, -1])
    split = official_split(labels, np.array([4, 3, 0]))
    assert (split.train.tolist(), split.val.tolist()) == ([1, 2, 5], [0, 3])
    for rows, reason in (
        ([0, 0], "given twice"),
        ([7], "must be in"),
        ([-1], "must be in"),
        ([], "5 labelled rows train and 0 validate"),
        ([0, 1, 2, 3, 5], "0 labelled rows train"),
        ([1, 3], r"classes \[1\] have validation rows only"),
    ):
        with pytest.raises(ValueError, match=reason):
            official_split(labels, np.array(rows, np.int64))


def test_what_cannot_be_split_is_refused() -> None:
    """One row per class, and fractions out of range."""
    with pytest.raises(ValueError, match="no class has two rows"):
        stratified_split(np.arange(5), 0.2, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_split(np.zeros(5, np.int64), 1.0, 0)


GOLDEN = [4, 8, 16, 23, 29, 31, 33, 34, 37, 38]
