"""Mixtures: each folder's share of every stretch, each sample's visits, and the amounts that settings spell."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bamboo.cli.errors import UserError
from bamboo.datasets.plan.mixture import MixedOrder
from bamboo.datasets.plan.order import Order
from bamboo.datasets.plan.sources import parse_source, quotas

SIZES = ([100] * 7, [30] * 3, [5])


def mixed(amounts: list[int], seed: int = 0, sizes: tuple[list[int], ...] = SIZES) -> MixedOrder:
    """Returns the order over folders of those shard sizes."""
    counts = [np.array(size, np.int64) for size in sizes]
    orders = [Order(count, seed=seed + number, window=4) for number, count in enumerate(counts)]
    totals = [int(count.sum()) for count in counts]
    return MixedOrder(orders, amounts, num_samples=totals, num_shards=[len(size) for size in sizes], seed=seed)


@given(amounts=st.tuples(st.integers(0, 900), st.integers(0, 300), st.integers(0, 20)).filter(any), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_every_epoch_has_its_quotas(amounts: tuple[int, int, int], seed: int) -> None:
    """Three epochs of any quotas: each folder exactly its places in each; each of its samples as often as any other, or once more."""
    order = mixed(list(amounts), seed)
    assert order.epoch_samples == sum(amounts)
    ids = order.take(0, 3 * sum(amounts)).ids.reshape(3, sum(amounts))
    source_of = np.repeat([0, 1, 2], [700, 90, 5])
    for epoch in ids:
        assert np.bincount(source_of[epoch], minlength=3).tolist() == list(amounts)
    counted = np.bincount(ids.ravel(), minlength=795)
    for source in range(3):
        seen = counted[source_of == source]
        assert seen.max() - seen.min() <= 1


def test_any_stretch_has_the_shares() -> None:
    """70 %, 25 % and 5 % of 100,000 places: every aligned block of 1,024 within two places per folder, a batch of 256 within 5 σ."""
    amounts = [70_000, 25_000, 5_000]
    order = mixed(amounts)
    source_of = np.repeat([0, 1, 2], [700, 90, 5])[order.take(0, 100_000).ids]
    for start in range(0, 99_000, 1024):
        counted = np.bincount(source_of[start : start + 1024], minlength=3)
        assert np.abs(counted - 1024 * np.array(amounts) / 1e5).max() <= 2
    batches = source_of[: 256 * 390].reshape(390, 256)
    share = (batches == 1).mean(1)
    assert np.abs(share - 0.25).max() < 5 * (0.25 * 0.75 / 256) ** 0.5
    assert share.std() > 0.3 * (0.25 * 0.75 / 256) ** 0.5, "places must be permuted, not periodic"


@pytest.mark.parametrize("num_small", [10, 40, 100])
def test_many_folders_have_their_shares(num_small: int) -> None:
    """One folder of half of all places among many small ones: in every block the small ones within 1, the large one within √n."""
    amounts = [num_small * 1000] + [1000] * num_small
    order = mixed(amounts, sizes=tuple([[40]] * (num_small + 1)))
    sources = order.take(0, 2 * num_small * 1000 // 1024 * 1024).ids // 40
    counted = np.array([np.bincount(block, minlength=num_small + 1) for block in sources.reshape(-1, 1024)])
    off = np.abs(counted - 1024 * np.array(amounts) / sum(amounts))
    assert off[:, 1:].max() <= 2
    assert off[:, 0].max() <= max(2.0, num_small**0.5)


def test_mixture_inclusion_over_200_epochs() -> None:
    """A quota of a third of a folder: over 200 epochs every sample's inclusion is quota / size, evener than binomial."""
    ids = mixed([233, 90, 0]).take(0, 200 * 323).ids
    inclusion = np.bincount(ids, minlength=795)[:700] / 200
    assert np.abs(inclusion - 233 / 700).max() <= 1 / 200 + 1e-12


@given(cuts=st.lists(st.integers(0, 10**6), max_size=6))
def test_any_cut_of_a_mixture_is_the_mixture(cuts: list[int]) -> None:
    """`take` in pieces from a pickled copy against `take` at once; keys too."""
    order = mixed([500, 225, 17])
    borders = [0, *sorted(cut % 2000 for cut in cuts), 2000]
    copy = pickle.loads(pickle.dumps(order))
    pieces = [copy.take(*border) for border in itertools.pairwise(borders)]
    whole = order.take(0, 2000)
    assert np.array_equal(np.concatenate([piece.ids for piece in pieces]), whole.ids)
    assert np.array_equal(np.concatenate([piece.keys for piece in pieces]), whole.keys)
    assert len(set(zip(whole.ids.tolist(), whole.keys.tolist(), strict=True))) == 2000


def test_shards_ahead_number_through_the_folders() -> None:
    """The shard of every visit is among those named for its position, by the numbering of the whole pool."""
    order = mixed([500, 225, 17])
    shard_of = np.repeat(np.arange(11), [*SIZES[0], *SIZES[1], *SIZES[2]])
    for place in range(0, 1400, 13):
        assert int(shard_of[order.take(place, place + 1).ids[0]]) in order.shards_in(place, place, 0)
        read = set(shard_of[order.take(place, place + 300).ids].tolist())
        assert read <= set(order.shards_in(place, place + 299, 0)) <= set(order.shards_in(place, place + 299, 1))


@pytest.mark.parametrize(
    ("texts", "epoch", "expected"),
    [
        (["a", "b"], None, [700, 90]),
        (["a@0.5x", "b@2x"], None, [350, 180]),
        (["a@100", "b@50"], None, [100, 50]),
        (["a@70%", "b@30%"], None, [553, 237]),
        (["a@70%", "b@30%"], 1001, [701, 300]),
        (["a"], 10_000, [10_000]),
        (["s3://bucket/year=2024/a@33.5%", "b@66.5%"], 1000, [335, 665]),
    ],
)
def test_amounts_become_quotas(texts: list[str], epoch: int | None, expected: list[int]) -> None:
    """Repeats, shares and counts of folders of 700 and 90 samples against hand-worked quotas."""
    assert quotas([parse_source(text) for text in texts], [700, 90][: len(texts)], epoch) == expected


@pytest.mark.parametrize(
    ("texts", "epoch", "message"),
    [
        (["a@70%", "b"], None, "b has none"),
        (["a@70%", "b@20%"], None, "add up to 90"),
        (["a@2x", "b"], 100, "follows from the amounts"),
        (["a@0x", "b@0"], None, "come to no sample"),
    ],
)
def test_amounts_that_do_not_fit_are_refused(texts: list[str], epoch: int | None, message: str) -> None:
    """Shares with gaps, lengths given twice, nothing at all: UserError with the setting."""
    with pytest.raises(UserError, match=message):
        quotas([parse_source(text) for text in texts], [700, 90], epoch)


def test_amounts_are_read_as_they_are_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of samples are refused with what was meant; a folder really called so has no amount, unless one is added."""
    with pytest.raises(UserError, match=r"give @0\.3%, for repeats @0\.3x"):
        parse_source("b@0.3")
    monkeypatch.chdir(tmp_path)
    assert (parse_source("imagenet@224").location, parse_source("imagenet@224").value) == ("imagenet", 224)
    (tmp_path / "imagenet@224").mkdir()
    assert parse_source("imagenet@224").location == "imagenet@224"
    assert (parse_source("imagenet@224@2x").location, parse_source("imagenet@224@2x").value) == ("imagenet@224", 2)


def test_a_location_keeps_its_own_at_sign() -> None:
    """`@` that no amount follows belongs to the location."""
    assert parse_source("s3://user@host/a").location == "s3://user@host/a"
    assert parse_source("a@b@3x").location == "a@b"
