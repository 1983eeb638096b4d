"""Plan versions: what was recorded is what is read, and the order changes exactly where a version begins."""

from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.plan.history import History, VersionedOrder, read_history, write_history
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe
from tests.datasets.plan.columns import compiled

COUNTS = np.array([40, 0, 60, 50], np.int64)
SOURCE = PlannedSource(data_hash="a", quota=0, rates="")


def test_history_is_read_as_written(tmp_path: Path) -> None:
    """Two versions through the file; none where there is no file."""
    recipe = PlanRecipe(seed=3, window=8, coupled=False, sources=(SOURCE,))
    history = History().then(0, recipe.to_json(), 150).then(700, {**recipe.to_json(), "window": 4}, 90)
    assert read_history(tmp_path / "plan.json") == History()
    write_history(tmp_path / "plan.json", history)
    assert read_history(tmp_path / "plan.json") == history
    assert [(version.number, version.start) for version in history.versions] == [(0, 0), (1, 700)]
    assert history.epoch_samples == 150


def test_numbers_are_never_given_twice() -> None:
    """A version dropped for another, and one dropped for good: what comes after has a number of its own; places are found by position."""
    history = History().then(0, {"a": 1}, 10).then(50, {"a": 2}, 20).then(40, {"a": 3}, 30)
    assert [(version.number, version.start) for version in history.versions] == [(0, 0), (2, 40)]
    assert [history.at(position) for position in (0, 39, 40, 99)] == [0, 0, 1, 1]
    assert [version.number for version in history.until(0).then(60, {}, 5).versions] == [0, 3]
    assert History().at(3) is None


def test_all_versions_and_sources_draw_for_themselves() -> None:
    """Four versions of four sources: sixteen seeds, of which the first is the plan's."""
    recipe = PlanRecipe(seed=3, window=8, coupled=False, sources=(SOURCE,))
    seeds = [recipe.seed_of(version, source) for version in range(4) for source in range(4)]
    assert len(set(seeds)) == 16
    assert seeds[0] == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "bamboo-plan", "version": 9}', '{"format": "bamboo-plan", "version": 1}', "[" * 100_000]
)
def test_a_damaged_history_is_named(tmp_path: Path, text: str) -> None:
    """Truncated, foreign and newer files: DataError with the path."""
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match=r"plan\.json"):
        read_history(tmp_path / "plan.json")


def test_a_version_begins_where_it_says(tmp_path: Path) -> None:
    """Uniform until sample 217, weighted from there: each part equals its own order from its own start, for any cut; keys never meet."""
    weights = np.arange(1.0, 151.0)
    root = tmp_path / "plan"
    root.mkdir()
    compiled(root, COUNTS, weights)
    plain = PlanRecipe(seed=3, window=2, coupled=False, sources=(SOURCE,))
    weighted = PlanRecipe(seed=3, window=2, coupled=False, sources=(PlannedSource("a", 0, "rates"),))
    before, after = plain.order([COUNTS], root, 0), weighted.order([COUNTS], root, 1)
    order = VersionedOrder([0, 217], [before, after])
    whole = order.take(0, 700)
    assert np.array_equal(whole.ids[:217], before.take(0, 217).ids)
    assert np.array_equal(whole.ids[217:], after.take(0, 483).ids)
    for start in (0, 100, 216, 217, 218, 500):
        assert np.array_equal(order.take(start, start + 80).ids, whole.ids[start : start + 80])
        assert np.array_equal(order.take(start, start + 80).keys, whole.keys[start : start + 80])
    assert len(set(zip(whole.ids.tolist(), whole.keys.tolist(), strict=True))) == 700
    assert np.bincount(whole.ids[217:], minlength=150)[120:].sum() > np.bincount(whole.ids[217:], minlength=150)[:30].sum() * 3


def test_shards_across_a_version() -> None:
    """A stretch over two borders: those of each version's part, and what comes next only in the last."""
    orders = [Order(COUNTS, seed=seed, window=2) for seed in range(3)]
    order = VersionedOrder([0, 100, 130], orders)
    assert order.shards_in(90, 99, 1) == orders[0].shards_in(90, 99, 1)
    expected = orders[0].shards_in(90, 99, 0) + orders[1].shards_in(0, 29, 0) + orders[2].shards_in(0, 4, 1)
    assert order.shards_in(90, 134, 1) == list(dict.fromkeys(expected))
    assert order.shards_in(131, 133, 2) == orders[2].shards_in(1, 3, 2)


def test_versions_of_one_plan_draw_anew() -> None:
    """The same recipe as version 0 and 1: other orders; version 0 is the order of the seed itself."""
    recipe = PlanRecipe(seed=3, window=2, coupled=False, sources=(SOURCE,))
    first, second = (recipe.order([COUNTS], Path(), version).take(0, 150).ids.tolist() for version in (0, 1))
    assert first == Order(COUNTS, seed=3, window=2).take(0, 150).ids.tolist()
    assert first != second


def test_a_mixture_shares_the_window() -> None:
    """Quotas 3 to 1, window 8, shards far longer than a block of mixed places: six and two shards at a time."""
    many = np.full(30, 100_000, np.int64)
    sources = (PlannedSource("a", 3_000_000, ""), PlannedSource("b", 1_000_000, ""))
    order = PlanRecipe(seed=0, window=8, coupled=False, sources=sources).order([many, many], Path(), 0)
    assert order.epoch_samples == 4_000_000
    used = order.shards_in(1_650_000, 1_650_000, 0)
    assert [sum(shard < 30 for shard in used), sum(shard >= 30 for shard in used)] == [6, 2]
