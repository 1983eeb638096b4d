"""Figures that jump: each is compared with the last log lines' by a rule that single jumps do not sway.

    expected  = median of the last 50 lines
    deviation = max(1.4826 · median |line − expected|, 1 % of |expected|)
    factor    = (figure − expected) / deviation

1.4826 makes the median absolute deviation the standard deviation of a normal law. Source: Iglewicz and Hoaglin, How to Detect and Handle
Outliers, 1993, whose modified z-score this is. Nothing is said before there are 10 lines to compare with.
"""

import dataclasses
import math
import statistics
from collections import deque

LINES, LEAST = 50, 10
_NORMAL = 1.4826
_LEAST_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Spike:
    """A figure that jumped."""

    value: float
    expected: float
    factor: float
    """Robust standard deviations above what was expected."""


class Spikes:
    """Watches one figure. `factor`: from how many deviations on it speaks; 0: it never does."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._lines: deque[float] = deque(maxlen=LINES)

    def take(self, value: float | None) -> Spike | None:
        """Takes a line's figure (None, or one that is not finite, is passed over); returns it if it is a spike."""
        if not self._factor or value is None or not math.isfinite(value):
            return None
        found = self._compare(value) if len(self._lines) >= LEAST else None
        self._lines.append(value)
        return found

    def _compare(self, value: float) -> Spike | None:
        expected = statistics.median(self._lines)
        deviation = _NORMAL * statistics.median(abs(line - expected) for line in self._lines)
        factor = (value - expected) / max(deviation, _LEAST_SHARE * abs(expected), 1e-30)
        return Spike(value, expected, factor) if factor >= self._factor else None
