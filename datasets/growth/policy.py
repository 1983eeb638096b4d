"""From gains to probabilities: how often an epoch takes each sample (InfoGrowth, arXiv 2405.18347, made exact and given a budget).

    ĝ(x) = min(1, gain(x) / Q),  Q the 99 % quantile of the gains of all samples that may be taken      as the paper normalises
    w(x) = (ĝ · (1 - e) + e · label entropy) ^ (1 / temperature) / (images of its class) ^ γ            the latter over its mean
    p(x) = clip(τ · w(x), floor, cap),  τ such that Σ p = budget;  without a budget what τ = 1 gives where γ = 0

    uniform       w = 1
    proportional  p, drawn anew every epoch
    static        one systematic draw (Madow, 1949) of exactly `budget` samples with the inclusion probabilities p; then 1 for them, else 0
    two-phase     p in the first, third, … epoch; in the others what it left over of all that may be taken (complement), or drawn by
                  max(second_floor, 1 - p) (independent)
    seed          two-phase, independent, τ = 1, on the mean of the raw causal gains, near-duplicates and all: InfoGrowth's own sampler

Dropped samples are never taken, near-duplicates only where `deduplicate` is off. The draws by p are the plan's (datasets/plan).

Letters: N samples, n of them that may be taken.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ...cli.errors import UserError
from ..counters import key, permute
from .columns import Columns, Decision
from .correction import combined
from .policy_settings import PolicySettings, budget_samples
from .policy_summary import PolicySummary, summarise

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_CHUNK = 1 << 20
_PASSES = 300
_EXACT = 1e-11  # of Σ p, before p is rounded to float32
_ORDER, _MARKS = 0x4F524452, 0x4D41524B  # what a key is for, so that no two uses share their draws
_ONE = 1 << 30  # units of the draw: up to 2³² samples fit into an int64


@dataclasses.dataclass(frozen=True)
class PolicyColumns:
    """What a policy looks at, of all training folders of a snapshot one after another, in the order of arrival."""

    gain: Floats
    """float32[N]; NaN where a sample has none, which a dropped one may."""
    decision: npt.NDArray[np.uint8]
    """uint8[N], values of `Decision`."""
    label_entropy: Floats | None = None
    """float32[N] in [0, 1], NaN: not known; None: there are no labels."""
    classes: npt.NDArray[np.int64] | None = None
    """int64[N] class of each, -1: none; None: there are no labels."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A policy, compiled."""

    probabilities: Floats
    """float32[N] expected visits an epoch; of two phases, of the first, third, … epoch."""
    second: Floats | None
    """float32[N], those of the others; None: as the first. Of coupled epochs 1 for the samples that may be taken, else 0; None: all may."""
    coupled: bool
    """Whether every second epoch takes just what the one before left over, of the samples that may be taken: a pair sees each once."""
    summary: PolicySummary


def chosen_gain(columns: Columns, settings: PolicySettings) -> Floats:
    """Returns float32[N] the gains that a policy goes by, of the columns `CAUSAL` and `SETTLED`; NaN where there is none."""
    plan = settings.resolved()
    if plan.gain == "corrected":
        corrected: Floats = columns["corrected"]
        return corrected
    suffix = "gain" if plan.gain == "causal" else "settled"
    return combined(columns[f"image_{suffix}"], columns[f"text_{suffix}"], plan.combine)


def compile_policy(columns: PolicyColumns, settings: PolicySettings) -> Compiled:
    """Returns how often each sample is taken, as the module says; Σ p is the budget within 1e-6 of it.

    Raises:
        UserError: when no sample can be taken, one has no gain, entropy or class where that is asked for, or the budget is out of reach.
    """
    plan = settings.resolved()
    left_out = [Decision.DROP, Decision.DUPLICATE] if plan.deduplicate else [Decision.DROP]
    taken = ~np.isin(columns.decision, left_out)
    if not taken.any():
        raise UserError(f"policy.deduplicate={plan.deduplicate}: all {len(taken):,} samples are dropped or duplicates; none can be taken")
    weights, quantile = _weights(columns, plan, taken)
    inclusion, scale = _inclusion(weights, columns, plan, taken)
    if not inclusion.any():
        why = "every gain is 0, so an epoch would have no sample"
        raise UserError(f"policy.gain={plan.gain}: {why}; raise policy.floor, or use policy.kind=uniform")
    second = _second(inclusion, plan)
    summary = summarise(columns.decision, inclusion, second, plan, quantile=quantile, scale=scale)
    first = _spread(inclusion, taken)
    if plan.kind == "static":
        assert plan.budget is not None, "PolicySettings.problems"
        first = systematic_draw(first, budget_samples(plan.budget, len(inclusion)), plan.seed).astype(np.float32)
    is_coupled = plan.kind == "two-phase" and plan.phases == "complement"
    if is_coupled:
        return Compiled(first, None if taken.all() else taken.astype(np.float32), is_coupled, summary)
    return Compiled(first, None if second is None else _spread(second, taken), is_coupled, summary)


def systematic_draw(inclusion: Floats, num_drawn: int, seed: int) -> Mask:
    """Returns bool[N] exactly `num_drawn` samples, each with its inclusion probability: a pure function of the arguments.

    The probabilities are laid end to end on a line in a keyed random order, and the line marked at U, U + 1, …: a sample on which a mark
    falls is drawn (systematic sampling; Madow, 1949).

    Args:
        inclusion: float32[N] in [0, 1], which add up to `num_drawn` within 1e-6 of it.
        seed: any integer.
    """
    units = np.rint(inclusion.astype(np.float64) * _ONE).astype(np.int64)
    while missing := num_drawn * _ONE - int(units.sum()):  # what rounding left is shared out
        able = np.flatnonzero((units > 0) & (units < _ONE) if missing > 0 else units > 1)
        share = -(-abs(missing) // len(able))
        able = able[: -(-abs(missing) // share)]
        units[able] = np.clip(units[able] + (share if missing > 0 else -share), 1, _ONE)
    order, places = np.empty_like(units), np.arange(len(units))
    for span in _spans(len(units)):
        order[span] = permute(places[span], len(units), key(seed, _ORDER))
    laid = units[order]
    ends = np.cumsum(laid) + int(key(seed, _MARKS)) % _ONE
    drawn = np.zeros(len(units), np.bool_)
    drawn[order] = ends // _ONE > (ends - laid) // _ONE
    return drawn


def solve_scale(weights: Floats, budget: float, floor: float, cap: float) -> float:
    """Returns τ with Σ clip(τ · w, floor, cap) = budget, within 1e-11 of it.

    The sum grows with τ in straight pieces: Newton's method finds the piece, held within the bisection's bracket.

    Raises:
        UserError: when the budget is out of reach.
    """
    num_positive = int(np.count_nonzero(weights))
    least, most = floor * len(weights), cap * num_positive + floor * (len(weights) - num_positive)
    if not (least <= budget <= most and budget > 0):
        held = f"{len(weights):,} samples may be taken, {num_positive:,} of them with a gain above 0, {floor:g} to {cap:g} times each"
        allowed = f"allowed: {max(math.ceil(least), 1):,} to {math.floor(most):,} ({held})"
        raise UserError(f"policy.budget: an epoch of {budget:,.0f} samples cannot be drawn; {allowed}; change policy.budget, floor or cap")
    low, high = 0.0, cap / float(weights[weights > 0].min(initial=1.0))
    scale = min(budget / float(weights.sum(dtype=np.float64) or 1.0), high)
    for _ in range(_PASSES):
        total, slope = _sums(weights, scale, floor, cap)
        if abs(total - budget) <= _EXACT * budget:
            return scale
        low, high = (scale, high) if total < budget else (low, scale)
        newton = scale + (budget - total) / slope if slope else high
        scale = newton if low < newton < high else math.sqrt(low * high) or high / 2
    raise UserError("policy.temperature: the gains span too many orders of magnitude to be scaled to the budget; raise it, or the budget")


def loss_weights(probabilities: Floats, beta: float) -> npt.NDArray[np.float64]:
    """Returns float64[N] (1 / p) ** β over their mean under sampling, Σ p ** (1 - β) / Σ p; 0 where p is 0.

    With β = 1 the mean of weight · loss over what is drawn estimates the plain mean over all samples of p > 0 (Horvitz and Thompson,
    1952); with 0 all weigh the same. The same weights as training's, `datasets/plan/loss_weights.py`, which never holds all of them.
    """
    p = probabilities.astype(np.float64)
    drawn = p > 0
    weights = np.zeros(len(p))
    weights[drawn] = p[drawn] ** -beta
    weights /= (p * weights).sum() / p.sum()
    return weights


def keep_decisions(probabilities: Floats, uniforms: npt.NDArray[np.float64]) -> tuple[Mask, Mask]:
    """Returns bool[N] which samples the two phases keep that share their uniforms in [0, 1): u < p in the first, u ≥ p in the second.

    By itself the first is a Bernoulli draw by p, as InfoGrowth's are, with uniforms of its own each epoch.
    """
    first = uniforms < probabilities
    return first, ~first


def _weights(columns: PolicyColumns, plan: PolicySettings, taken: Mask) -> tuple[Floats, float | None]:
    """Returns (float32[n] weights before the balance of classes, the quantile of the gains; None where all count alike)."""
    if plan.kind == "uniform":
        return np.ones(np.count_nonzero(taken), np.float32), None
    gain = np.maximum(_known(columns.gain, taken, f"policy.gain={plan.gain}, policy.combine={plan.combine}", "gain"), 0)
    upper = _quantile(gain, plan.quantile)
    entropy = _known(columns.label_entropy, taken, f"policy.entropy={plan.entropy:g}", "label entropy") if plan.entropy else None
    for span in _spans(len(gain)):
        part = gain[span].astype(np.float64)
        part = np.minimum(part / upper, 1.0) if upper else np.sign(part)  # 0 where nearly all are copies: then the others count as 1
        if entropy is not None:
            part = part * (1 - plan.entropy) + plan.entropy * entropy[span]
        gain[span] = part ** (1 / plan.temperature)
    return gain, upper


def _known(column: Floats | None, taken: Mask, what: str, name: str) -> Floats:
    values = np.full(np.count_nonzero(taken), np.nan, np.float32) if column is None else column[taken]
    if np.isnan(values).any():
        sample = int(np.flatnonzero(taken)[np.isnan(values)][0])
        raise UserError(f"{what}: sample {sample} has no {name}; grow with what it is made from, or choose another")
    return values


def _quantile(values: Floats, share: float) -> float:
    """Returns numpy's `quantile` of float64, without that copy of the column."""
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    ordered = np.partition(values, (below, above))
    low, high = float(ordered[below]), float(ordered[above])
    return low + (high - low) * (place - below)


def _inclusion(weights: Floats, columns: PolicyColumns, plan: PolicySettings, taken: Mask) -> tuple[Floats, float]:
    """Returns (float32[n] probabilities p, τ)."""
    cap = 1.0 if plan.kind == "static" else plan.cap
    scale = 1.0
    budget = _sums(weights, scale, plan.floor, cap)[0] if plan.budget is None else budget_samples(plan.budget, len(weights))
    if plan.balance:
        weights = (weights * _class_factors(columns, taken, plan.balance)).astype(np.float32)
    if (plan.budget is not None or plan.balance) and budget:
        scale = solve_scale(weights, budget, plan.floor, cap)
    inclusion = np.empty_like(weights)
    for span in _spans(len(weights)):
        inclusion[span] = np.clip(weights[span].astype(np.float64) * scale, plan.floor, cap)
    return inclusion, scale


def _class_factors(columns: PolicyColumns, taken: Mask, balance: float) -> npt.NDArray[np.float64]:
    """Returns float64[n] (images of the class of each) ** -γ, over their mean."""
    classes = np.full(np.count_nonzero(taken), -1) if columns.classes is None else columns.classes[taken]
    if classes.min() < 0:
        sample = int(np.flatnonzero(taken)[classes < 0][0])
        raise UserError(f"policy.balance={balance:g}: needs labels, and sample {sample} has none; label it, or leave balance out")
    factors = np.maximum(np.bincount(classes), 1) ** -balance
    return np.asarray(factors[classes] / factors[classes].mean())


def _second(inclusion: Floats, plan: PolicySettings) -> Floats | None:
    """Returns float32[n] the probabilities of every second epoch (of coupled ones on average), None where there are no phases."""
    if plan.kind != "two-phase":
        return None
    left = 1 - inclusion
    return left if plan.phases == "complement" else np.maximum(left, np.float32(plan.second_floor))


def _sums(weights: Floats, scale: float, floor: float, cap: float) -> tuple[float, float]:
    """Returns (Σ clip(τ · w, floor, cap), its slope)."""
    total = slope = 0.0
    for span in _spans(len(weights)):
        part = weights[span].astype(np.float64)
        scaled = part * scale
        total += float(np.clip(scaled, floor, cap).sum())
        slope += float(part[(scaled > floor) & (scaled < cap)].sum())
    return total, slope


def _spans(num_samples: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, num_samples, _CHUNK))


def _spread(values: Floats, taken: Mask) -> Floats:
    """Returns float32[N], 0 for what is not taken."""
    column = np.zeros(len(taken), np.float32)
    column[taken] = values
    return column
