"""All that a shard holds of a sample beside its image: captions, JSON metadata, whatever else lies under its key.

The index knows where images lie. What else belongs to one lies beside it in the tar, between the image of the sample before and that of
the sample after, so one read of that stretch finds it, in shards of ours and of others alike.
"""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..cli.errors import DataError
from .shards import Shards
from .tars import BLOCK_BYTES, Extent, key_and_extension, read_extent, walk

_CAPTION, _METADATA = "txt", "json"


def members(shards: Shards, sample: int) -> dict[str, bytes]:
    """Returns every member of a sample by its extension in lower case, the image included, in the order of the tar.

    A member that is not beside the others of its key belongs to another sample, as it does for `webdataset`.

    Raises:
        DataError: when the tar is damaged there, or has no sample where the index says.
    """
    shard = int(shards.index.shard[sample])
    start, stop = _stretch(shards, sample)
    if stop < start:
        raise DataError(f"{shards.folder}: the index has sample {sample} and the one beside it at the same bytes of their shard")
    data = shards.read_at(shard, start, stop - start)
    name = shards.manifest.shards[shard].name
    if len(data) != stop - start:
        raise DataError(f"{shards.folder}/{name}: truncated: sample {sample} needs bytes {start} to {stop}")
    image, file = int(shards.index.offset[sample]) - start, io.BytesIO(data)
    found: dict[str, Extent] = {}
    group, is_ours = "", False
    for key, extension, extent in _headers(shards, name, file, len(data)):
        if key != group:
            if is_ours:
                break
            group, found = key, {}
        found[extension] = extent
        is_ours = is_ours or extent.offset == image
    if not is_ours:
        raise DataError(f"{shards.folder}/{name}: no member at byte {start + image}, where the index has sample {sample}")
    return {extension: read_extent(file, extent) for extension, extent in found.items()}


def caption(shards: Shards, sample: int) -> str | None:
    """Returns a sample's caption, of several one a line; None where it has none. Errors as `members` and `metadata`."""
    return caption_of(members(shards, sample), shards.name(sample))


def metadata(shards: Shards, sample: int) -> dict[str, Any]:
    """Returns what a sample's JSON member says, {} without one.

    Raises:
        DataError: as `members`, and when the member is not JSON.
    """
    return metadata_of(members(shards, sample), shards.name(sample))


def caption_of(found: Mapping[str, bytes], where: str) -> str | None:
    """Returns the `.txt` member's text, else the field "caption" of the `.json` member (a string, or a list of them); None without."""
    text: object = found[_CAPTION].decode("utf-8", "replace") if _CAPTION in found else metadata_of(found, where).get("caption")
    if isinstance(text, list):
        text = "\n".join(line for line in text if isinstance(line, str))
    return text.strip() or None if isinstance(text, str) else None


def metadata_of(found: Mapping[str, bytes], where: str) -> dict[str, Any]:
    """Returns the object in the `.json` member, {} where there is none; raises DataError where it is not JSON."""
    if _METADATA not in found:
        return {}
    try:
        tree = json.loads(found[_METADATA])
    except RecursionError:
        raise DataError(f"{where}: its .json member is nested too deep to be read") from None
    except ValueError as error:
        raise DataError(f"{where}: its .json member is not JSON: {error}") from None
    return tree if isinstance(tree, dict) else {}


def _stretch(shards: Shards, sample: int) -> tuple[int, int]:
    """Returns (start, stop) in the tar: from behind the image before to the bytes of the image after, or the ends of the shard."""
    index = shards.index
    shard, start, stop = int(index.shard[sample]), 0, -1
    if sample and int(index.shard[sample - 1]) == shard:
        end = int(index.offset[sample - 1]) + int(index.size[sample - 1])
        start = -(-end // BLOCK_BYTES) * BLOCK_BYTES
    if sample + 1 < len(index) and int(index.shard[sample + 1]) == shard:
        stop = int(index.offset[sample + 1])
    return start, shards.manifest.shards[shard].size_bytes if stop < 0 else stop


def _headers(shards: Shards, name: str, file: io.BytesIO, size: int) -> Iterator[tuple[str, str, Extent]]:
    """Yields (key, extension, extent) of the members that lie in the stretch as a whole."""
    for member in walk(Path(f"{shards.folder}/{name}"), file):
        if member.offset_data + member.size > size:
            return  # the image after
        parts = key_and_extension(member.name) if member.isreg() else None
        if parts is not None:
            yield *parts, Extent(member.offset_data, member.size)
