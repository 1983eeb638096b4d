"""List files as sources: `path label` lines, and ML-Images' `name<TAB>class:conf …` lines with sparse labels."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ..cli.errors import UserError
from .class_list import ClassList, numbered_classes
from .sources import MISSING, FolderReader, Record, Source, printable

Parsed = tuple[str, tuple[int, ...], tuple[float, ...] | None]

_INT32_MAX = 2**31 - 1
_SPACED = re.compile(r"^(?P<name>.*?)(?P<pairs>(?:\s+-?\d+(?::\S*)?)*)$")
_PAIR = re.compile(r"^(-?\d+)(?::(\S*))?$")


def looks_like_ml_images(path: Path) -> bool:
    """Whether the first line of a list is of ML-Images' form: a TAB, or a last word `class:conf`."""
    for _, line in _lines(path):
        return "\t" in line or re.search(r"\s\d+:[\d.eE+-]+$", line) is not None
    return False


def list_source(path: Path, root: Path | None, classes: ClassList | None) -> Source:
    """Returns the images of a list file `path label`, split from the right, so that paths may hold spaces.

    Paths are relative to `root`, by default the list's own folder. Without `classes` they are named by their numbers.

    Raises:
        UserError: naming file and line, for a line of another form or a label outside the class list.
    """
    return _source(path, root, classes, _parse_plain)


def ml_images_source(path: Path, root: Path | None, classes: ClassList | None) -> Source:
    """Returns the images of an ML-Images list: a name, then `class:conf` pairs, separated by TABs or spaces.

    A missing confidence is 1; of a class that stands there twice the higher confidence counts; a name alone has no label.

    Raises:
        UserError: naming file and line, for a malformed pair, a confidence outside [0, 1], a label outside the class list, a URL.
    """
    return _source(path, root, classes, _parse_pairs)


def _source(path: Path, root: Path | None, classes: ClassList | None, parse: Callable[[str, str], Parsed]) -> Source:
    base = path.parent if root is None else root
    if not base.is_dir():
        raise UserError(f"--root={base}: no such folder; give the folder that the paths in {path} are relative to")
    records, largest, largest_where = list[Record](), -1, ""
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        name, labels, confidences = parse(line, where)
        for label in labels:
            if classes is not None:
                classes.require(label, where)
            elif not 0 <= label <= _INT32_MAX:
                raise UserError(f"{where}: label {label}; allowed: 0 to {_INT32_MAX}; labels count from 0")
            if label > largest:
                largest, largest_where = label, where
        records.append(Record(name, labels, confidences, _size(base / name)))
    if not records:
        raise UserError(f"{path}: empty; lines of `path label` are expected")
    listed = numbered_classes(largest, largest_where) if classes is None else classes
    return Source(records, listed.entries, FolderReader(base))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (number, line) of every line that is not blank, without its end."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UserError(f"{path}: line {number} holds binary data; a list file, archive or folder is expected")
                if line.strip():
                    yield number, line.rstrip("\r\n\t ")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _parse_plain(line: str, where: str) -> Parsed:
    name, _, label = line.replace("\t", " ").rpartition(" ")
    if not name.strip() or re.fullmatch(r"[+-]?\d+", label) is None:
        raise UserError(f"{where}: {printable(line)!r} is not `path label` with an integer label")
    return line[: len(name)].strip(), (int(label),), None


def _parse_pairs(line: str, where: str) -> Parsed:
    if "\t" in line:
        name, _, rest = line.partition("\t")
    else:
        match = _SPACED.match(line)
        assert match is not None, "every part of the pattern may be empty"
        name, rest = match["name"], match["pairs"]
    if re.match(r"^\w+://", name):
        raise UserError(f"{where}: {printable(name)!r} is a URL; download the images first and list their file names")
    pairs: dict[int, float] = {}
    for word in rest.split():
        label, confidence = _pair(word, where)
        pairs[label] = max(confidence, pairs.get(label, 0.0))
    certain = all(confidence == 1 for confidence in pairs.values())
    return name.strip(), tuple(pairs), None if certain else tuple(pairs.values())


def _pair(word: str, where: str) -> tuple[int, float]:
    match = _PAIR.match(word)
    try:
        confidence = float(1 if match is None or match[2] is None else match[2])
    except ValueError:
        match = None
    if match is None:
        raise UserError(f"{where}: {printable(word)!r} is not `class:confidence` (an integer, a colon, a number)")
    if not 0 <= confidence <= 1:
        raise UserError(f"{where}: class {match[1]} has confidence {confidence:g}; allowed: 0 to 1")
    return int(match[1]), confidence


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # missing, a name too long, a folder that may not be searched: reading it will say which
        return MISSING
