"""The promise of the stream on real orders: one sequence of global batches for every world size, worker count and stopping point."""

import itertools
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bamboo.datasets.plan.mixture import MixedOrder
from bamboo.datasets.plan.order import Order, SampleOrder
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches
from tests.datasets.plan.columns import compiled
from tests.datasets.stream.fakes import Pictures, Stamp

Row = tuple[int, int, bytes]
Combination = tuple[int, int, str]  # world size, workers, their kind

SIZES = st.lists(st.one_of(st.just(0), st.just(1), st.integers(0, 30)), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0)
COMBINATIONS = st.tuples(st.integers(1, 4), st.sampled_from([0, 1, 3]), st.just("threads"))


def batches(order: SampleOrder, combination: Combination, numbers: range, batch: int, offset: int = 0) -> list[list[Row]]:
    """Returns the global batches of a combination as rows of (place, sample, pixels), the ranks' parts side by side."""
    world_size, workers, kind = combination
    chosen: Literal["processes", "threads"] = "threads" if kind == "threads" else "processes"
    parts: list[list[list[Row]]] = []
    for rank in range(world_size):
        source = TrainBatches(Pictures(1000), order, Stamp(), batch, rank, world_size, offset=offset)
        loaded = load_batches(source, numbers, workers=workers, kind=chosen)
        parts.append([_rows(made) for made in loaded])
    return [list(itertools.chain(*batch_parts)) for batch_parts in zip(*parts, strict=True)]


def _rows(batch: Any) -> list[Row]:
    pixels = [image.numpy().tobytes() for image in batch.images]
    return list(zip(batch.places.tolist(), batch.ids.tolist(), pixels, strict=True))


def order_of(sizes: list[int], seed: int, window: int) -> Order:
    """Returns the order over shards of those sizes."""
    return Order(np.array(sizes, np.int64), seed=seed, window=window)


@given(sizes=SIZES, combination=COMBINATIONS, seed=st.integers(0, 99), window=st.integers(1, 12), batch=st.integers(4, 13))
@settings(max_examples=40)
def test_one_sequence_for_every_combination(sizes: list[int], combination: Combination, seed: int, window: int, batch: int) -> None:
    """Random shards (empty, of one sample, fewer than workers), world sizes 1–4, workers 0, 1, 3: what one rank alone makes."""
    order = order_of(sizes, seed, window)
    numbers = range(-(-2 * sum(sizes) // batch))
    expected = batches(order, (1, 0, "threads"), numbers, batch)
    assert batches(order, combination, numbers, batch) == expected
    seen = [row[1] for row in itertools.chain(*expected)]
    for epoch in range(2):
        assert sorted(seen[epoch * sum(sizes) : (epoch + 1) * sum(sizes)]) == list(range(sum(sizes)))


@given(
    sizes=SIZES,
    stretches=st.lists(st.tuples(COMBINATIONS, st.integers(4, 15), st.integers(0, 4)), min_size=2, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_stopping_anywhere_and_going_on_otherwise(sizes: list[int], stretches: list[tuple[Combination, int, int]], seed: int) -> None:
    """Stretches of any combination and global batch, each from where the last stopped: the uninterrupted sequence of rows."""
    order = order_of(sizes, seed, 3)
    seen: list[Row] = []
    for combination, batch, count in stretches:
        start = seen[-1][0] + 1 if seen else 0
        seen += itertools.chain(*batches(order, combination, range(7, 7 + count), batch, offset=start - 7 * batch))
    whole = itertools.chain(*batches(order, (1, 0, "threads"), range(len(seen)), 1))
    assert seen == list(whole)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_processes_make_the_same(world_size: int, workers: int) -> None:
    """Every combination with worker processes, over an epoch's border: the batches of one rank without workers."""
    order = order_of([5, 0, 1, 17, 9, 1], 3, 2)
    assert batches(order, (world_size, workers, "processes"), range(9), 8) == batches(order, (1, 0, "threads"), range(9), 8)


@given(combination=COMBINATIONS, seed=st.integers(0, 99), kind=st.sampled_from(["weighted", "coupled", "mixed"]), stop=st.integers(0, 12))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_weighted_and_mixed_orders_too(
    tmp_path_factory: pytest.TempPathFactory, combination: Combination, seed: int, kind: str, stop: int
) -> None:
    """Weighted, coupled and mixed orders, stopped at any batch and gone on with another combination: the uninterrupted sequence."""
    sizes, other = np.array([9, 0, 1, 14, 6], np.int64), np.array([4, 3], np.int64)
    order: SampleOrder
    if kind == "mixed":
        parts = [Order(sizes, seed=seed, window=2), Order(other, seed=seed + 1, window=2)]
        order = MixedOrder(parts, [20, 11], num_samples=[30, 7], num_shards=[5, 2], seed=seed)
    else:
        weights = np.random.default_rng(seed).exponential(size=30) + 0.01
        rates = compiled(tmp_path_factory.mktemp("column"), sizes, weights, coupled=kind == "coupled", epoch_samples=12)
        order = Order(sizes, seed=seed, window=2, rates=rates, coupled=kind == "coupled")
    whole = batches(order, (1, 0, "threads"), range(12), 8)
    before = batches(order, (2, 1, "threads"), range(stop), 8)
    assert before + batches(order, combination, range(stop, 12), 8) == whole
