"""From weights to rates: how often each sample is to be taken an epoch, compiled to a weight column on disk.

    weights         rate_i = min(max_repeats, τ · w_i), with τ such that the rates add up to the epoch's samples
    probabilities   rate_i = p_i, scaled by E / Σ p to the whole number E of samples that is nearest to their sum
    second          a further column, scaled by itself, by which every second epoch draws: the two phases of InfoGrowth (arXiv 2405.18347);
                    of coupled epochs which samples a pair sees, 1 or 0: the second takes these less what the first drew
    balance γ       each weight is divided by (images of its class) ** γ: 1 makes classes equal, ½ the square-root rule; of a sample
                    with several classes the rarest counts (as in repeat-factor sampling, LVIS, arXiv 1908.03195)

Columns are worked through in chunks: memory does not grow with the number of samples.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError, UserError
from ..atomic import publish_folder
from ..index import Index
from .groups import form_groups
from .rates import GROUPS_NAME, MAX_RATE, MEMBERS, ONE, RATES_NAME, SECOND, STARTS_NAME, write_card

Floats = npt.NDArray[np.float64]
Chunks = Callable[[int, int], Floats]
"""Weights of the samples start ≤ i < stop, float64[stop - start]."""

Solution = tuple[float, float, int]
"""τ, the greatest rate, samples an epoch."""

OF_SNAPSHOT = "data.snapshot"
"""The setting that messages name where a snapshot's policy made the weights; no other setting can change them then."""

_CHUNK = 1 << 20
_PASSES = 100  # each pass caps at least one more weight; in practice a handful


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighting:
    """What makes a weight column."""

    weights: Path | None = None
    """An .npy file, one number of at least 0 per sample in index order; None: all equal."""
    probabilities: bool = False
    """Whether they are taken as they stand."""
    balance: float = 0.0
    """The exponent γ."""
    max_repeats: float = 8.0
    """Greatest rate."""
    epoch_samples: int | None = None
    """Samples an epoch; None: the sum of the probabilities, else as many as there are, of coupled epochs half as many (of members)."""
    coupled: bool = False
    """Whether what an epoch leaves out makes the next one; no rate may exceed 1 then."""
    second: Path | None = None
    """A file like `weights`, by which the epochs 1, 3, 5, … draw; they may have another length. None: as the others.

    With `coupled` the membership: 1 for the samples that a pair of epochs sees, once each; 0 for the others, whose weights must be 0.
    None: it sees all.
    """
    grouped: bool = False
    """Whether an epoch reads only some of the shards, where rates are low enough: see groups.py. Not with `coupled`."""

    @property
    def is_even(self) -> bool:
        """Whether every sample is taken once an epoch, so that no weight column is needed."""
        return self.weights is None and self.second is None and not self.balance and self.epoch_samples is None


def drawn_samples(weighting: Weighting, index: Index, what: str) -> int:
    """Returns the samples an epoch draws, having looked at every weight; errors as `compile_rates`.

    Of two columns that are drawn by it is the mean, rounded up: one of them may come to no sample. Of coupled epochs it is what the first
    draws, 0 where their probabilities come to no sample: the second then takes all that a pair sees.
    """
    columns = _columns(weighting, what)
    return _mean_length(_solve_all(columns, _chunks_of(columns, index, what), len(index), what))


def paired_samples(weighting: Weighting, num_samples: int, what: str) -> int:
    """Returns the samples that a pair of coupled epochs sees, of `num_samples`: the members, or all; errors as `compile_rates`."""
    assert weighting.coupled
    return num_samples if weighting.second is None else int(np.count_nonzero(_open_weights(weighting.second, num_samples, what)))


def compile_rates(
    weighting: Weighting, index: Index, shard_counts: npt.NDArray[np.int64], folder: Path, what: str, data_hash: str = ""
) -> None:
    """Writes the weight column of the samples of `index` as the folder `folder`, which must not exist; `data_hash` is noted in it.

    Raises:
        UserError: for a weight file of another length or kind, weights that cannot give such an epoch, or settings that do not go
            together; `what` names the setting.
    """
    columns = _columns(weighting, what)
    chunks = _chunks_of(columns, index, what)
    solved = _solve_all(columns, chunks, len(index), what)
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for prefix, solution in solved.items():
            _write_rates(temporary / f"{prefix}{RATES_NAME}", chunks[prefix], len(index), *solution)
            _write_sums(temporary, prefix, shard_counts, grouped=weighting.grouped)
        write_card(temporary, len(index), _mean_length(solved), {**made_by(weighting), "data_hash": data_hash})
        publish_folder(temporary, folder)
    except BaseException:  # also a Ctrl-C: a half-written column, as large as the data, is not left behind
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def made_by(weighting: Weighting) -> dict[str, Any]:
    """Returns what `rates.json` says of how a column was made: the settings, and size and time of the weight files as they are now."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings_of(weighting).items()}
    for name in ("weights", "second"):
        path = getattr(weighting, name)
        if path is not None and path.exists():
            status = path.stat()
            settings[f"{name}_file"] = [status.st_size, status.st_mtime_ns]
    return settings


def settings_of(weighting: Weighting) -> dict[str, Any]:
    """Returns the settings by name; what came later is left out where it is not used, so that columns are called what they were before."""
    later = {"second": None, "grouped": False}
    return {name: value for name, value in dataclasses.asdict(weighting).items() if name not in later or value != later[name]}


def _columns(weighting: Weighting, what: str) -> dict[str, Weighting]:
    """Returns what makes each column, by what the names of its files begin with."""
    if weighting.coupled and weighting.grouped:
        why = "every second of coupled epochs takes just what the one before left over, of all shards"
        raise UserError(f"{what}: coupled=True with grouped=True: {why}; leave one out")
    if weighting.second is None:
        return {"": weighting}
    if weighting.weights is None:
        raise UserError(f"{what}: the second column {weighting.second} needs a first; give weights for the epochs 0, 2, 4, … as well")
    if weighting.coupled:
        return {"": weighting, MEMBERS: dataclasses.replace(weighting, weights=weighting.second, probabilities=True, balance=0.0)}
    return {"": weighting, SECOND: dataclasses.replace(weighting, weights=weighting.second)}


def _chunks_of(columns: dict[str, Weighting], index: Index, what: str) -> dict[str, Chunks]:
    return {prefix: _chunks(column, index, what) for prefix, column in columns.items()}


def _chunks(weighting: Weighting, index: Index, what: str) -> Chunks:
    """Returns what gives the weights, balanced, by stretches."""
    column = None if weighting.weights is None else _open_weights(weighting.weights, len(index), what)
    factors = None
    if weighting.balance:
        counts = np.zeros(0, np.int64)
        for at in range(0, len(index.labels), _CHUNK):
            more = np.bincount(index.labels[at : at + _CHUNK], minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
            index.give_back()
        factors = np.maximum(counts, 1) ** -float(weighting.balance)

    def weights(start: int, stop: int) -> Floats:
        values = np.ones(stop - start) if column is None else column[start:stop].astype(np.float64)
        if not np.isfinite(values).all() or values.min(initial=0) < 0:
            bad = start + int(np.flatnonzero(~np.isfinite(values) | (values < 0))[0])
            found = f"sample {bad} has {values[bad - start]}"
            raise UserError(f"{what}={weighting.weights}: {found}; every weight must be finite and at least 0")
        return values if factors is None else values * _class_factors(index, factors, start, stop, what)

    return weights


def _open_weights(path: Path, num_samples: int, what: str) -> npt.NDArray[Any]:
    try:
        column: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{what}={path}: not a readable .npy file: {' '.join(str(error).split())}") from None
    if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in "fiu":
        raise UserError(f"{what}={path}: must be one .npy column of numbers")
    if len(column) != num_samples:
        raise UserError(f"{what}={path}: holds {len(column):,} numbers for {num_samples:,} samples; give one per sample, in index order")
    return column


def _class_factors(index: Index, factors: Floats, start: int, stop: int, what: str) -> Floats:
    bounds = index.label_starts[start : stop + 1].astype(np.int64)
    if (np.diff(bounds) == 0).any():
        sample = start + int(np.flatnonzero(np.diff(bounds) == 0)[0])
        raise UserError(f"{what}: sampling.balance needs labels, and sample {sample} has none")
    largest: Floats = np.maximum.reduceat(factors[index.labels[bounds[0] : bounds[-1]]], bounds[:-1] - bounds[0])
    index.give_back()
    return largest


def _spans(num_samples: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _CHUNK, num_samples)) for start in range(0, num_samples, _CHUNK))


def _solve_all(columns: dict[str, Weighting], chunks: dict[str, Chunks], num_samples: int, what: str) -> dict[str, Solution]:
    usual = num_samples
    if columns[""].coupled:
        num_members = _count_members(columns, chunks, num_samples, what) if MEMBERS in columns else num_samples
        usual = -(-num_members // 2)
    solved = {prefix: _solve(column, chunks[prefix], num_samples, usual, what) for prefix, column in columns.items()}
    if SECOND in solved and not any(epoch_samples for _, _, epoch_samples in solved.values()):
        first, second = (columns[prefix].weights for prefix in ("", SECOND))
        why = "the probabilities of both come to no sample, so neither epoch would have one"
        raise UserError(f"{what}={first}, {second}: {why}; {_remedy(what, 'raise them')}")
    return solved


def _remedy(what: str, usual: str) -> str:
    return "make a snapshot of another policy: bamboo grow" if what == OF_SNAPSHOT else usual


def _count_members(columns: dict[str, Weighting], chunks: dict[str, Chunks], num_samples: int, what: str) -> int:
    """Returns the number of members, having looked that all are 1 or 0 and only members have a weight above 0."""
    weights, members, count = columns[""].weights, columns[MEMBERS].weights, 0
    for start, stop in _spans(num_samples):
        values, own = chunks[MEMBERS](start, stop), chunks[""](start, stop)
        for at in np.flatnonzero((values != 0) & (values != 1))[:1].tolist():
            why = "the second column of coupled epochs says which samples a pair sees; give 1 or 0"
            raise UserError(f"{what}={members}: sample {start + at} has {values[at]:g}: {why}")
        for at in np.flatnonzero((values == 0) & (own > 0))[:1].tolist():
            why = f"has the weight {own[at]:g}, and 0 in {members}, so no epoch may take it"
            raise UserError(f"{what}={weights}: sample {start + at} {why}; give it the weight 0, or 1 there")
        count += int(np.count_nonzero(values))
    return count


def _mean_length(solved: dict[str, Solution]) -> int:
    """Returns the mean samples an epoch of the columns that are drawn by, rounded up."""
    lengths = [epoch_samples for prefix, (_, _, epoch_samples) in solved.items() if prefix != MEMBERS]
    return -(-sum(lengths) // len(lengths))


def _solve(weighting: Weighting, chunks: Chunks, num_samples: int, usual: int, what: str) -> Solution:
    """Returns (τ, greatest rate, samples an epoch); of weights, without a number that is set, an epoch has `usual` samples.

    Water-filling: with the samples above the cap held there, τ is what the others need; that may lift more above it, so again.
    """
    cap = 1.0 if weighting.coupled else min(weighting.max_repeats, MAX_RATE)
    total, positive, largest = _sums(chunks, num_samples, np.inf)
    takes_turns = weighting.coupled or weighting.second is not None
    if takes_turns and weighting.probabilities and usual and not round(total):
        return 0.0, cap, 0  # coupled, the second epochs take all that a pair sees; else the other column must come to a sample
    if not positive:
        named = f"{what}={weighting.weights}" if weighting.weights else what
        raise UserError(f"{named}: every weight is 0, so an epoch would have no sample; {_remedy(what, 'give some weights above 0')}")
    if weighting.probabilities:
        if largest > cap:
            remedy = _remedy(what, "give weights instead, or raise sampling.max_repeats")
            raise UserError(f"{what}: a probability of {largest:g} is above {cap:g}; {remedy}")
        epoch_samples = round(total)
    else:
        epoch_samples = usual if weighting.epoch_samples is None else weighting.epoch_samples
    if not 0 < epoch_samples <= cap * positive:
        limits = f"1 to {int(cap * positive):,} ({cap:g} × {positive:,} samples with a weight above 0)"
        raise UserError(
            f"{what}: an epoch of {epoch_samples:,} samples cannot be drawn; allowed: {limits}; {_remedy(what, 'set sampling.epoch')}"
        )
    scale = epoch_samples / total
    for _ in range(_PASSES):
        below, num_below, _ = _sums(chunks, num_samples, cap / scale)
        wanted = epoch_samples - cap * (positive - num_below)
        if not num_below or below * scale >= wanted * (1 - 1e-12):
            return scale, cap, epoch_samples
        scale = wanted / below
    remedy = _remedy(what, "raise the smallest or lower the greatest")
    raise UserError(f"{what}: the weights span too many orders of magnitude to be scaled; {remedy}")


def _sums(chunks: Chunks, num_samples: int, limit: float) -> tuple[float, int, float]:
    """Returns (sum, number, greatest) of the weights w, 0 < w < limit."""
    total, count, largest = 0.0, 0, 0.0
    for span in _spans(num_samples):
        values = chunks(*span)
        values = values[(values > 0) & (values < limit)]
        total, count, largest = total + float(values.sum()), count + len(values), max(largest, values.max(initial=0.0))
    return total, count, largest


def _write_rates(path: Path, chunks: Chunks, num_samples: int, scale: float, cap: float, epoch_samples: int) -> None:
    """Writes the rates in fixed point; what rounding left of the sum is given or taken, a unit each, where a rate can bear it."""
    rates = np.lib.format.open_memmap(path, "w+", np.uint32, (num_samples,))
    written, limit = 0, cap / scale if scale else np.inf
    for start, stop in _spans(num_samples):
        values = np.rint(np.minimum(chunks(start, stop), limit) * scale * ONE).astype(np.uint32)
        rates[start:stop] = values
        written += int(values.sum(dtype=np.int64))
    missing, top = epoch_samples * ONE - written, int(cap * ONE)
    for _ in range(_PASSES):
        if not missing:
            break
        before = missing
        for start, stop in _spans(num_samples):
            values = rates[start:stop]
            able = np.flatnonzero((values > 0) & (values < top) if missing > 0 else values > 1)[: abs(missing)]
            if missing > 0:
                values[able] += 1
                missing -= len(able)
            else:
                values[able] -= 1
                missing += len(able)
        if missing == before:
            break
    if missing:
        raise DataError(f"{path}: rates cannot be made to add up to {epoch_samples} samples: too few weights are above 0")
    rates.flush()


def _write_sums(folder: Path, prefix: str, shard_counts: npt.NDArray[np.int64], *, grouped: bool) -> None:
    rates = np.load(folder / f"{prefix}{RATES_NAME}", mmap_mode="r")
    rows = np.concatenate([[0], np.cumsum(shard_counts)])
    shards = [rates[start:stop] for start, stop in zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True)]
    sums = np.array([int(shard.sum(dtype=np.int64)) for shard in shards], np.int64)
    np.save(folder / f"{prefix}{STARTS_NAME}", np.concatenate([[0], np.cumsum(sums)]).astype(np.int64))
    if grouped and sums.any():  # of two columns that take turns one may come to no sample
        greatest = np.array([int(shard.max(initial=0)) for shard in shards], np.int64)
        np.save(folder / f"{prefix}{GROUPS_NAME}", form_groups(sums, greatest, shard_counts))
