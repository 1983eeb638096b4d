"""One pass over a shard folder: alignment, cleaning, gains, duplicates, label entropy; stretch by stretch, each kept on the disk.

All ranks go through the same samples and hold the same columns; rank 0 writes them. What a stretch says follows from what arrived before
it, whatever the number of ranks and however often the pass was killed.

Letters: B samples of a block, D width, k neighbours.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ...cli.progress import Progress
from ..ranks import Ranks
from .codes import Codes, cosines
from .columns import CAUSAL, Column, Columns, Decision, Reason, join_columns
from .gain import block_rows, gains_of
from .index import NeighbourIndex
from .inputs import Inputs, Modality
from .lists import Ids
from .state import Codebook, SourceFolder

_LEAST_STRETCH, _MOST_STRETCH, _STRETCH_SHARE = 4096, 131072, 8


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a sample is judged by."""

    k: int
    """Neighbours that a gain is the mean over."""
    alignment: float
    """Least cosine of a caption that fits its image."""
    duplicate_distance: float
    """Cosine distance to an earlier sample up to which a sample is its duplicate."""


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """What a pass goes on from, and adds to: indexes and codes by modality, and the class of every sample so far."""

    indexes: Mapping[str, NeighbourIndex]
    codebooks: Mapping[str, Codebook]
    labels: list[npt.NDArray[np.int32]]
    """int32[n] of each source, in the order of arrival."""

    @property
    def arrived(self) -> int:
        """Samples of all sources so far."""
        return sum(len(labels) for labels in self.labels)

    def settle(self) -> None:
        """Lets every index catch up with what is on the disk."""
        for name, index in self.indexes.items():
            index.settle(self.codebooks[name])


def stretch_rows(arrived: int) -> int:
    """Returns how many samples are kept at a time after so many: a power of two, at most an eighth of them, 4,096 to 131,072."""
    return min(max(1 << max((arrived // _STRETCH_SHARE).bit_length() - 1, 0), _LEAST_STRETCH), _MOST_STRETCH)


def grow_source(inputs: Inputs, folder: SourceFolder, memory: Memory, rules: Rules, ranks: Ranks) -> None:
    """Goes through what of a shard folder is not on the disk yet; `memory` has all that is, and its last labels are this folder's.

    Raises:
        DataError: for features that are not finite.
    """
    first = memory.arrived - len(inputs)
    number = folder.num_parts()
    row = sum(len(folder.columns_of_part(part)["arrival"]) for part in range(number))
    with Progress(len(inputs), f"growing over {inputs.location}", "samples", enabled=ranks.is_first) as progress:
        progress.resume(row)
        while row < len(inputs):
            stop = min(row + stretch_rows(first + row), len(inputs))
            columns, codes, arrivals = _stretch(inputs, memory, rules, range(row, stop), first, progress)
            if ranks.is_first:
                folder.add_part(number, columns, codes, arrivals)
            ranks.barrier()
            part = folder.part(number, tuple(codes))
            for codebook in memory.codebooks.values():
                codebook.append(part)
            memory.settle()
            number, row = number + 1, stop


def _stretch(
    inputs: Inputs, memory: Memory, rules: Rules, rows: range, first: int, progress: Progress
) -> tuple[Columns, dict[str, Codes], Ids]:
    """Returns columns, codes by modality and arrivals of the samples `rows`; codes and arrivals of those that enter the index."""
    columns, kept, arrivals = list[Columns](), list[dict[str, Codes]](), list[Ids]()
    start = rows.start
    while start < rows.stop:
        stop = min(start + block_rows(first + start), rows.stop)
        block = _block(inputs, memory, rules, range(start, stop), first)
        columns.append(block[0])
        kept.append(block[1])
        arrivals.append(block[2])
        progress.advance(stop - start)
        start = stop
    codes = {name: np.concatenate([part[name] for part in kept]) for name in memory.codebooks}
    return join_columns(columns, CAUSAL), codes, np.concatenate(arrivals)


def _block(inputs: Inputs, memory: Memory, rules: Rules, rows: range, first: int) -> tuple[Columns, dict[str, Codes], Ids]:
    columns = unknown_columns(inputs, rows, first)
    codes = {name: encoded.codes(rows.start, rows.stop) for name, encoded in inputs.encoded.items()}
    if len(codes) > 1:
        _clean(columns, codes, inputs, rules, rows)
    is_kept = columns["decision"] != Decision.DROP
    arrivals = columns["arrival"][is_kept]
    kept = {str(name): part[is_kept] for name, part in codes.items()}
    for name in codes:
        found = gains_of(memory.indexes[name].take(kept[name], arrivals, rules.k))
        columns[f"{name}_gain"][is_kept] = found.gain
        columns[f"{name}_nearest_distance"][is_kept] = found.nearest_distance
        columns[f"{name}_nearest"][is_kept] = found.neighbours[:, 0]
        if name == _leading(inputs):
            columns["label_entropy"][is_kept] = _label_entropy(memory.labels, arrivals, found.neighbours)
    near = np.asarray(columns[f"{_leading(inputs)}_nearest_distance"] <= rules.duplicate_distance)  # never so where it is NaN
    columns["decision"][near], columns["reason"][near] = Decision.DUPLICATE, Reason.NEAR_DUPLICATE
    return columns, kept, arrivals


def _leading(inputs: Inputs) -> Modality:
    """Returns the modality that says what is a duplicate, and whose neighbours' classes count: the image, where there is one."""
    return "image" if "image" in inputs.encoded else "text"


def unknown_columns(inputs: Inputs, rows: range, first: int) -> Columns:
    """Returns the columns `CAUSAL` of some rows of a shard folder whose first arrival is `first`, with all that takes features unknown."""
    columns: dict[str, Column] = {}
    for field in CAUSAL:
        kind = field.type.to_pandas_dtype()
        columns[field.name] = np.full(len(rows), np.nan if np.dtype(kind).kind == "f" else 0, kind)
    columns["arrival"] += np.arange(first + rows.start, first + rows.stop)
    for name, column in zip(("key_hash", "offset", "size"), inputs.place, strict=True):
        columns[name] = column[rows.start : rows.stop]
    for name in ("image_nearest", "text_nearest"):
        columns[name] -= 1
    return columns


def _clean(columns: Columns, codes: dict[Modality, Codes], inputs: Inputs, rules: Rules, rows: range) -> None:
    """Judges how captions fit their images, and puts re-captions in their place where these fit and those do not."""
    alignment = cosines(codes["image"], codes["text"]).astype(np.float32)
    is_misaligned = alignment < rules.alignment
    columns["alignment"] = alignment
    columns["decision"][is_misaligned], columns["reason"][is_misaligned] = Decision.DROP, Reason.MISALIGNED
    if inputs.recaptions is None:
        return
    again = inputs.recaptions.codes(rows.start, rows.stop, may_lack=True)
    has_one = np.asarray(np.isfinite(again).all(axis=1))
    realigned = cosines(codes["image"], np.where(has_one[:, None], again, 0).astype(np.float16))
    columns["realigned"] = np.where(has_one, realigned, np.nan).astype(np.float32)
    is_clean = is_misaligned & has_one & (realigned >= rules.alignment)
    columns["decision"][is_clean], columns["reason"][is_clean] = Decision.CLEAN, Reason.RECAPTIONED
    columns["reason"][is_misaligned & has_one & ~is_clean] = Reason.MISALIGNED_TWICE
    codes["text"] = np.where(is_clean[:, None], again, codes["text"])


def _label_entropy(labels: list[npt.NDArray[np.int32]], arrivals: Ids, neighbours_BK: Ids) -> npt.NDArray[np.float32]:
    """Returns float32[B] the share of the neighbours with a class whose class is another; NaN where nothing can be said.

    It is the paper's `Gain_entropy`, 1 - p, with p the accuracy with which neighbours predict the class.
    """
    own, theirs = _classes(labels, arrivals)[:, None], _classes(labels, neighbours_BK)
    counts = (theirs >= 0).sum(1)
    others = ((theirs >= 0) & (theirs != own)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(own[:, 0] >= 0, others / counts, np.nan).astype(np.float32)


def _classes(labels: list[npt.NDArray[np.int32]], arrivals: Ids) -> Ids:
    """Returns the classes of arrivals of any shape; -1 for arrival -1."""
    starts = np.cumsum([0, *(len(part) for part in labels)])
    owners = np.searchsorted(starts, arrivals, side="right") - 1
    found = np.full(arrivals.shape, -1, np.int64)
    for number in np.unique(owners[arrivals >= 0]).tolist():
        chosen = (owners == number) & (arrivals >= 0)
        found[chosen] = labels[number][arrivals[chosen] - starts[number]]
    return found
