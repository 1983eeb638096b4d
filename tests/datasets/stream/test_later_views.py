"""A stream whose views change at given batches: each batch is that of its view alone, in a slot that fits the largest."""

from typing import Any

import pytest
import torch

from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import Loader
from tests.datasets.stream.fakes import Pictures, Shuffled, Stamp, rows_of

SIZES = {0: 4, 5: 7, 9: 3}  # from batch: side


class Sized(Stamp):
    """The stamp on a picture of another side, with as many draws as that."""

    def __init__(self, size: int) -> None:
        self.size = self.num_draws = size

    def __call__(self, image: torch.Tensor, draws: Any) -> torch.Tensor:
        return super().__call__(image[:, :1, :1].expand(3, self.size, self.size), draws[-1:])


def source(first: int, later: dict[int, int], rank: int = 0, world_size: int = 1) -> TrainBatches:
    views = tuple((start, Sized(size)) for start, size in later.items())
    return TrainBatches(Pictures(), Shuffled(), Sized(first), 10, rank, world_size, repeats=2, later_views=views)


def size_at(number: int) -> int:
    return SIZES[max(start for start in SIZES if start <= number)]


@pytest.mark.parametrize("numbers", [range(13), range(4, 7), range(5, 9), range(8, 13), range(11, 12)])
@pytest.mark.parametrize(("workers", "kind"), [(0, "processes"), (1, "processes"), (3, "processes"), (2, "threads")])
def test_each_batch_is_that_of_its_view(numbers: range, workers: int, kind: Any) -> None:
    """Every batch, begun anywhere and made ahead across both borders, against a source of its view alone; slots are as large as needed."""
    changing = source(SIZES[0], {start: size for start, size in SIZES.items() if start}, rank=1, world_size=3)
    with Loader(changing, numbers, workers=workers, kind=kind, prefetch=2, hold=2) as loader:
        assert loader.slots.shape[2] == max(map(size_at, numbers))
        held: list[Any] = []
        for number, batch in zip(numbers, loader, strict=True):
            assert tuple(batch.images.shape[1:]) == (size_at(number), size_at(number), 3)
            with Loader(source(size_at(number), {}, rank=1, world_size=3), range(number, number + 1), workers=0) as alone:
                assert rows_of(batch) == rows_of(next(iter(alone)))
            held = [*held, (batch, rows_of(batch))][-2:]
            assert all(rows_of(kept) == rows for kept, rows in held)  # whatever the sizes of their neighbours in the ring


def test_of_two_views_from_the_same_batch_the_later_holds() -> None:
    """Points that round to one batch: the last given."""
    views = ((3, Sized(7)), (3, Sized(5)))
    batches = TrainBatches(Pictures(), Shuffled(), Sized(4), 10, 0, 1, later_views=views)
    assert [batches.view_of(number).size for number in (2, 3, 4)] == [4, 5, 5]
    assert batches.largest(range(9)) == (10, 5, 5, 3)
