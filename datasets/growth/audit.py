"""How far the gains of a step are from exact ones, on samples that are chosen before anything is known of them.

The index misses neighbours now and then, and a missed neighbour raises the gain: redundant samples would pass for new. So every step
compares some of its samples with all earlier codes, one by one, and a step whose gains are too far off does not become part of a snapshot.

Letters: A samples audited, N codes, D width, k neighbours.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from ..counters import key, permute
from ..ranks import Ranks
from .codes import Codes
from .codes import cosines as cosines_of
from .gain import gains_of
from .lists import Ids, Neighbours, top
from .state import Codebook

_AUDIT = 0x41554454
_FAR = 0.05
_SPARE = 4


@dataclasses.dataclass(frozen=True)
class Audit:
    """The error of a modality's gains in a step: gain found minus exact gain, in cosine distance."""

    modality: str
    samples: int
    bias: float
    """Mean error."""
    p50: float
    """Quantiles of the absolute error."""
    p99: float
    max: float
    share_over: float
    """Share of samples whose gain is off by more than 0.05."""
    num_cells: int
    """Of the index when the step ended; 1: it compared everything, 0: it has none."""


def audited_rows(num_rows: int, count: int, seed: int, first: int) -> Ids:
    """Returns, sorted, which rows of a source that begins with arrival `first` are audited."""
    return np.sort(permute(np.arange(min(count, num_rows)), num_rows, key(seed, _AUDIT, first)))


def audit(
    modality: str, codebook: Codebook, arrivals: Ids, found: npt.NDArray[np.float32], k: int, num_cells: int, ranks: Ranks
) -> Audit:
    """Returns how far the gains found, float32[A], of some arrivals are from those by all earlier codes; ranks share the work."""
    places = _places(codebook, arrivals)
    exact = gains_of(exact_neighbours(codebook, codebook.rows(places), arrivals, k, ranks)).gain
    errors = found.astype(np.float64) - exact
    absolute = np.abs(errors) if len(errors) else np.zeros(1)
    bias = float(errors.mean()) if len(errors) else 0.0
    p50, p99 = (float(value) for value in np.quantile(absolute, (0.5, 0.99)))
    return Audit(modality, len(errors), bias, p50, p99, float(absolute.max()), float((absolute > _FAR).mean()), num_cells)


def exact_neighbours(codebook: Codebook, codes_AD: Codes, before_A: Ids, k: int, ranks: Ranks) -> Neighbours:
    """Returns the k nearest of all codes that arrived before each, with every code compared.

    Some more than k are found in float32, whose sums depend on threads; then those are compared exactly, see `codes`.
    """
    wanted = torch.from_numpy(codes_AD.astype(np.float32)).to(ranks.device)
    best = Neighbours(np.full((len(codes_AD), k), -np.inf, np.float32), np.full((len(codes_AD), k), -1, np.int64))
    for number, (codes_ND, arrivals_N) in enumerate(codebook.blocks()):
        if number % ranks.world_size != ranks.rank or not len(codes_AD) or arrivals_N[0] >= before_A.max():
            continue
        near = wanted @ torch.from_numpy(codes_ND.astype(np.float32)).to(ranks.device).T
        is_late = torch.tensor(arrivals_N)[None] >= torch.from_numpy(before_A)[:, None]
        near.masked_fill_(is_late.to(ranks.device), -torch.inf)
        cosines, columns = (part.cpu().numpy() for part in near.topk(min(k + _SPARE, len(arrivals_N)), dim=1))
        ids = np.where(np.isinf(cosines), -1, arrivals_N[columns])
        best = top(np.hstack([best.cosines, cosines]), np.hstack([best.ids, ids]), k + _SPARE)
    told = ranks.from_all(best)
    best = top(np.hstack([part.cosines for part in told]), np.hstack([part.ids for part in told]), k + _SPARE)
    return top(_exactly(codebook, codes_AD, best.ids), best.ids, k)


def _exactly(codebook: Codebook, codes_AD: Codes, ids_AM: Ids) -> npt.NDArray[np.float32]:
    """Returns float32[A, M] the cosines of codes with those that arrived as `ids`, -inf for id -1."""
    known, inverse = np.unique(ids_AM[ids_AM >= 0], return_inverse=True)
    others = codebook.rows(_places(codebook, known))
    found = np.full(ids_AM.shape, -np.inf, np.float32)
    rows = np.nonzero(ids_AM >= 0)[0]
    found[ids_AM >= 0] = cosines_of(codes_AD[rows], others[inverse])
    return found


def _places(codebook: Codebook, arrivals: Ids) -> Ids:
    """Returns the places of arrivals, sorted, among the codes."""
    return np.searchsorted(codebook.arrivals(), arrivals).astype(np.int64)
