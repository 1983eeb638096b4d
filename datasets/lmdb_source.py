"""An LMDB of encoded images as a source: InfoGrowth's layout, with or without its list of captions, and Bamboo's own."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..cli.errors import UserError
from .annotations import Annotation, read_annotations
from .class_list import ClassList
from .lmdb_files import LmdbFile, key_of, name_of, open_lmdb
from .lmdb_layout import PREFIX, read_lmdb_manifest, read_rows
from .sources import MISSING, File, Record, Source, class_ids, labelled_source, listing, printable
from .tars import IMAGE_EXTENSIONS

_LOOKED_AT = 1000  # values of which one at least must begin as an image does
_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", *(b"P%d" % kind for kind in range(1, 7)))


@dataclasses.dataclass(frozen=True)
class LmdbReader:
    """Reads the value of `prefix + record.name`."""

    file: LmdbFile
    prefix: str = ""

    def prepare(self) -> None:
        """Needs nothing."""

    def read(self, record: Record) -> bytes:
        """Returns the encoded image; raises OSError for a key that is not there."""
        data = self.file.read(key_of(self.prefix + record.name))
        if data is None:
            raise OSError("no such key")
        return bytes(data)


def lmdb_source(path: Path, subdir: str, annotations: Path | None, classes: ClassList | None) -> Source:
    """Returns the images of an LMDB in the order of their keys, those below `subdir` alone.

    The class of an image is the folder part of its key, as of a file in class folders; a key without one has no label. An LMDB that
    Bamboo wrote brings its own labels, captions and fields instead. With `annotations` the images are those that the list names, and
    what it names in vain is a missing image; without, every key is an image, but for names like `__len__`.

    Raises:
        UserError: when there are no images, or `annotations` is no list of InfoGrowth's.
        DataError: when the LMDB is damaged.
    """
    file = open_lmdb(path)
    prefix = f"{subdir.strip('/')}/" if subdir.strip("/") else ""
    sizes = {name_of(key): size for key, size in file.entries() if not _is_reserved(key)}
    found = {name.removeprefix(prefix): size for name, size in sizes.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"{path}: no images below --subdir={subdir}" if sizes else f"{path}: no images; the LMDB is empty")
    reader = LmdbReader(file, prefix)
    _require_images(reader, found, path)
    manifest = read_lmdb_manifest(file)
    if manifest is None:
        files = [File(name, size) for name, size in found.items()]
        source = labelled_source(files, (), classes, reader, str(path))
    else:
        ids = class_ids(manifest.classes, classes, str(path))
        own = (record for record in read_rows(file, manifest) if record.name.startswith(prefix))
        records = [_placed(record, record.name.removeprefix(prefix), found, ids) for record in own]
        source = Source(records, manifest.classes if classes is None else classes.entries, reader)
    return source if annotations is None else _annotated(source, read_annotations(annotations), annotations)


def _placed(record: Record, name: str, sizes: Mapping[str, int], ids: Sequence[int]) -> Record:
    labels = tuple(ids[label] for label in record.labels)
    return dataclasses.replace(record, name=name, size_bytes=sizes.get(name, MISSING), labels=labels)


def _is_reserved(key: bytes) -> bool:
    """Whether a key is Bamboo's, or one of the kind in which others keep lengths and lists of keys."""
    return key.startswith(PREFIX) or (key.startswith(b"__") and key.endswith(b"__"))


def _require_images(reader: LmdbReader, sizes: Mapping[str, int], path: Path) -> None:
    first = b""
    for number, name in enumerate(sizes):
        start = reader.read(Record(name, (), None, 0))[:8]
        if start.startswith(_STARTS):
            return
        first = first if number else start
        if number == _LOOKED_AT:
            break
    named = f"the value of {printable(next(iter(sizes)))!r} begins with {first!r}"
    raise UserError(f"{path}: its values are no encoded images ({named}); JPEG, PNG, WebP, … files are expected as values")


def _annotated(source: Source, annotations: Mapping[str, Annotation], path: Path) -> Source:
    """Returns the images that a list names, with its captions and fields, in the source's order."""
    by_name = {record.name: record for record in source.records}
    records: dict[str, Record] = {}
    missing: list[Record] = []
    for image, annotation in annotations.items():
        record = next((by_name[name] for name in _spellings(image) if name in by_name), None)
        if record is None:
            missing.append(Record(image, (), None, MISSING, 0, annotation.captions, annotation.fields))
            continue
        if record.name in records:
            raise UserError(f"--annotations={path}: two names of its list mean {printable(record.name)!r}; {printable(image)!r} is one")
        fields = {**record.fields, **annotation.fields}
        records[record.name] = dataclasses.replace(record, captions=annotation.captions or record.captions, fields=fields)
    if not records:
        shown = f"{listing(list(annotations))}; its keys are {listing(list(by_name))}"
        raise UserError(f"--annotations={path}: none of its {len(annotations):,} images is in the LMDB: {shown}")
    left = len(by_name) - len(records)
    notes = (*source.notes, f"{left:,} images that {path} does not name are left out") if left else source.notes
    ordered = [records[name] for name in by_name if name in records]
    return dataclasses.replace(source, records=sorted([*ordered, *missing], key=lambda record: key_of(record.name)), notes=notes)


def _spellings(image: str) -> Iterator[str]:
    """Yields the keys under which an image may lie: InfoGrowth writes the name, and looks up the name without its last four characters."""
    yield image
    yield image[:-4]
    stem, dot, _ = image.rpartition(".")
    if dot:
        yield stem
    for extension in IMAGE_EXTENSIONS:
        yield f"{image}.{extension}"
