"""How deep the metadata of a sample may be nested: JSON that was just read may be too deep to write again."""

from typing import Any

from ..cli.errors import DataError

MAX_DEPTH = 100


def require_shallow(tree: Any, where: str) -> None:
    """Raises DataError for parsed JSON with more than `MAX_DEPTH` lists and objects inside each other; `where` names it."""
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise DataError(f"{where}: metadata nested more than {MAX_DEPTH} deep; make it flat, or take it out")


def _children(parent: Any) -> list[Any]:
    children = parent.values() if isinstance(parent, dict) else parent
    return [child for child in children if isinstance(child, dict | list)]
