"""Samples that cannot be read: the stream stops and names them, or others stand in, the same on any number of ranks and workers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bamboo.cli.errors import DataError
from bamboo.datasets.stream.batches import EvalBatches, TrainBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.datasets.stream.policies import BadSampleList, BadSamples, Replaced
from tests.datasets.stream.fakes import Pictures, Row, Shuffled, Stamp, rows_of

REPLACE = BadSamples(max_in_a_row=4)
NUM_BATCHES = 8  # of 10: two epochs


def batches(store: Pictures, rank: int = 0, world_size: int = 1, policy: BadSamples = REPLACE, **options: Any) -> TrainBatches:
    return TrainBatches(store, Shuffled(), Stamp(), 10, rank, world_size, bad_samples=policy, **options)


def at(*positions: int) -> frozenset[int]:
    """Returns the samples at these positions of the plan."""
    return frozenset(int(Shuffled().take(place, place + 1).ids[0]) for place in positions)


def everything(store: Pictures, world_size: int = 1, **options: Any) -> tuple[list[Row], list[Replaced]]:
    """Returns all rows and replaced slots of all ranks, by place."""
    rows, slots = list[Row](), list[Replaced]()
    for rank in range(world_size):
        for batch in load_batches(batches(store, rank, world_size), range(NUM_BATCHES), **{"workers": 0, **options}):
            rows += rows_of(batch)
            slots += batch.replaced
    return sorted(rows), sorted(slots)


@pytest.mark.parametrize(("damaged", "cut_short"), [(at(13), at()), (at(), at(13))])
def test_the_default_stops_and_names_the_sample(damaged: frozenset[int], cut_short: frozenset[int]) -> None:
    """Either kind of damage without a policy: DataError with the shard, and the key of an image that is damaged."""
    sample = min(damaged | cut_short)
    with pytest.raises(DataError, match=f"shard-{sample // 10}.tar") as caught:
        list(load_batches(batches(Pictures(damaged=damaged, cut_short=cut_short), policy=BadSamples()), range(4), workers=0))
    assert "damaged image" in str(caught.value) or "truncated" in str(caught.value)


def test_the_next_of_the_plan_stands_in() -> None:
    """Positions 13, 19 and 20 bad: 14 and 21 (twice) stand in, with draws of their own, and every other row is as without damage."""
    store = Pictures(damaged=at(13, 19), cut_short=at(20))
    rows, slots = everything(store)
    whole, none = everything(Pictures())
    assert not none
    bad = store.damaged | store.cut_short
    changed = [row[0] for row, wanted in zip(rows, whole, strict=True) if row != wanted]
    assert changed == [row[0] for row in whole if row[1] in bad] == [slot.place for slot in slots]
    by_place = {row[0]: row for row in rows}
    for place, position in ((13, 14), (19, 21), (20, 21)):
        assert by_place[place][1] == by_place[position][1], "the sample of the next readable position"
        assert by_place[place][3] != by_place[position][3], "in another view than its own visit's"
    assert by_place[19][3] != by_place[20][3]
    assert by_place[13][2] == by_place[13][1] % 2, "with its own label"
    slot = next(slot for slot in slots if slot.place == 20)
    sample, name = min(at(20)), f"shard-{min(at(20)) // 10}.tar"
    assert slot == Replaced(20, sample, f"{name}:{sample:04d}.jpg", f"{name}: truncated: sample {sample}", min(at(21)))


@settings(max_examples=10, deadline=None)
@given(st.frozensets(st.integers(0, 39), max_size=8), st.integers(2, 4))
def test_stand_ins_do_not_depend_on_ranks(damaged: frozenset[int], world_size: int) -> None:
    """Random damage on one rank and on several: the same rows and slots, or the same refusal."""

    def outcome(world_size: int) -> Any:
        try:
            return everything(Pictures(damaged=damaged), world_size)
        except DataError as error:
            return "in a row" in str(error)

    assert outcome(world_size) == outcome(1)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_stand_ins_do_not_depend_on_workers(kind: str) -> None:
    """Three workers of either kind against none: the same rows and slots."""
    store = Pictures(damaged=at(3, 13, 14), cut_short=at(25))
    assert everything(store, 2, workers=3, kind=kind) == everything(store)


def test_copies_have_stand_ins_of_their_own(make_rows: Callable[..., list[list[Row]]]) -> None:
    """Two copies of a bad sample: the same stand-in in two different views."""
    made = make_rows(batches(Pictures(damaged=at(2)), repeats=2), 1)[0]
    assert made[2][1] == made[7][1] == min(at(3))
    assert len({made[row][3] for row in (2, 3, 7, 8)}) == 4


def test_too_many_in_a_row_stop_the_stream() -> None:
    """Four bad positions in a row are one too many for N = 4, three are not: all four are named, and the setting."""
    assert everything(Pictures(damaged=at(13, 14, 15)))
    store = Pictures(damaged=at(13, 14), cut_short=at(15, 16))
    with pytest.raises(DataError, match=r"data\.max_bad_samples=4") as caught:
        everything(store)
    assert all(f"shard-{sample // 10}.tar" in str(caught.value) for sample in at(13, 14, 15, 16))
    assert all(store.name(sample) in str(caught.value) for sample in at(13, 14, 15, 16))


def test_a_missing_shard_stops_under_any_policy() -> None:
    """What is not the sample's own damage: the store's error, whatever the policy."""
    with pytest.raises(DataError, match=r"shard-2\.tar: is missing"):
        everything(Pictures(missing_shard=2))


def test_evaluation_leaves_a_gap() -> None:
    """Nothing can stand in: the row is invalid, black, without label, and listed; by default the stream stops."""
    store = Pictures(num_samples=10, damaged=frozenset({3}))
    (batch,) = load_batches(EvalBatches(store, Stamp(), 10, bad_samples=REPLACE), range(1), workers=0)
    assert batch.valid.tolist() == [number != 3 for number in range(10)]
    assert (int(batch.labels[3]), int(batch.ids[3])) == (-1, -1)
    assert not batch.images[3].any()
    assert batch.replaced == (Replaced(3, 3, store.name(3), "damaged image", -1),)
    with pytest.raises(DataError, match=r"0003\.jpg: damaged image"):
        list(load_batches(EvalBatches(store, Stamp(), 10), range(1), workers=0))


SLOTS = [Replaced(place, place + 5, f"shard-0.tar:{place}", "damaged\timage\n", place + 6) for place in range(3)]


def test_the_list_holds_each_slot_once(tmp_path: Path) -> None:
    """Lines of a list, of a resumed one, and of one beside another rank's: each slot once, one line each."""
    path, other = tmp_path / "run" / "bad-0.tsv", tmp_path / "run" / "bad-1.tsv"
    with BadSampleList(path) as listed:
        assert listed.add([]) == 0
        assert not path.parent.exists(), "nothing to list, no file"
        assert [listed.add(SLOTS[:2]) for _ in range(2)] == [2, 0]
    for file, others, count in ((path, [], 1), (other, [path], 0), (other, [], 3)):
        with BadSampleList(file, others) as listed:
            assert listed.add(SLOTS) == count
    lines = path.read_text().splitlines()
    assert lines[0].split("\t") == ["place", "sample", "name", "reason", "replaced_by"]
    expected = [[str(n), str(n + 5), f"shard-0.tar:{n}", "damaged image", str(n + 6)] for n in range(3)]
    assert [line.split("\t") for line in lines[1:]] == expected
    assert other.read_text() == path.read_text()


def test_a_line_cut_short_is_written_again(tmp_path: Path) -> None:
    """A file that ends in half a line: the slot is listed anew, on a line of its own."""
    path = tmp_path / "bad.tsv"
    with BadSampleList(path) as listed:
        listed.add(SLOTS)
    os.truncate(path, path.stat().st_size - 20)
    for count in (1, 0):
        with BadSampleList(path) as listed:
            assert listed.add(SLOTS) == count
    assert path.read_text().endswith(SLOTS[2].line)
