"""What a policy comes to, in numbers to be looked at before training."""

import dataclasses

import numpy as np
import numpy.typing as npt

from .columns import Decision
from .policy_settings import PolicySettings

Floats = npt.NDArray[np.float32]

LEAST_ESS = 0.5

_BINS = 20


@dataclasses.dataclass(frozen=True)
class PolicySummary:
    """Of all N samples; plain numbers, so that `dataclasses.asdict` fits into JSON. Of a static draw p is what it is drawn by."""

    num_samples: int
    num_dropped: int
    num_duplicates: int
    num_trainable: int
    """Samples that may be taken."""
    epoch_samples: float
    """Expected samples of an epoch, Σ p; of two phases, of the first."""
    second_samples: float | None
    """The same of every second epoch, where there are two phases."""
    mean_keep: float
    """Mean of p over the samples that may be taken."""
    quantile: float | None
    """Gain that counts as 1; None: all count alike."""
    scale: float
    """τ."""
    ess: float
    """Effective sample size of full inverse-probability weights, as a share: 1 / (E[p] · E[1 / p]) over p > 0."""
    num_zero: int
    """Samples that may be taken, and have p = 0."""
    num_at_floor: int
    """Those held at a floor above 0."""
    num_at_cap: int
    histogram: tuple[int, ...]
    """Samples that may be taken by p, in bins of equal width."""
    edges: tuple[float, ...]
    """Their borders, one more."""
    warning: str
    """What is amiss; empty: nothing."""


def summarise(
    decision: npt.NDArray[np.uint8], inclusion: Floats, second: Floats | None, plan: PolicySettings, *, quantile: float | None, scale: float
) -> PolicySummary:
    """Returns the numbers of a policy.

    Args:
        decision: uint8[N].
        inclusion, second: float32[n] probabilities of the samples that may be taken.
        quantile, scale: what they were made with.
    """
    counts, edges = np.histogram(inclusion, bins=_BINS, range=(0.0, max(1.0, float(inclusion.max()))))
    expected = float(inclusion.sum(dtype=np.float64))
    ess = effective_share(_visits(inclusion, second, plan))
    return PolicySummary(
        num_samples=len(decision),
        num_dropped=int(np.count_nonzero(decision == Decision.DROP)),
        num_duplicates=int(np.count_nonzero(decision == Decision.DUPLICATE)),
        num_trainable=len(inclusion),
        epoch_samples=expected,
        second_samples=None if second is None else float(second.sum(dtype=np.float64)),
        mean_keep=expected / len(inclusion),
        quantile=quantile,
        scale=scale,
        ess=ess,
        num_zero=int(np.count_nonzero(inclusion == 0)),
        num_at_floor=int(np.count_nonzero(inclusion <= np.float32(plan.floor))) if plan.floor else 0,
        num_at_cap=int(np.count_nonzero(inclusion >= np.float32(1.0 if plan.kind == "static" else plan.cap))),
        histogram=tuple(counts.tolist()),
        edges=tuple(edges.tolist()),
        warning=_warning(ess),
    )


def effective_share(visits: Floats) -> float:
    """Returns 1 / (E[p] · E[1 / p]) over p > 0, in (0, 1]: how much of a sample is left when losses are weighted by 1 / p (Kish 1965)."""
    drawn = visits[visits > 0].astype(np.float64)
    return float(1 / (drawn.mean() * (1 / drawn).mean()))


def _visits(inclusion: Floats, second: Floats | None, plan: PolicySettings) -> Floats:
    """Returns how often an epoch takes the samples that are taken at all, on average: what their losses would be weighted by."""
    if plan.kind == "static":
        return np.ones(1, np.float32)
    return inclusion if second is None else (inclusion + second) / np.float32(2)


def _warning(ess: float) -> str:
    if ess >= LEAST_ESS:
        return ""
    told = f"with sampling.loss_beta=1 the effective sample size is {ess:.2f} of what is drawn, below {LEAST_ESS:g}"
    return f"{told}: some samples are taken too rarely for their weight; raise policy.floor or policy.temperature, or keep loss_beta small"
