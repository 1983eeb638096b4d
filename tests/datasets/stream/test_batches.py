"""Which visits make a batch: any world size, any change of batch size in mid-run, copies of repeated augmentation."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bamboo.cli.errors import UserError
from bamboo.datasets.counters import uniforms
from bamboo.datasets.stream.batches import EvalBatches, TrainBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.datasets.stream.stages import StageClock
from tests.datasets.stream.fakes import Expecting, Pictures, Row, Shuffled, Stamp, rows_of


def source(rank: int = 0, world_size: int = 1, store: Any = None, batch: int = 12, **options: Any) -> TrainBatches:
    """Returns one rank's batches of the fake pool."""
    return TrainBatches(store or Pictures(), Shuffled(), Stamp(), batch, rank, world_size, **options)


def global_batch(number: int, world_size: int, **options: Any) -> list[Row]:
    """Returns the ranks' parts of a global batch, side by side."""
    made = []
    for rank in range(world_size):
        for batch in load_batches(source(rank, world_size, **options), range(number, number + 1), workers=0):
            made += rows_of(batch)
    return made


def sequence(stop: int) -> list[Row]:
    """Returns the first rows of the uninterrupted sequence, worked out here from the plan and the law of the draws."""
    ids, keys = Shuffled().take(0, stop)
    expected = []
    for place, (sample, drawn) in enumerate(zip(ids.tolist(), uniforms(keys, ids, 1).tolist(), strict=True)):
        pixels = Stamp()(Pictures().load(sample), drawn).permute(1, 2, 0).contiguous().numpy().tobytes()
        expected.append((place, sample, sample % 2, pixels))
    return expected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(4, 17), st.integers(0, 4)), min_size=1, max_size=4), st.integers(0, 9))
def test_a_changed_world_and_batch_size_continue_the_sequence(stretches: list[tuple[int, int, int]], number: int) -> None:
    """Stretches of (world size, batch size, batches), each going on where the last stopped: the uninterrupted sequence."""
    consumed: list[Row] = []
    for world_size, batch, num_batches in stretches:
        offset = len(consumed) - number * batch  # batches go on being numbered, whatever their size: it may be negative
        for _ in range(num_batches):
            consumed += global_batch(number, world_size, batch=batch, offset=offset)
            number += 1
    assert consumed == sequence(len(consumed))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.sampled_from([2, 3, 4, 6]), st.integers(0, 5), st.integers(1, 2))
def test_copies_of_repeated_augmentation(world_size: int, repeats: int, number: int, unit: int) -> None:
    """Row q against the rule: position base + q mod B/R, whatever the world size; places stay global; copies have pixels of their own."""
    made = global_batch(number, world_size, repeats=repeats, unit=unit)
    distinct = 12 // repeats
    ids = Shuffled().take(number * distinct, (number + 1) * distinct).ids.tolist()
    assert [row[1] for row in made] == ids * repeats
    assert [row[0] for row in made] == list(range(12 * number, 12 * (number + 1)))
    assert made == global_batch(number, 1, repeats=repeats)
    pixels = {(row[1], row[3]) for row in made}
    assert len(pixels) >= 10, "twelve draws of 16 bits are all different, or nearly"
    first = sequence((number + 1) * distinct)[number * distinct :]
    assert [row[1:] for row in made[:distinct]] == [row[1:] for row in first], "copy 0 is the visit itself"


@pytest.mark.parametrize(("world_size", "repeats"), [(2, 2), (3, 2), (3, 3), (4, 2), (4, 4), (5, 4)])
def test_copies_lie_on_different_ranks(world_size: int, repeats: int) -> None:
    """No rank of at least R holds a sample twice; and no two rows that mixup blends show the same one."""
    for rank in range(world_size):
        for batch in load_batches(source(rank, world_size, repeats=repeats), range(5), workers=0):
            assert len(set(batch.ids.tolist())) == len(batch.ids)
    for batch in load_batches(source(repeats=repeats, unit=2), range(5), workers=0):
        assert (batch.ids[0::2] != batch.ids[1::2]).all()


def test_a_change_of_size_with_repeats() -> None:
    """Batches of 12 and then of 8, two copies each: the plan's positions go on without a gap."""
    first = [row[1] for number in range(3) for row in global_batch(number, 2, repeats=2)[:6]]
    second = [row[1] for number in range(3, 5) for row in global_batch(number, 3, repeats=2, batch=8, offset=36 - 24)[:4]]
    assert first + second == Shuffled().take(0, 26).ids.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 5}, "repeats=5: must divide the global batch size of 12"),
        ({"repeats": 0}, "repeats=0"),
        ({"repeats": 12, "unit": 2}, "use at most 6"),
        ({"repeats": 2, "offset": 3}, "offset=3: must be a multiple of repeats=2"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, int], message: str) -> None:
    """Settings that leave a copy out or blend an image with itself: UserError with the setting and its value."""
    with pytest.raises(UserError, match=message):
        source(**options)


def test_the_store_hears_which_shards_come_next() -> None:
    """`expect` against the plan's own answer for all positions of each batch, once for each list; at the end nothing."""
    store = Expecting()
    for _ in load_batches(source(store=store, batch=6, num_ahead=1), range(6), workers=0):
        pass
    assert store.expected == [[0, 1], [0, 1, 2], [1, 2], [1, 2, 3], [2, 3], [3, 0], []]
    copies = Expecting()
    for _ in load_batches(source(store=copies, batch=6, num_ahead=0, repeats=3), range(6), workers=0):
        pass
    assert copies.expected == [[0], [1], []], "six batches of two positions"
    wide = Expecting()
    for _ in load_batches(source(store=wide, batch=24, num_ahead=0), range(1), workers=0):
        pass
    assert wide.expected == [[0, 1, 2], []]


def test_the_store_hears_what_others_may_still_read() -> None:
    """With two batches under way before it, batch 4 of six keeps the shards of positions 12 to 29; a stream's first looks back at none."""
    for repeats, expected in ((1, [1, 2, 3]), (2, [0, 1, 2])):
        store = Expecting()
        batches = source(store=store, batch=6, num_ahead=1, repeats=repeats)
        batches.make(4, torch.empty(batches.shape(4), dtype=torch.uint8), StageClock(), 2)
        assert store.expected == [expected]
    store = Expecting()
    for _ in load_batches(source(store=store, batch=6, num_ahead=0), range(5, 8), workers=1, prefetch=2, kind="threads"):
        pass
    assert store.expected[0] in ([3], [3, 0]), "positions 30 to 35"


def test_a_rank_without_rows() -> None:
    """More ranks than rows: a batch of none."""
    parts = [next(iter(load_batches(source(rank, 3, batch=2), range(1), workers=0))) for rank in range(3)]
    assert sorted(len(part.images) for part in parts) == [0, 1, 1]


def test_evaluation_pads() -> None:
    """Columns of a last batch: padding is black, without label and id, marked invalid; labels are int64 whatever the store's are."""
    batches = EvalBatches(Pictures(num_samples=10), Stamp(), 8)
    images = torch.full(batches.shape(0), 7, dtype=torch.uint8)
    columns = batches.make(1, images, StageClock())
    assert columns.valid.tolist() == [True] * 2 + [False] * 6
    assert columns.labels.tolist() == [0, 1] + [-1] * 6
    assert columns.labels.dtype == np.int64
    assert not images[2:].any()
    assert images[:2].any()


def test_every_combination_of_workers(make_rows: Callable[..., list[list[Row]]]) -> None:
    """World sizes 1 to 3, 0, 1 and 3 workers of both kinds: the same rows."""
    expected = make_rows(source(), 6)
    for kind, workers, world_size in itertools.product(("processes", "threads"), (1, 3), (1, 3)):
        parts = [make_rows(source(rank, world_size), 6, workers=workers, kind=kind) for rank in range(world_size)]
        assert [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)] == expected, (kind, workers, world_size)
