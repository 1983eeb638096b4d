"""`bamboo shards pack --to lmdb`, its last step: finished shards → one LMDB folder.

    OUT/data.mdb          images by name, and Bamboo's reserved keys (`lmdb_layout`)
    OUT/annotations.json  InfoGrowth's list: name, captions and gains of every image
    OUT/skipped.tsv       what was left out, where anything was

data.mdb comes last and by one rename, so it is there whole or not at all. Keys are written in their order, so the file is compact, and
the same images make the same bytes. Its size is that of its pages: no map of a terabyte, which here would be a sparse file.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.errors import DataError, UserError
from ..cli.progress import Progress
from .annotations import write_annotations
from .atomic import fsync_folder
from .lmdb_files import DATA_NAME, MAX_KEY_BYTES, data_file, is_lmdb, key_of, open_lmdb, require_package
from .lmdb_layout import PREFIX, LmdbManifest, read_lmdb_manifest, reserved_entries
from .manifest import FILE_NAME as MANIFEST_NAME
from .manifest import read_manifest
from .pack_folder import SKIPPED_NAME
from .shard_source import shard_source
from .sources import Source, listing, printable

if TYPE_CHECKING:
    import lmdb

ANNOTATIONS_NAME = "annotations.json"
WORK_NAME = ".packing"

_PAGE_BYTES = 4096
_TRANSACTION_BYTES = 32 << 20
_SPARE_BYTES = 16 << 20
_ROW_BYTES = 256  # key, node and rows of an image, roughly; the map grows where it is not enough

Pair = tuple[bytes, bytes]


def in_key_order(source: Source) -> Source:
    """Returns the source with its records in the order of their keys.

    Raises:
        UserError: for a name that LMDB cannot take as a key, one that two images have, and without the package `lmdb`.
    """
    require_package()
    try:
        keyed = sorted(((key_of(record.name), record) for record in source.records), key=lambda pair: pair[0])
    except UnicodeEncodeError as error:
        raise UserError(f"--to=lmdb: {printable(error.object)!r} has no bytes, so it can be no key; use --to shards") from None
    wrong = [record.name for key, record in keyed if len(key) > MAX_KEY_BYTES or not key or key.startswith(PREFIX)]
    if wrong:
        allowed = f"allowed: 1 to {MAX_KEY_BYTES} bytes that do not begin with {PREFIX.decode()}"
        raise UserError(f"--to=lmdb: {len(wrong):,} names cannot be keys: {listing(wrong)}; {allowed}; use --to shards")
    twice = [first[1].name for first, second in pairwise(keyed) if first[0] == second[0]]
    if twice:
        raise UserError(f"--to=lmdb: {len(twice):,} names stand more than once: {listing(twice)}; a key has one image; use --to shards")
    return dataclasses.replace(source, records=[record for _, record in keyed])


def is_finished(out: Path, identity: str, *, overwrite: bool) -> bool:
    """Returns whether `out` holds the LMDB of the plan with this identity; touches nothing.

    Raises:
        UserError: when it holds something else that is not to be overwritten.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file; name a folder")
    if (out / MANIFEST_NAME).exists():
        raise UserError(f"--out={out}: is a shard folder; an LMDB needs a folder of its own: use another --out")
    if not (out / DATA_NAME).exists() or overwrite:
        return False
    manifest = _manifest_of(out)
    if manifest is None or manifest.made_by.get("plan") != identity:
        remedy = "use --overwrite to replace it, or another --out"
        raise UserError(f"--out={out}: holds an LMDB of other sources or options; {remedy}")
    return True


def write_lmdb(work: Path, out: Path) -> LmdbManifest:
    """Makes the LMDB of `out` from the finished shard folder `work`, and returns its manifest.

    Raises:
        DataError: when it cannot be written: a full disk, as a rule.
    """
    import lmdb

    made_by = read_manifest(work).made_by
    source = in_key_order(shard_source(work, None))
    temporary = work / DATA_NAME
    temporary.unlink(missing_ok=True)
    try:
        _write_data(temporary, source, made_by)
    except lmdb.Error as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{out / DATA_NAME}: cannot be written: {error}") from None
    (out / DATA_NAME).unlink(missing_ok=True)  # from here on there is no LMDB until the new one is whole
    write_annotations(out / ANNOTATIONS_NAME, source.records)
    (out / SKIPPED_NAME).unlink(missing_ok=True)
    if (work / SKIPPED_NAME).exists():
        shutil.copyfile(work / SKIPPED_NAME, out / SKIPPED_NAME)
    temporary.replace(out / DATA_NAME)
    fsync_folder(out)
    manifest = _manifest_of(out)
    assert manifest is not None, "it was just written"
    return manifest


def _manifest_of(out: Path) -> LmdbManifest | None:
    if not is_lmdb(data_file(out)):
        return None
    return read_lmdb_manifest(open_lmdb(out))


def _write_data(path: Path, source: Source, made_by: dict[str, Any]) -> None:
    import lmdb

    pages = sum(-(-(record.size_bytes + 16) // _PAGE_BYTES) for record in source.records)
    size = pages * _PAGE_BYTES + len(source.records) * _ROW_BYTES + _SPARE_BYTES
    environment = lmdb.open(str(path), map_size=size, subdir=False, lock=False, sync=False, metasync=False, meminit=True)
    digest = hashlib.sha256(json.dumps([[entry.name, entry.parent] for entry in source.classes]).encode())
    try:
        with Progress(len(source.records), "write LMDB") as progress:
            for batch in _batches(_images(source, digest, progress)):
                _put(environment, batch, append=True)
        for pair in reserved_entries(source.records, source.classes, digest.hexdigest(), made_by):
            _put(environment, [pair], append=False)
        environment.sync(True)
    finally:
        environment.close()


def _images(source: Source, digest: "hashlib._Hash", progress: Progress) -> Iterator[Pair]:
    """Yields keys and images in order; `digest` takes in what the data's identity is made of."""
    for record in source.records:
        data = source.reader.read(record)
        row = [record.name, hashlib.sha256(data).hexdigest(), record.labels, record.confidences, record.captions, record.fields]
        digest.update(json.dumps(row, sort_keys=True).encode())
        yield key_of(record.name), data
        progress.advance(1)


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Yields what goes into one transaction: many images, and few enough for memory."""
    batch, filled = list[Pair](), 0
    for pair in pairs:
        batch.append(pair)
        filled += len(pair[1])
        if filled >= _TRANSACTION_BYTES:
            yield batch
            batch, filled = [], 0
    yield batch


def _put(environment: "lmdb.Environment", batch: list[Pair], *, append: bool) -> None:
    """Writes a batch in one transaction; a map that turns out too small grows."""
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, data in batch:
                    transaction.put(key, data, append=append)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] + sum(len(data) for _, data in batch) * 2 + _SPARE_BYTES)
