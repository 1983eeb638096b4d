"""Probabilities from gains: against their formula, scipy's root finder, and the plan that draws by them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import settings as quickly
from hypothesis import strategies as st
from scipy.optimize import brentq

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.datasets.growth.columns import Columns, Decision
from bamboo.datasets.growth.policy import Compiled, PolicyColumns, chosen_gain, compile_policy, loss_weights, solve_scale, systematic_draw
from bamboo.datasets.growth.policy_settings import PolicySettings, budget_samples
from bamboo.datasets.growth.policy_summary import effective_share
from bamboo.datasets.plan.order import Order
from tests.datasets.plan.columns import compiled as compiled_rates
from tests.datasets.plan.columns import rates_of

Floats = npt.NDArray[np.float32]

N = 2000
RNG = np.random.default_rng(0)
GAIN = RNG.gamma(3, 0.1, N).astype(np.float32)
DECISION = RNG.choice(np.array([0, 1, 2, 3], np.uint8), N, p=[0.7, 0.1, 0.1, 0.1])
ENTROPY = RNG.uniform(size=N).astype(np.float32)
CLASSES = np.minimum(RNG.geometric(0.3, N) - 1, 6)
COLUMNS = PolicyColumns(GAIN, DECISION, ENTROPY, CLASSES)
TAKEN = DECISION < Decision.DUPLICATE
LABELLED_BUT_5 = np.where(np.arange(N) == 5, -1, 0)
HAT = np.minimum(1, GAIN / np.quantile(GAIN[TAKEN].astype(np.float64), 0.99))


def policy(**values: object) -> PolicySettings:
    """Returns settings made from plain data, as the command line makes them, with no problems."""
    return build(PolicySettings, values, "policy")


def compile_with(**values: object) -> Compiled:
    result = compile_policy(COLUMNS, policy(**values))
    assert result.probabilities.dtype == np.float32
    return result


def test_without_a_budget_the_probability_is_the_normalised_gain() -> None:
    """p = ĝ; duplicates and dropped samples have 0 and stay out of the quantile, unless duplicates are let in."""
    result = compile_with()
    assert result.probabilities == pytest.approx(np.where(TAKEN, HAT, 0), abs=1e-7)
    assert (result.second, result.coupled) == (None, False)
    with_copies = DECISION < Decision.DROP
    hat = np.minimum(1, GAIN / np.quantile(GAIN[with_copies].astype(np.float64), 0.9))
    assert compile_with(deduplicate=False, quantile=0.9).probabilities == pytest.approx(np.where(with_copies, hat, 0), abs=1e-7)


@pytest.mark.parametrize(
    ("values", "power", "floor", "cap"),
    [
        ({"budget": "500"}, 1, 0, 1),
        ({"budget": "30 %", "temperature": 0.5}, 2, 0, 1),
        ({"budget": "1.2e3 samples", "temperature": 4}, 0.25, 0.1, 1),
        ({"budget": "6000", "cap": 7.5}, 1, 0.5, 7.5),
        ({"budget": "900", "entropy": 0.4}, 1, 0, 1),
    ],
)
def test_probabilities_solve_their_formula(values: dict[str, object], power: float, floor: float, cap: float) -> None:
    """clip(τ ĝ^α, floor, cap) with τ from scipy's root finder; Σ p is the budget."""
    result = compile_with(floor=floor, **values)
    mixed = HAT * (1 - values.get("entropy", 0)) + values.get("entropy", 0) * ENTROPY  # type: ignore[operator]  # a number where it is given
    weights = (mixed**power)[TAKEN]
    budget = budget_samples(str(values["budget"]), len(weights))
    root = brentq(lambda scale: np.clip(scale * weights, floor, cap).sum() - budget, 0, 1e9, xtol=1e-14)
    assert result.probabilities[TAKEN] == pytest.approx(np.clip(root * weights, floor, cap), rel=1e-6)
    assert not result.probabilities[~TAKEN].any()
    assert result.probabilities.sum(dtype=np.float64) == pytest.approx(budget, rel=1e-6)
    assert result.summary.scale == pytest.approx(root, rel=1e-6)


@quickly(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 300),
    share=st.floats(0.001, 1),
    floor=st.floats(0, 0.2),
    cap=st.floats(0.2, 255),
    temperature=st.floats(0.2, 100),
    spread=st.floats(0, 4),
)
def test_any_gains_any_budget(seed: int, size: int, share: float, floor: float, cap: float, temperature: float, spread: float) -> None:
    """Random gains over several orders of magnitude: Σ p is the budget, floor ≤ p ≤ cap, and p never falls as the gain rises."""
    rng = np.random.default_rng(seed)
    gain = np.exp(spread * rng.normal(size=size)).astype(np.float32)
    least, most = floor * size, cap * size
    budget = max(round(least + share * (most - least)), 1)
    if not least <= budget <= most:
        return
    settings = policy(budget=str(budget), floor=floor, cap=cap, temperature=temperature)
    p = compile_policy(PolicyColumns(gain, np.zeros(size, np.uint8)), settings).probabilities
    assert p.sum(dtype=np.float64) == pytest.approx(budget, rel=1e-6)
    assert np.float32(floor) <= p.min()
    assert p.max() <= np.float32(cap)
    assert (np.diff(p[np.argsort(gain)]) >= 0).all()


def test_a_scale_is_found_far_from_where_it_is_looked_for() -> None:
    """Weights over 30 orders of magnitude, floors, and a budget at either end of what is possible."""
    weights = (10.0 ** -np.arange(0, 30, 0.3)).astype(np.float32)
    for floor, cap, budget in ((0, 1, 99.9), (0, 1, 100), (0.5, 2, 50), (0.5, 2, 50.001), (0, 255, 25_499), (0, 1, 1e-3)):
        scale = solve_scale(weights, budget, floor, cap)
        assert np.clip(scale * weights.astype(np.float64), floor, cap).sum() == pytest.approx(budget, rel=1e-9)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (COLUMNS, {"budget": "1700"}, "an epoch of 1,700 samples cannot be drawn; allowed: 1 to 1,5"),
        (COLUMNS, {"budget": "100", "floor": 0.1}, "allowed: 15\\d to 1,5"),
        (COLUMNS, {"kind": "static", "budget": "110 %"}, "cannot be drawn"),
        (PolicyColumns(GAIN * 0, DECISION), {}, "every gain is 0"),
        (PolicyColumns(GAIN * np.float32("nan"), DECISION), {"gain": "settled"}, "policy.gain=settled.*sample \\d+ has no gain"),
        (PolicyColumns(GAIN, DECISION), {"entropy": 0.5}, "has no label entropy"),
        (PolicyColumns(GAIN, DECISION), {"balance": 0.5}, "needs labels"),
        (
            dataclasses.replace(COLUMNS, classes=LABELLED_BUT_5),
            {"balance": 0.5, "deduplicate": False},
            "sample 5 has none",
        ),
        (PolicyColumns(GAIN, np.full(N, 3, np.uint8)), {}, "all 2,000 samples are dropped or duplicates"),
    ],
)
def test_what_cannot_be_is_named(columns: PolicyColumns, values: dict[str, object], message: str) -> None:
    """Budgets out of reach, and gains, entropies or labels that are not there: an error with setting, value and range."""
    assert DECISION[5] != Decision.DROP
    with pytest.raises(UserError, match=message) as caught:
        compile_policy(columns, policy(**values))
    assert "policy." in str(caught.value)


def test_uniform_and_infinite_temperature_take_all_alike() -> None:
    """Every sample that may be taken once; with a budget, its share of it; and the same by gain at temperature .inf."""
    assert np.array_equal(compile_with(kind="uniform").probabilities, TAKEN)
    few = compile_with(kind="uniform", budget="25 %")
    assert few.probabilities[TAKEN] == pytest.approx(np.full(TAKEN.sum(), few.summary.epoch_samples / TAKEN.sum()), rel=1e-6)
    assert np.array_equal(compile_with(temperature=float("inf")).probabilities, TAKEN)


def test_balance_moves_samples_between_classes_at_the_same_length() -> None:
    """γ = 1 with equal gains: every class has as many visits an epoch; γ = ½ with gains: the formula, and the length without it."""
    even = compile_with(kind="uniform", balance=1, cap=200).probabilities
    visits = np.bincount(CLASSES[TAKEN], even[TAKEN])
    assert visits == pytest.approx(np.full(7, TAKEN.sum() / 7), rel=1e-5)
    counts = np.bincount(CLASSES[TAKEN])[CLASSES]
    result = compile_with(balance=0.5)
    length = compile_with().probabilities.sum(dtype=np.float64)
    weights = (HAT / counts**0.5)[TAKEN]
    root = brentq(lambda scale: np.minimum(scale * weights, 1).sum() - length, 0, 1e9, xtol=1e-14)
    assert result.probabilities[TAKEN] == pytest.approx(np.minimum(root * weights, 1), rel=1e-5)
    assert result.probabilities.sum(dtype=np.float64) == pytest.approx(length, rel=1e-6)


def test_static_draws_exactly_the_budget_by_its_inclusion_probabilities() -> None:
    """400 seeds: each draw has exactly 500 samples of those that may be taken; inclusion is within 4.5 binomial standard errors of p."""
    wanted = compile_with(budget="500").probabilities
    drawn = np.array([compile_with(kind="static", budget="500", seed=seed).probabilities for seed in range(400)])
    assert np.isin(drawn, [0, 1]).all()
    assert (drawn.sum(1) == 500).all()
    assert not drawn[:, ~TAKEN].any()
    error = np.sqrt(wanted * (1 - wanted) / len(drawn))
    z = (drawn.mean(0) - wanted)[error > 0.005] / error[error > 0.005]
    assert np.abs(z).max() < 4.5
    assert 0.9 < z.std() < 1.1
    again = compile_with(kind="static", budget="500", seed=7).probabilities
    assert np.array_equal(again, drawn[7]), "a function of the seed"


@quickly(deadline=None)
@given(shares=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), seed=st.integers())
def test_a_systematic_draw_has_its_number(shares: list[float], seed: int) -> None:
    """Any inclusion probabilities, scaled to a whole sum: exactly so many are drawn, all of p = 1 and none of p = 0."""
    p = np.array(shares)
    number = int(p.sum())
    if not number:
        return
    p *= number / p.sum()
    drawn = systematic_draw(p.astype(np.float32), number, seed)
    assert drawn.sum() == number
    assert not drawn[p == 0].any()
    certain = systematic_draw(np.array([0, 1, 0, 1, 1], np.float32), 3, seed)
    assert certain.tolist() == [False, True, False, True, True]


def test_two_phases_and_what_they_say_of_what_is_left_out() -> None:
    """Complement: which may be taken, left out where these are all; independent: max(second_floor, 1 - p)."""
    result = compile_with(kind="two-phase")
    assert result.coupled
    assert result.second is not None
    assert result.second.dtype == np.float32
    assert np.array_equal(result.second, TAKEN)
    everything = compile_policy(PolicyColumns(GAIN, np.zeros(N, np.uint8)), policy(kind="two-phase"))
    assert (everything.second, everything.coupled) == (None, True)
    apart = compile_with(kind="two-phase", phases="independent", second_floor=0.3, budget="40 %")
    assert not apart.coupled
    assert apart.second == pytest.approx(np.where(TAKEN, np.maximum(0.3, 1 - apart.probabilities), 0), abs=1e-7)


def test_the_summary_counts_what_was_compiled() -> None:
    """Every number of the summary against the columns; it is plain data."""
    floor = 0.3
    result = compile_with(kind="proportional", floor=floor, budget="60 %")
    p, told = result.probabilities[TAKEN].astype(np.float64), result.summary
    assert json.loads(json.dumps(dataclasses.asdict(told)))["num_trainable"] == TAKEN.sum()
    assert (told.num_samples, told.num_dropped, told.num_duplicates) == (N, (DECISION == 3).sum(), (DECISION == 2).sum())
    assert told.epoch_samples == pytest.approx(p.sum())
    assert told.mean_keep == pytest.approx(p.mean())
    assert told.second_samples is None
    assert told.quantile == pytest.approx(np.quantile(GAIN[TAKEN].astype(np.float64), 0.99), rel=1e-12)
    assert told.num_at_floor == (p <= np.float32(floor)).sum() > 0
    assert told.num_at_cap == (p == 1).sum() > 0
    assert told.histogram == tuple(np.histogram(p, told.edges)[0].tolist())
    assert told.ess == pytest.approx(1 / (p.mean() * (1 / p).mean()))
    assert told.warning == ""
    zero = compile_policy(PolicyColumns(np.where(np.arange(N) < 40, 0, GAIN), np.zeros(N, np.uint8)), policy()).summary
    assert zero.num_zero == 40
    two = compile_with(kind="two-phase").summary
    assert two.second_samples == pytest.approx(TAKEN.sum() - two.epoch_samples)
    assert two.ess == pytest.approx(1)


def test_a_sharp_policy_warns_of_its_effective_sample_size() -> None:
    """Half the samples at p = 1, half at 0.05: ESS = 1 / (0.525 · 10.5) by hand, and a warning that names the remedy; static has none."""
    assert effective_share(np.array([1, 0.05, 0], np.float32)) == pytest.approx(1 / (0.525 * 10.5))
    gain = np.where(np.arange(N) % 2, 1, 0.05).astype(np.float32)
    columns = PolicyColumns(gain, np.zeros(N, np.uint8))
    told = compile_policy(columns, policy()).summary
    assert "0.18" in told.warning
    assert "policy.floor" in told.warning
    assert compile_policy(columns, policy(kind="static", budget="10 %")).summary.warning == ""


def test_loss_weights_have_a_mean_of_one_where_they_are_drawn() -> None:
    """(1/p)^β: mean 1 under sampling; β = 1 makes Σ p · w · x the plain mean of x over p > 0; β = 0 weighs all alike."""
    p = compile_with(budget="35 %").probabilities
    values = RNG.normal(size=N)
    for beta in (0.0, 0.5, 1.0):
        assert (p * loss_weights(p, beta)).sum() / p.sum(dtype=np.float64) == pytest.approx(1)
    assert (p * loss_weights(p, 1) * values).sum() / p.sum(dtype=np.float64) == pytest.approx(values[p > 0].mean())
    assert loss_weights(p, 0)[p > 0] == pytest.approx(1)
    assert not loss_weights(p, 1)[p == 0].any()


SHARDS = np.array([300, 0, 1, 499, 700, 500], np.int64)
"""The 2,000 samples in shards."""


def visits_of(order: Order, epochs: int) -> npt.NDArray[np.int64]:
    """Returns int64[epochs, N] visits of each sample in each epoch."""
    ids = order.take(0, epochs * order.epoch_samples).ids.reshape(epochs, -1)
    return np.array([np.bincount(row, minlength=N) for row in ids])


def test_the_plan_draws_by_what_was_compiled(tmp_path: Path) -> None:
    """Acceptance 7.9.3: over 200 epochs of the real plan inclusion lies within 4.5 binomial standard errors of p, and means of columns
    weighted by 1 / p are unbiased within 3 of their own, where unweighted ones are far off.
    """
    p = compile_with(kind="proportional", budget="40 %", floor=0.02).probabilities
    order = Order(SHARDS, seed=3, window=3, rates=compiled_rates(tmp_path, SHARDS, p, probabilities=True))
    assert order.epoch_samples == round(p.sum(dtype=np.float64))
    counted = visits_of(order, 200)
    error = np.sqrt(p * (1 - p) / len(counted))
    z = (counted.mean(0) - p)[error > 0.005] / error[error > 0.005]
    assert np.abs(z).max() < 4.5
    assert 0.9 < z.std() < 1.1
    weights = loss_weights(p, 1)
    columns = np.stack([GAIN**2, ENTROPY, CLASSES == 3, np.random.default_rng(2).normal(size=N)])  # GAIN · weights hardly vary
    for column in columns:
        means = (counted * weights * column).sum(1) / counted.sum(1)
        assert abs(means.mean() - column[TAKEN].mean()) < 3 * means.std(ddof=1) / len(means) ** 0.5
    unweighted = (counted * columns[0]).sum(1) / counted.sum(1)
    assert abs(unweighted.mean() - columns[0][TAKEN].mean()) > 30 * unweighted.std(ddof=1) / len(unweighted) ** 0.5


def test_two_complement_phases_visit_every_sample_once(tmp_path: Path) -> None:
    """Acceptance 7.9.5: 50 pairs of coupled epochs of the real plan see each sample exactly once; the first of each draws by p."""
    result = compile_policy(PolicyColumns(GAIN, np.zeros(N, np.uint8)), policy(kind="two-phase"))
    rates = compiled_rates(tmp_path, SHARDS, result.probabilities, probabilities=True, coupled=True)
    order = Order(SHARDS, seed=5, window=3, rates=rates, coupled=result.coupled)
    pairs = order.take(0, 50 * N).ids.reshape(50, N)
    assert (np.sort(pairs, axis=1) == np.arange(N)).all()
    first = np.array([np.bincount(pair[: rates.epoch_samples], minlength=N) for pair in pairs])
    assert rates_of(rates) == pytest.approx(result.probabilities, abs=2e-3)
    assert np.abs(first.mean(0) - result.probabilities).mean() < 0.06


@pytest.mark.parametrize("values", [{}, {"budget": "30 %", "floor": 0.05}, {"deduplicate": False}])
def test_two_complement_phases_pass_over_what_may_not_be_taken(tmp_path: Path, values: dict[str, object]) -> None:
    """With dropped and duplicate samples, and gains of 0: 20 pairs of the real plan see each that may be taken once, and no other."""
    columns = PolicyColumns(np.where(np.arange(N) % 50 == 0, 0, GAIN).astype(np.float32), DECISION)
    result = compile_policy(columns, policy(kind="two-phase", **values))
    may = TAKEN if values.get("deduplicate", True) else DECISION != Decision.DROP
    assert result.second is not None
    np.save(tmp_path / "second.npy", result.second)
    paths = {"second": tmp_path / "second.npy", "coupled": result.coupled}
    rates = compiled_rates(tmp_path, SHARDS, result.probabilities, probabilities=True, **paths)
    order = Order(SHARDS, seed=5, window=3, rates=rates, coupled=result.coupled)
    first = round(result.summary.epoch_samples)
    assert order.lengths == (first, may.sum() - first)
    pairs = order.take(0, 20 * may.sum()).ids.reshape(20, -1)
    assert (np.sort(pairs, axis=1) == np.flatnonzero(may)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "uniform", "temperature": 2.0}, "temperature=2.0: kind=uniform does not use it"),
        ({"kind": "seed", "balance": 1.0, "gain": "settled"}, "gain=settled: kind=seed does not use it"),
        ({"seed": 3}, "seed=3: kind=proportional does not use it"),
        ({"second_floor": 0.2, "kind": "two-phase"}, "second_floor=0.2: phases=complement does not use it"),
        ({"kind": "static"}, "kind=static: needs to know how many samples"),
        ({"kind": "two-phase", "cap": 2.0, "budget": "10"}, "use cap<=1"),
        ({"floor": 0.9, "cap": 0.5}, "floor=0.9: is above cap=0.5"),
        ({"cap": 3.0}, "give a budget, or leave cap out"),
        ({"kind": "uniform", "balance": 1.0}, "changes nothing where each sample is taken once"),
        ({"budget": "20 epochs"}, "takes a number of samples above 0"),
        ({"budget": "0"}, "takes a number of samples above 0"),
        ({"cap": 300.0}, "255"),
        ({"temperature": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(values: dict[str, object], message: str) -> None:
    """Settings that the kind does not use or that contradict each other: an error that names setting, value and remedy."""
    with pytest.raises(UserError) as caught:
        policy(**values)
    assert message in str(caught.value)


def test_budgets_are_spelled_as_people_say_them() -> None:
    """Samples with or without the word, shares rounded up as durations are, and a bare number in YAML."""
    assert [budget_samples(text, 1001) for text in ("20000", "2e4 samples", "1 sample", "30 %", "33.3%")] == [20000, 20000, 1, 301, 334]
    assert policy(budget=20000).budget == "20000"


def test_the_gain_of_a_policy_is_the_column_that_it_names() -> None:
    """corrected as it stands; causal and settled combined from their modalities; kind=seed by the mean of the causal ones."""
    names = ("image_gain", "text_gain", "image_settled", "text_settled", "corrected")
    columns: Columns = {name: np.full(2, 0.1 * number, np.float32) for number, name in enumerate(names, 1)}
    expected = {"corrected": 0.5, "causal": 0.15, "settled": 0.35}
    assert {name: chosen_gain(columns, policy(gain=name))[0] for name in expected} == pytest.approx(expected)
    assert chosen_gain(columns, policy(gain="settled", combine="max"))[0] == pytest.approx(0.4)
    assert chosen_gain(columns, policy(kind="seed"))[0] == pytest.approx(0.15)
