"""InfoGrowth's lists of image–text pairs: a JSON list of objects with `image`, `caption`, `gains` and `raw_score`.

`image` names the image; `caption` is a string or a list of them; `gains` holds the image's and the text's information gain, written as
strings; `raw_score` is a number or a list of numbers, one for each caption.
"""

import dataclasses
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli.errors import UserError
from .atomic import atomic_file
from .lmdb_files import key_of
from .sources import Record, printable

IMAGE_GAIN, TEXT_GAIN, RAW_SCORE, IMAGE = "image_gain", "text_gain", "raw_score", "image"


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """What a list says of one image: its captions, and the fields that go into its JSON member, gains as numbers."""

    captions: tuple[str, ...]
    fields: Mapping[str, Any]


def read_annotations(path: Path) -> dict[str, Annotation]:
    """Returns the annotations of a list by image name, in its order; captions of one image from several objects are put together.

    Raises:
        UserError: naming file and entry, when the file is missing, is no such list, or rates one image twice and differently.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--annotations={path}: cannot be read as JSON: {error}") from None
    if not isinstance(tree, list):
        raise UserError(f"--annotations={path}: not a JSON list of objects with `image` and `caption`")
    found: dict[str, Annotation] = {}
    for number, entry in enumerate(tree):
        where = f"--annotations={path}: entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
            raise UserError(f"{where}: not an object with the name of an image in `image`")
        _require_key(entry["image"], where)
        name, annotation = entry["image"], Annotation(_captions(entry.get("caption"), where), _fields(entry, where))
        before = found.get(name)
        if before is not None:
            if before.fields != annotation.fields:
                raise UserError(f"{where}: {printable(name)!r} stands there before with other gains or scores; leave one of them")
            annotation = Annotation(before.captions + annotation.captions, before.fields)
        found[name] = annotation
    if not found:
        raise UserError(f"--annotations={path}: an empty list")
    return found


def write_annotations(path: Path, records: Iterable[Record]) -> None:
    """Writes the list of some images, at least one, in their order, an object a line, atomically; nothing of it is kept in memory."""
    with atomic_file(path) as file:
        for number, record in enumerate(records):
            entry = annotation_entry(record.name, record.captions, record.fields)
            file.write((b",\n" if number else b"[\n") + json.dumps(entry).encode())
        file.write(b"\n]\n")


def annotation_entry(name: str, captions: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object that InfoGrowth's reader takes: a caption alone as a string, gains as strings."""
    entry: dict[str, Any] = {"image": name}
    if captions:
        entry["caption"] = captions[0] if len(captions) == 1 else list(captions)
    elif isinstance(fields.get("caption"), str | list):
        entry["caption"] = fields["caption"]
    if IMAGE_GAIN in fields and TEXT_GAIN in fields:
        entry["gains"] = [str(fields[IMAGE_GAIN]), str(fields[TEXT_GAIN])]
    if RAW_SCORE in fields:
        entry[RAW_SCORE] = fields[RAW_SCORE]
    return entry


def _require_key(name: str, where: str) -> None:
    try:
        key_of(name)
    except UnicodeEncodeError:
        raise UserError(f"{where}: image {printable(name)!r} has half a surrogate pair, which is no character; correct the name") from None


def _captions(found: object, where: str) -> tuple[str, ...]:
    listed: list[Any] = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(caption, str) for caption in listed):
        raise UserError(f"{where}: caption {reprlib.repr(found)}; allowed: a string or a list of strings")
    halves = [caption for caption in listed if any("\ud800" <= letter <= "\udfff" for letter in caption)]
    if halves:
        shown = reprlib.repr(printable(halves[0]))
        raise UserError(f"{where}: caption {shown} has half a surrogate pair, which is no character; correct the caption")
    return tuple(" ".join(caption.split()) for caption in listed)


def _fields(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns gains and scores as numbers, and the name that the list gives the image."""
    fields: dict[str, Any] = {IMAGE: entry["image"]}
    gains = entry.get("gains")
    if gains is not None:
        if not isinstance(gains, list) or len(gains) != 2:
            raise UserError(f"{where}: gains {reprlib.repr(gains)}; allowed: two numbers, image's and text's")
        fields[IMAGE_GAIN], fields[TEXT_GAIN] = (_number(gain, "gains", where) for gain in gains)
    score = entry.get(RAW_SCORE)
    if score is not None:
        numbers = [_number(value, RAW_SCORE, where) for value in (score if isinstance(score, list) else [score])]
        fields[RAW_SCORE] = numbers if isinstance(score, list) else numbers[0]
    return fields


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    is_grouped = isinstance(value, str) and "_" in value  # float takes 1_0 for 10
    if is_grouped or not math.isfinite(number):
        raise UserError(f"{where}: {name} holds {reprlib.repr(value)}; allowed: finite numbers, or strings of them")
    return number
