"""What Bamboo keeps in an LMDB beside the images: reserved keys with classes, labels, captions and the data's identity.

    NAME                       the encoded image; NAME is a file name or relative path, extension included
    __bamboo__/manifest        JSON: format, version, num_samples, data_hash, num_chunks, classes, made_by
    __bamboo__/rows/00000000   an Arrow stream, a row per image in the order of the keys: key, labels, confidences, captions, fields

Others may ignore the reserved keys, which no image has. InfoGrowth's writer and its COCO reader use the same names; its CC3M reader looks
a name up without its last four characters, and so does not find what its own writer wrote.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..cli.errors import DataError
from .lmdb_files import LmdbFile, key_of, name_of
from .manifest import ClassEntry
from .sources import Record

PREFIX = b"__bamboo__/"
FORMAT, VERSION = "bamboo-lmdb", 1

_MANIFEST_KEY = PREFIX + b"manifest"
_ROWS_PER_CHUNK = 50_000
_SCHEMA = pa.schema(
    [
        ("key", pa.binary()),
        ("labels", pa.list_(pa.int32())),
        ("confidences", pa.list_(pa.float64())),
        ("captions", pa.list_(pa.string())),
        ("fields", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class LmdbManifest:
    """The manifest of an LMDB that Bamboo wrote."""

    num_samples: int
    data_hash: str
    num_chunks: int
    classes: tuple[ClassEntry, ...]
    made_by: Mapping[str, Any]


def read_lmdb_manifest(file: LmdbFile) -> LmdbManifest | None:
    """Returns the manifest, None where somebody else wrote the LMDB.

    Raises:
        DataError: when it is damaged or of another version.
    """
    data = file.read(_MANIFEST_KEY)
    if data is None:
        return None
    try:
        tree = json.loads(data)
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise DataError(f"{file.path}: format {tree['format']} version {tree['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        classes = tuple(ClassEntry(entry["name"], entry["parent"]) for entry in tree["classes"])
        return LmdbManifest(tree["num_samples"], tree["data_hash"], tree["num_chunks"], classes, tree["made_by"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file.path}: damaged manifest ({type(error).__name__}: {error})") from None


def read_rows(file: LmdbFile, manifest: LmdbManifest) -> Iterator[Record]:
    """Yields a record per image in the order of the keys; sizes are 0, as they stand in the LMDB itself.

    Raises:
        DataError: when rows are missing or damaged.
    """
    count = 0
    for number in range(manifest.num_chunks):
        data = file.read(_chunk_key(number))
        try:
            rows = pa.ipc.open_stream(data or b"").read_all().to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"{file.path}: damaged rows in chunk {number}: {error}") from None
        for row in rows:
            confidences = None if row["confidences"] is None else tuple(row["confidences"])
            fields = json.loads(row["fields"])
            yield Record(name_of(row["key"]), tuple(row["labels"]), confidences, 0, 0, tuple(row["captions"]), fields)
        count += len(rows)
    if count != manifest.num_samples:
        raise DataError(f"{file.path}: damaged: {count} rows, its manifest says {manifest.num_samples}")


def reserved_entries(
    records: Sequence[Record], classes: Sequence[ClassEntry], data_hash: str, made_by: Mapping[str, Any]
) -> Iterator[tuple[bytes, bytes]]:
    """Yields the reserved keys and their values, for images in the order of their keys."""
    starts = range(0, len(records), _ROWS_PER_CHUNK)
    for number, start in enumerate(starts):
        yield _chunk_key(number), _chunk(records[start : start + _ROWS_PER_CHUNK])
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "num_samples": len(records),
        "data_hash": data_hash,
        "num_chunks": len(starts),
        "classes": [dataclasses.asdict(entry) for entry in classes],
        "made_by": made_by,
    }
    yield _MANIFEST_KEY, json.dumps(tree).encode()


def _chunk(records: Sequence[Record]) -> bytes:
    columns = [
        [key_of(record.name) for record in records],
        [record.labels for record in records],
        [record.confidences for record in records],
        [record.captions for record in records],
        [json.dumps(record.fields) for record in records],
    ]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _chunk_key(number: int) -> bytes:
    return PREFIX + b"rows/%08d" % number
