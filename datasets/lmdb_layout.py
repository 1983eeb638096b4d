"""What Bamboo keeps in an LMDB beside the images: reserved keys with classes, labels, captions and the data's identity.

    NAME                       the encoded image; NAME is a file name or relative path, extension included
    __bamboo__/manifest        JSON: format, version, num_samples, data_hash, num_chunks, classes, made_by
    __bamboo__/rows/00000000   an Arrow stream, a row per image in the order of the keys: key, labels, confidences, captions, fields

Others may ignore the reserved keys, which no image has. InfoGrowth's writer and its COCO reader use the same names; its CC3M reader looks
a name up without its last four characters, and so does not find what its own writer wrote.
"""

import dataclasses
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..cli.errors import DataError
from .lmdb_files import LmdbFile, key_of, name_of
from .manifest import ClassEntry
from .nesting import require_shallow
from .sources import Record, printable

PREFIX = b"__bamboo__/"
FORMAT, VERSION = "bamboo-lmdb", 1

_MANIFEST_KEY = PREFIX + b"manifest"
_ROWS_PER_CHUNK = 50_000
_REMEDY = "copy it again from where it was made, or pack it anew"
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
    where = f"{file.path}: {printable(name_of(_MANIFEST_KEY))}"
    try:
        tree = json.loads(data)
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            version = f"format {reprlib.repr(tree['format'])} version {reprlib.repr(tree['version'])}"
            raise DataError(f"{file.path}: {version}; this Bamboo reads {FORMAT} version {VERSION}")
        counts = _count(tree, "num_samples"), _count(tree, "num_chunks")
        return LmdbManifest(counts[0], _text(tree["data_hash"]), counts[1], _classes(tree["classes"]), _object(tree, "made_by"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: damaged manifest ({type(error).__name__}: {error}); {_REMEDY}") from None


def read_rows(file: LmdbFile, manifest: LmdbManifest) -> Iterator[Record]:
    """Yields a record per image in the order of the keys; sizes are 0, as they stand in the LMDB itself.

    Raises:
        DataError: when rows are missing, damaged, out of order, or name a class that the manifest does not have.
    """
    count, before = 0, b""
    for number in range(manifest.num_chunks):
        where = f"{file.path}: {name_of(_chunk_key(number))}"
        try:
            rows = _rows(file.read(_chunk_key(number)))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{where}: damaged rows in chunk {number}: {error}; {_REMEDY}") from None
        for row in rows:
            if row["key"] <= before:
                raise DataError(f"{where}: damaged: {_named(row)} does not come after {printable(name_of(before))!r}; {_REMEDY}")
            before = row["key"]
            yield _record(row, len(manifest.classes), where)
        count += len(rows)
    if count != manifest.num_samples:
        raise DataError(f"{file.path}: damaged: {count} rows, its manifest says {manifest.num_samples}; {_REMEDY}")


def _rows(data: bytearray | None) -> list[dict[str, Any]]:
    """Returns the rows of a chunk; raises ValueError or Arrow's errors for one that is not what the schema says."""
    table = pa.ipc.open_stream(data or b"").read_all()
    if not table.schema.equals(_SCHEMA):
        raise ValueError(f"its columns are {reprlib.repr(_spelled(table.schema))}, not {_spelled(_SCHEMA)}")
    table.validate(full=True)
    for column in table.itercolumns():
        for chunk in column.chunks:
            if pa.types.is_list(chunk.type) and chunk.flatten().null_count:
                raise ValueError("a list of it has holes")
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        empty = [name for name, value in row.items() if value is None and name != "confidences"]
        if empty:
            raise ValueError(f"{_named(row)} has no {empty[0]}")
    return rows


def _record(row: Mapping[str, Any], num_classes: int, where: str) -> Record:
    labels, confidences = tuple(row["labels"]), None if row["confidences"] is None else tuple(row["confidences"])
    for label in labels:
        if not 0 <= label < num_classes:
            raise DataError(f"{where}: {_named(row)} has class {label}; its manifest has {num_classes} classes; {_REMEDY}")
    if confidences is not None and (len(confidences) != len(labels) or not all(0 <= confidence <= 1 for confidence in confidences)):
        shown = f"confidences {reprlib.repr(confidences)} for {len(labels)} classes; allowed: 0 to 1, one for each"
        raise DataError(f"{where}: {_named(row)} has {shown}; {_REMEDY}")
    try:
        fields = json.loads(row["fields"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_named(row)} has fields that are not JSON: {error}; {_REMEDY}") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: {_named(row)} has fields that are no JSON object: {reprlib.repr(fields)}; {_REMEDY}")
    require_shallow(fields, f"{where}: {_named(row)}")
    return Record(name_of(row["key"]), labels, confidences, 0, 0, tuple(row["captions"]), fields)


def _named(row: Mapping[str, Any]) -> str:
    return "a row" if row["key"] is None else repr(printable(name_of(row["key"])))


def _spelled(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _count(tree: Mapping[str, Any], name: str) -> int:
    value = tree[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {reprlib.repr(value)}; allowed: counts")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{reprlib.repr(value)} stands where text is expected")
    return value


def _object(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = tree[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {reprlib.repr(value)}; allowed: an object")
    return value


def _classes(listed: object) -> tuple[ClassEntry, ...]:
    """Returns the classes; a parent is the id of another, or None."""
    if not isinstance(listed, list):
        raise ValueError(f"classes is {reprlib.repr(listed)}; allowed: a list")
    for i, entry in enumerate(listed):
        parent = entry["parent"]
        is_id = isinstance(parent, int) and not isinstance(parent, bool) and 0 <= parent < len(listed)
        if parent is not None and not is_id:
            raise ValueError(f"class {i} has parent {reprlib.repr(parent)}; allowed: null, or 0 to {len(listed) - 1}")
    return tuple(ClassEntry(_text(entry["name"]), entry["parent"]) for entry in listed)


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
