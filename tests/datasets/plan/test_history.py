"""Plan versions: what was recorded is what is read, and the order changes exactly where a version begins."""

from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.plan.history import PlanVersion, VersionedOrder, read_history, write_history
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe
from tests.datasets.plan.columns import compiled

COUNTS = np.array([40, 0, 60, 50], np.int64)
SOURCE = PlannedSource(data_hash="a", quota=0, rates="")


def test_history_is_read_as_written(tmp_path: Path) -> None:
    """Two versions through the file; none where there is no file."""
    recipe = PlanRecipe(seed=3, window=8, coupled=False, sources=(SOURCE,))
    versions = [PlanVersion(0, recipe.to_json()), PlanVersion(700, {**recipe.to_json(), "window": 4})]
    assert read_history(tmp_path / "plan.json") == []
    write_history(tmp_path / "plan.json", versions)
    assert read_history(tmp_path / "plan.json") == versions


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "bamboo-plan", "version": 9}', '{"format": "bamboo-plan", "version": 1}'])
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


def test_versions_of_one_plan_draw_anew() -> None:
    """The same recipe as version 0 and 1: other orders; version 0 is the order of the seed itself."""
    recipe = PlanRecipe(seed=3, window=2, coupled=False, sources=(SOURCE,))
    first, second = (recipe.order([COUNTS], Path(), version).take(0, 150).ids.tolist() for version in (0, 1))
    assert first == Order(COUNTS, seed=3, window=2).take(0, 150).ids.tolist()
    assert first != second


def test_a_mixture_shares_the_window() -> None:
    """Quotas 3 to 1, window 8: six and two shards at a time."""
    many = np.full(30, 10, np.int64)
    sources = (PlannedSource("a", 300, ""), PlannedSource("b", 100, ""))
    order = PlanRecipe(seed=0, window=8, coupled=False, sources=sources).order([many, many], Path(), 0)
    assert order.epoch_samples == 400
    first = [shard for shard in order.shards_ahead(0, 0) if shard < 30]
    assert len(first) > 6  # a block of mixed places spans several of these short shards
    assert np.bincount(order.take(0, 400).ids // 300).tolist() == [300, 100]
