"""Growth's gains as InfoGrowth's JSON list, and that list's gains as columns.

The list is `datasets/annotations.py`'s: `image`, `caption` and `gains`, two strings. With `bamboo shards pack SHARDS --to lmdb` it is what
InfoGrowth's reader takes: `image` is the key of the LMDB. The other way, `bamboo shards pack LMDB --annotations LIST` leaves the gains in
the JSON members of shards, where `import_gains` finds them.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError, UserError
from ..annotations import IMAGE_GAIN, RAW_SCORE, TEXT_GAIN, write_annotations
from ..members import metadata_of
from ..shard_source import joined_source, walk_texts
from ..shards import Shards
from ..sources import Record, Source, listing
from .columns import Columns, Decision
from .folders import local_folders
from .snapshot import Snapshot

Gains = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

_TAKEN = ("arrival", "decision", "image_gain", "text_gain", "alignment", "realigned")
_CAPTION = "caption"
_LARGEST = float(np.finfo(np.float32).max)


def export_json(snapshot: Snapshot, path: Path, recaptions: Mapping[str, str] | None = None, *, duplicates: bool = True) -> int:
    """Writes the list of all accepted samples of a snapshot in the order of their arrival, atomically, and returns their number.

    Accepted are all but the dropped ones, since InfoGrowth knows no duplicates; its reader leaves them to their low gain. Gains are the
    causal ones, of which that reader takes the mean; so where a modality has none, the other's stands for both. Names are those that
    `bamboo shards pack` gives the same samples (of several folders as `joined_source` has them), captions those of the shards. The
    records of all samples are in memory meanwhile, as in a pack.

    Args:
        recaptions: the re-caption of every accepted sample that was taken with it, near-duplicates included, by its name; of others none
            is used.
        duplicates: whether near-duplicates are listed too.

    Raises:
        UserError: when a folder is remote or has changed, classes differ, a re-caption is missing, or no sample is accepted.
        DataError: when a tar or a column is damaged, or an accepted sample has no gain.
    """
    source = joined_source(local_folders(snapshot.sources, "the list of gains"))
    columns = _columns(snapshot)
    left_out = [Decision.DROP] if duplicates else [Decision.DROP, Decision.DUPLICATE]
    accepted = np.flatnonzero(~np.isin(columns["decision"], left_out))
    if not len(accepted):
        raise UserError(f"{snapshot.folder}: no sample is accepted, and InfoGrowth takes no empty list")
    is_recaptioned = _is_recaptioned(columns, snapshot.card.get("growth", {}).get("alignment"))
    names = [source.records[i].name for i in accepted.tolist() if is_recaptioned[i]]
    missing = [name for name in names if name not in (recaptions or {})]
    if missing:
        raise UserError(f"{len(missing):,} samples were taken with re-captions that are not given: {listing(missing)}; give their file")
    order = accepted[np.argsort(columns["arrival"][accepted], kind="stable")]
    write_annotations(path, _listed(source, columns, order, is_recaptioned, recaptions or {}))
    return len(order)


def import_gains(shards: Shards) -> tuple[Gains, Gains]:
    """Returns the gains of images and texts that the JSON members of a local shard folder hold, float32[N] each in the index's order.

    Raises:
        UserError: when the folder is remote.
        DataError: naming the first sample that has not both, as numbers; or when a tar is damaged.
    """
    if shards.cache is not None:
        raise UserError(f"{shards.folder}: is remote, and gains are read from end to end of its tars; copy the folder to this machine")
    gains = np.empty((2, len(shards)), np.float32)
    for sample, _, texts in walk_texts(shards, ("json",)):
        tree = metadata_of(texts, str(shards.folder))
        gains[:, sample] = [_gain(tree, name, shards, sample) for name in (IMAGE_GAIN, TEXT_GAIN)]
    return gains[0], gains[1]


def _columns(snapshot: Snapshot) -> Columns:
    """Returns what is needed of the causal columns of all sources, one after another."""
    parts = []
    for number in range(len(snapshot.sources)):
        columns = snapshot.columns(number)
        parts.append({name: columns[name] for name in _TAKEN})
    return {name: np.concatenate([part[name] for part in parts]) for name in _TAKEN}


def _is_recaptioned(columns: Columns, threshold: float | None) -> Flags:
    """Returns bool[N] whether a sample was taken with its re-caption.

    Decisions say so of all but the near-duplicates, whose captions are judged before; `threshold`, the least alignment, says it of those.
    None: it is not known, and none was.
    """
    is_clean: Flags = columns["decision"] == Decision.CLEAN
    if threshold is None:
        return is_clean
    is_better = (columns["alignment"] < threshold) & (columns["realigned"] >= threshold)
    is_recaptioned: Flags = is_clean | (is_better & (columns["decision"] == Decision.DUPLICATE))
    return is_recaptioned


def _listed(
    source: Source, columns: Columns, order: npt.NDArray[np.int64], is_recaptioned: Flags, recaptions: Mapping[str, str]
) -> Iterator[Record]:
    """Yields the records to be listed, with gains as fields: numpy's float32, whose text is the shortest that gives the number again."""
    for i in order.tolist():
        record = source.records[i]
        image, text = (columns[name][i] for name in ("image_gain", "text_gain"))
        if np.isnan(image) and np.isnan(text):
            raise DataError(f"{record.name}: has the decision {Decision(columns['decision'][i]).name} and no gain; grow anew: bamboo grow")
        fields = {IMAGE_GAIN: text if np.isnan(image) else image, TEXT_GAIN: image if np.isnan(text) else text}
        if is_recaptioned[i]:
            yield dataclasses.replace(record, captions=(recaptions[record.name],), fields=fields)
        else:  # scores are of the caption, so they stay with it
            kept = {name: record.fields[name] for name in (_CAPTION, RAW_SCORE) if name in record.fields}
            yield dataclasses.replace(record, fields=kept | fields)


def _gain(tree: Mapping[str, Any], name: str, shards: Shards, sample: int) -> float:
    value = tree.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:  # nor NaN
        found = f"no {name}" if value is None else f"{name}={value!r}, which is no finite number"
        remedy = "bring the gains in with: bamboo shards pack LMDB --annotations LIST --out FOLDER"
        raise DataError(f"{shards.folder}: {shards.name(sample)} has {found}; {remedy}")
    return value
