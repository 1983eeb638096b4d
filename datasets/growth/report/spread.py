"""Statistics of columns that are too long to hold: counts of values on a fine grid, and the rows at its ends.

Letters: n rows of a part, G groups, V levels.
"""

import numpy as np
import numpy.typing as npt

from ..columns import Column, Columns

_LEVELS = 2000
_WIDTHS = [width for width in range(1, _LEVELS + 1) if _LEVELS % width == 0]
_ORDER = "order"


class Spread:
    """How values lie in each of G groups, on a grid of 2,000 levels over [low, high]; what lies outside counts at the nearer end."""

    def __init__(self, num_groups: int, low: float, high: float) -> None:
        self.counts = np.zeros((num_groups, _LEVELS), np.int64)
        """int64[G, V]."""
        self.edges = np.linspace(low, high, _LEVELS + 1)
        """float64[V + 1] the borders of the levels."""

    def add(self, groups: Column, values: Column) -> None:
        """Counts values[n], those that are NaN aside, in their groups[n]."""
        known = ~np.isnan(values)
        if not known.any():
            return
        groups, low, step = groups[known].astype(np.int64), self.edges[0], self.edges[1] - self.edges[0]
        levels = np.clip((values[known].astype(np.float64) - low) / step, 0, _LEVELS - 1).astype(np.int64)
        first, stop = int(groups.min()), int(groups.max()) + 1
        found = np.bincount((groups - first) * _LEVELS + levels, minlength=(stop - first) * _LEVELS)
        self.counts[first:stop] += found.reshape(stop - first, _LEVELS)

    def quantile(self, share: float) -> npt.NDArray[np.float64]:
        """Returns float64[G] where the smallest value lies that `share` of its group does not exceed, to a level; NaN of an empty group."""
        totals, sums = self.counts.sum(1), self.counts.cumsum(1)
        wanted = np.maximum(np.ceil(share * totals), 1)
        level = (sums < wanted[:, None]).sum(1).clip(max=_LEVELS - 1)
        groups = np.arange(len(totals))
        inside = self.counts[groups, level]
        before = sums[groups, level] - inside
        step = self.edges[1] - self.edges[0]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(totals > 0, self.edges[level] + step * (wanted - before - 0.5) / inside, np.nan)

    def histogram(self, num_bins: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Returns int64[G, b] counts and float64[b + 1] borders of b ≤ `num_bins` equal bins over what of the grid is in use."""
        used = np.flatnonzero(self.counts.any(0))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        width = next(width for width in _WIDTHS if last // width - first // width < num_bins)
        starts = np.arange(first // width * width, last + 1, width)
        stop = int(starts[-1]) + width
        return np.add.reduceat(self.counts[:, :stop], starts, axis=1), self.edges[[*starts, stop]]


class Extremes:
    """The `count` rows with the lowest values, of all that were shown to it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: Columns = {}

    def add(self, order: Column, columns: Columns) -> None:
        """Looks at rows with the values order[n]; NaN: such a row is not wanted."""
        wanted = np.flatnonzero(~np.isnan(order))
        if len(wanted) > self._count > 0:
            wanted = wanted[np.argpartition(order[wanted], self._count - 1)[: self._count]]
        found = {name: column[wanted] for name, column in ({_ORDER: order} | columns).items()}
        held = {name: np.concatenate([self._held[name], part]) for name, part in found.items()} if self._held else found
        best = np.argsort(held[_ORDER], kind="stable")[: self._count]
        self._held = {name: column[best] for name, column in held.items()}

    @property
    def columns(self) -> Columns:
        """The columns of these rows, the lowest first; none where nothing was ever shown."""
        return {name: column for name, column in self._held.items() if name != _ORDER}
