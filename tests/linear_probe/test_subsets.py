"""Few-shot subsets: nested, counted by class, the same on every machine."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bamboo.cli.errors import UserError
from bamboo.linear_probe.splits import stratified_split
from bamboo.linear_probe.subsets import parse_subset

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def rows(name: str, labels: list[int], seed: int = 0) -> list[int]:
    chosen = parse_subset(name).rows(np.array(labels, np.int64), NAMES, seed)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == sorted(chosen.tolist())
    return list(chosen.tolist())


@settings(max_examples=150, deadline=None)
@given(labels=st.lists(st.integers(-1, 4), min_size=1, max_size=150), low=st.integers(1, 99), seed=st.integers(0, 2**32))
def test_shares_are_nested_and_counted_by_class(labels: list[int], low: int, seed: int) -> None:
    """Any labels: 1 % ⊂ p % ⊂ p + 1 % ⊂ all labelled rows; of each class max(1, share rounded half up) rows."""
    chain = [rows(f"{percent}p", labels, seed) for percent in dict.fromkeys((1, low, low + 1, 100))]
    for smaller, larger in itertools.pairwise(chain):
        assert set(smaller) <= set(larger)
    assert chain[-1] == [row for row, label in enumerate(labels) if label >= 0]
    for label in set(labels) - {-1}:
        exact = labels.count(label) * low
        assert sum(labels[row] == label for row in rows(f"{low}p", labels, seed)) == max(1, exact // 100 + (exact % 100 >= 50))


@settings(max_examples=60, deadline=None)
@given(order=st.permutations([0, 1, 2, 3, 4] * 6), shots=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_shots_are_nested(order: list[int], shots: int, seed: int) -> None:
    """Five classes of six rows: k rows of each, inside k + 1 rows of each, inside the share that has at least as many."""
    few, more = rows(f"{shots}shot", order, seed), rows(f"{shots + 1}shot", order, seed)
    assert [sum(order[row] == label for row in few) for label in range(5)] == [shots] * 5
    assert set(few) < set(more)
    assert set(rows("1shot", order, seed)) <= set(rows("50p", order, seed)) == set(rows("3shot", order, seed))


def test_the_rows_are_golden() -> None:
    """Rows of a fixed seed against recorded ones: a change is a breaking change; another seed differs; they are not those that validate."""
    labels = [row % 5 for row in range(50)]
    assert rows("2shot", labels, 7) == GOLDEN == rows("20p", labels, 7)
    assert rows("2shot", labels, 8) != GOLDEN
    assert stratified_split(np.array(labels), 0.2, 7).val.tolist() != GOLDEN


def test_a_class_with_too_few_rows_is_named() -> None:
    """Three rows of every class but one or two: UserError with their names and counts."""
    labels = [0, 1, 2, 3, 4] * 2 + [0, 1, 3]
    with pytest.raises(UserError, match="subset=3shot: every class needs 3 rows, but cat has 2, elk has 2"):
        rows("3shot", labels)
    with pytest.raises(UserError, match="elk has 0"):
        rows("1shot", [0, 1, 2, 3])
    assert rows("1p", [0, 1, 2, 3]) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["0p", "101p", "010p", "p", "10", "10%", "0shot", "shot", "5shots", "1.5p", "-1p", "", "10p "])
def test_other_names_are_refused(name: str) -> None:
    """Neither 1p … 100p nor Kshot: UserError with the name and what is allowed."""
    with pytest.raises(UserError, match="must be a percentage 1p … 100p of every class, or 1shot"):
        parse_subset(name)


GOLDEN = [2, 5, 7, 10, 19, 26, 29, 33, 41, 48]
