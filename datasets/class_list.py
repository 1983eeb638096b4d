"""Which classes there are: from a file of names, ML-Images' dictionary, or the labels themselves."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..cli.config import nearest
from ..cli.errors import UserError
from .manifest import ClassEntry

_DICTIONARY_HEADER = ("category_index", "category_id", "index_of_parent_category", "category name")
_MAX_UNNAMED_CLASSES = 1_000_000


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Classes by id, the ids by every name they answer to, and where the list stands (for messages)."""

    entries: tuple[ClassEntry, ...]
    ids: Mapping[str, int]
    source: str

    def require(self, label: int, where: str) -> None:
        """Raises UserError unless 0 ≤ label < number of classes."""
        if not 0 <= label < len(self.entries):
            allowed = f"0 to {len(self.entries) - 1}, the {len(self.entries)} classes of {self.source}"
            raise UserError(f"{where}: label {label} is outside the class list; allowed: {allowed}; correct the label or --classes")

    def find(self, name: str, where: str) -> int:
        """Returns the id of the class called `name`.

        Raises:
            UserError: when no class, or more than one, has that name.
        """
        if name not in self.ids:
            hint = nearest(name, list(self.ids)) if len(self.ids) <= 2000 else ""
            raise UserError(f"{where}: class {name!r} is not one of the {len(self.entries)} classes of {self.source}{hint}")
        if self.ids[name] < 0:
            raise UserError(f"{where}: class {name!r} stands more than once in {self.source}; use its category id")
        return self.ids[name]


def read_class_list(path: Path) -> ClassList:
    """Returns the classes of a text file, in its order. Three forms are known by their look:

    - one name a line;
    - `key<TAB>name`: the class answers to both;
    - ML-Images' `dictionary_and_semantic_hierarchy.txt`: index, WordNet id, parent's index (-1: a root), name.

    Raises:
        UserError: when the file is missing, empty, not UTF-8 or not of a known form; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes={path}: cannot be read: {error}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"--classes={path}: empty; one class name a line")
    if tuple(lines[0].split("\t")) == _DICTIONARY_HEADER:
        return _dictionary(path, lines[1:])
    blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None:
        raise UserError(f"--classes={path}: line {blank} is blank; a class id is its line, so every line needs a name")
    fields = [[field.strip() for field in line.split("\t", 1)] for line in lines]
    entries = tuple(ClassEntry(field[-1]) for field in fields)
    return ClassList(entries, _ids(enumerate(fields)), str(path))


def numbered_classes(largest_label: int, where: str) -> ClassList:
    """Returns classes named by their numbers, 0 to `largest_label`, for lists that come without names.

    Raises:
        UserError: for more than a million classes: a wrong column rather than a label.
    """
    if largest_label >= _MAX_UNNAMED_CLASSES:
        raise UserError(f"{where}: label {largest_label}: over {_MAX_UNNAMED_CLASSES:,} classes need names; use --classes FILE")
    names = [str(label) for label in range(largest_label + 1)]
    return named_classes(names, [None] * len(names), where)


def named_classes(names: Sequence[str], parents: Sequence[int | None], source: str) -> ClassList:
    """Returns the class list with these names and parents' ids."""
    entries = tuple(ClassEntry(name, parent) for name, parent in zip(names, parents, strict=True))
    return ClassList(entries, {name: i for i, name in enumerate(names)}, source)


def _dictionary(path: Path, lines: Sequence[str]) -> ClassList:
    rows: dict[int, tuple[str, int, str]] = {}
    for number, line in enumerate(lines, 2):
        fields = line.split("\t")
        if len(fields) != 4 or not fields[0].isdecimal() or not fields[2].removeprefix("-").isdecimal():
            raise UserError(f"--classes={path}: line {number}: not `{'<TAB>'.join(_DICTIONARY_HEADER)}`: {line!r}")
        if int(fields[0]) in rows:
            raise UserError(f"--classes={path}: line {number}: category_index {fields[0]} stands there twice")
        rows[int(fields[0])] = (fields[1], int(fields[2]), fields[3])
    for index in range(len(rows)):
        if index not in rows:
            raise UserError(f"--classes={path}: {len(rows)} classes, but category_index {index} is missing")
        if not -1 <= rows[index][1] < len(rows):
            raise UserError(f"--classes={path}: class {index} has parent {rows[index][1]}; allowed: -1 to {len(rows) - 1}")
    ordered = [rows[index] for index in range(len(rows))]
    entries = tuple(ClassEntry(name, None if parent < 0 else parent) for _, parent, name in ordered)
    return ClassList(entries, _ids((i, (wnid, name)) for i, (wnid, _, name) in enumerate(ordered)), str(path))


def _ids(keys: Iterable[tuple[int, Sequence[str]]]) -> dict[str, int]:
    """Returns the id of each name, -1 for a name of several classes (ML-Images repeats 262 names)."""
    ids: dict[str, int] = {}
    for i, names in keys:
        for name in names:
            ids[name] = i if ids.get(name, i) == i else -1
    return ids
