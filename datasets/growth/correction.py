"""Gains made comparable: those of two modalities as one, and the drift of causal gain with arrival taken out.

The more samples there are, the nearer the nearest of them, so the same kind of sample has a smaller causal gain the later it arrives: by
half over 60,000 samples, most of it at the start. What arrives at about the same time is compared with nearly the same samples, so

    corrected(x) = gain(x) · m(last window) / m(window of x),    m = mean gain of the accepted samples of a window of arrivals

which stays a cosine distance: about the one that x would have, had it arrived last. Windows are geometric, as the drift is. Of i.i.d.
data this is flat; where the data itself changes, say by a new source, a window's novelty over the one before is taken for drift, and
what is left are differences within windows.

m is the mean, not the median. Gains lie in [0, 2], so no outlier moves it far; it is 0 only where all gains are, not where half of
the samples are copies; and it leaves less drift: of 12,000 clustered vectors, whose causal gain falls by half, no tenth's mean ĝ is off
by more than 1 % after correction, against 10 % with the median (measured, tests/datasets/growth/test_correction.py).

Letters: N samples in the order of arrival.
"""

import itertools
import math

import numpy as np
import numpy.typing as npt

from .policy_settings import Combination

Gains = npt.NDArray[np.float32]

WINDOW = 1_000_000
"""Greatest samples of a window."""

_LEAST_WINDOW, _WINDOW_SHARE = 128, 0.15


def combined(image: Gains, text: Gains, how: Combination) -> Gains:
    """Returns float32[N] one gain of the two, where a sample has both; else the one it has, NaN where none.

    Args:
        image, text: float32[N]; NaN: there is no such modality, of that sample or at all.
        how: the arithmetic mean (InfoGrowth's, arXiv 2405.18347), the geometric mean, the greater; or the one of `image` or `text` alone,
            which the other does not stand in for.
    """
    if how in ("image", "text"):
        return image if how == "image" else text
    if how == "mean":
        both = (image + text) / np.float32(2)
    elif how == "geometric":
        both = np.sqrt(np.maximum(image, 0) * np.maximum(text, 0))  # rounding may leave a distance just below 0
    else:
        both = np.maximum(image, text)
    result: Gains = np.where(np.isnan(image), text, np.where(np.isnan(text), image, both))
    return result


def windows(num_samples: int, window: int = WINDOW) -> list[int]:
    """Returns the borders of the windows of arrival, from 0 to N: each 15 % of what came before, 128 samples at least, `window` at most.

    A last window of less than half its size joins the one before.
    """
    borders = [0]
    while borders[-1] < num_samples:
        size = min(max(math.ceil(_WINDOW_SHARE * borders[-1]), _LEAST_WINDOW), window)
        borders.append(borders[-1] + size)
        if borders[-1] > num_samples:
            is_short = 2 * (num_samples - borders[-2]) < size and len(borders) > 2
            borders[-2 if is_short else -1 :] = [num_samples]
    return borders


def corrected(gain: Gains, accepted: npt.NDArray[np.bool_], window: int = WINDOW) -> Gains:
    """Returns float32[N] gains without the drift of arrival, as the module says; NaN stays NaN.

    Args:
        gain: float32[N] causal gains in the order of arrival.
        accepted: bool[N] samples whose gains the means are of; a window without any, or whose mean is 0, is left as it is.
        window: greatest samples of a window.
    """
    spans = [slice(start, stop) for start, stop in itertools.pairwise(windows(len(gain), window))]
    means = np.array([_mean(gain[span], accepted[span]) for span in spans])
    known = means[means > 0]
    result = gain.copy()
    for span, mean in zip(spans, means.tolist(), strict=True):
        if mean > 0:
            result[span] *= np.float32(known[-1] / mean)
    return result


def _mean(gain: Gains, accepted: npt.NDArray[np.bool_]) -> float:
    """Returns the mean gain of the accepted samples that have one; 0 where there are none."""
    counted = gain[accepted & ~np.isnan(gain)]
    return float(counted.mean(dtype=np.float64)) if len(counted) else 0.0
