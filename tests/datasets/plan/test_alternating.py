"""Two phases of several folders, against the epochs of each folder's own order and against one folder's order of two phases."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from bamboo.datasets.plan.order import SampleOrder
from bamboo.datasets.plan.recipe import PlannedSource, PlanRecipe
from tests.datasets.plan.columns import compiled, rates_of

COUNTS = [np.array([13, 0, 40, 47]), np.array([20, 11, 30])]


def made(folder: Path, *, coupled: bool) -> tuple[SampleOrder, list[list[int]]]:
    """Returns the order of two folders, and the samples that each gives to the two phases."""
    sources, lengths, random = [], [], np.random.default_rng(0)
    for number, counts in enumerate(COUNTS):
        own = folder / f"{number}"
        own.mkdir()
        settings: dict[str, object] = {"probabilities": True, "coupled": coupled}
        if not coupled:
            np.save(own / "other.npy", random.uniform(0, 2, counts.sum()))
            settings |= {"second": own / "other.npy", "max_repeats": 9.0}
        rates = compiled(own, counts, random.uniform(0, 1, counts.sum()), **settings)
        first = rates.epoch_samples
        lengths.append([first, int(counts.sum()) - first if rates.second is None else rates.second.epoch_samples])
        sources.append(PlannedSource("", -(-sum(lengths[-1]) // 2), f"{number}/rates"))
    return PlanRecipe(3, 4, coupled, tuple(sources)).order(COUNTS, folder, 0), lengths


@pytest.mark.parametrize("coupled", [False, True])
def test_phases_hold_what_each_folder_gives(tmp_path: Path, coupled: bool) -> None:
    """Six epochs: of every folder its own numbers, in even places; no key twice; any stretch alone, from a pickled copy, is the same."""
    order, lengths = made(tmp_path, coupled=coupled)
    sums = [lengths[0][phase] + lengths[1][phase] for phase in range(2)]
    visits = order.take(0, 3 * sum(sums))
    assert len(np.unique(visits.keys ^ visits.ids.astype(np.uint64))) == len(visits.ids)
    for epoch, part in enumerate(np.split(visits.ids, np.cumsum(sums * 3)[:-1])):
        phase = epoch % 2
        assert [(part < 100).sum(), (part >= 100).sum()] == [lengths[0][phase], lengths[1][phase]]
    again = pickle.loads(pickle.dumps(order))
    for start, stop in ((0, 7), (sums[0] - 3, sums[0] + 5), (sum(sums) - 40, sum(sums) + 200)):
        assert (again.take(start, stop).ids == visits.ids[start:stop]).all()
        assert (again.take(start, stop).keys == visits.keys[start:stop]).all()
    if coupled:
        assert all(sorted(pair) == list(range(161)) for pair in visits.ids.reshape(3, 161).tolist())


def test_rates_hold_by_phase(tmp_path: Path) -> None:
    """150 epochs of each phase: every sample ⌊rate⌋ or ⌈rate⌉ times an epoch, on average its rate to 5 standard errors."""
    order, lengths = made(tmp_path, coupled=False)
    sums = [lengths[0][phase] + lengths[1][phase] for phase in range(2)]
    ids = order.take(0, 150 * sum(sums)).ids.reshape(150, sum(sums))
    for number, counts in enumerate(COUNTS):
        (tmp_path / f"again {number}").mkdir()
        weights = np.load(tmp_path / f"{number}" / "other.npy")
        rates = rates_of(compiled(tmp_path / f"again {number}", counts, weights, probabilities=True, max_repeats=9.0))
        seen = np.stack([np.bincount(epoch[sums[0] :], minlength=161) for epoch in ids])[:, 100 * number :][:, : counts.sum()]
        assert ((seen == np.floor(rates)) | (seen == np.ceil(rates))).all()
        error = np.sqrt((rates % 1) * (1 - rates % 1) / 150)
        assert (np.abs(seen.mean(0) - rates) <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("coupled", [False, True])
def test_boundaries_and_shards(tmp_path: Path, coupled: bool) -> None:
    """Boundaries where phases end, of coupled ones where both do; the shards said to be in use hold all that is read."""
    order, lengths = made(tmp_path, coupled=coupled)
    first, last = (lengths[0][phase] + lengths[1][phase] for phase in range(2))
    begins = [0, *([] if coupled else [first]), first + last, *([] if coupled else [2 * first + last]), 2 * (first + last)]
    assert [order.boundary(place) for place in range(begins[-1])] == [min(b for b in begins if b >= place) for place in range(begins[-1])]
    shard_of = np.concatenate([np.repeat(np.arange(4), COUNTS[0]), 4 + np.repeat(np.arange(3), COUNTS[1])])
    for start in range(0, begins[-1], 17):
        read = set(shard_of[order.take(start, start + 90).ids].tolist())
        assert read <= set(order.shards_in(start, start + 89, 0)) <= set(order.shards_in(start, start + 89, 1))
