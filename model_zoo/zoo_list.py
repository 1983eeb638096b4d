"""`bamboo zoo list`: the registry as a table."""

import json
import sys
from pathlib import Path
from typing import Any

from ..cli.errors import EXIT_DONE, UserError
from .registry import Entry, read_registry
from .sources import Access, access_from_environment, copies
from .zoo_cli import ListSettings

_HEADER = ("id", "architecture", "params", "width", "head", "file", "here", "pretraining", "licence")
_RIGHT = frozenset({"params", "width", "head", "file"})
_PRETRAINING_LETTERS = 56


def run(config: ListSettings) -> int:
    """Prints the table and returns the exit code."""
    access = access_from_environment(cache=config.cache, registry=config.registry)
    rows = [_row(entry, access) for entry in read_registry(access.registry).values()]
    if config.runs is not None:
        rows += run_rows(config.runs)
    words = [word.lower() for word in config.words]
    chosen = [row for row in rows if all(word in " ".join(row).lower() for word in words)]
    if not chosen:
        raise UserError(f"words={' '.join(config.words)}: none of the {len(rows)} checkpoints holds them all")
    sys.stdout.write(
        f"{_table([_HEADER, *chosen])}\n{len(chosen)} of {len(rows)}; open one with zoo:ID, see more with bamboo zoo show ID\n"
    )
    return EXIT_DONE


def run_rows(folder: Path) -> list[tuple[str, ...]]:
    """Returns a row for each run folder in `folder` that has an export; the folder itself may be one.

    Raises:
        UserError: when there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"runs={folder}: no such folder")
    cards = [run / "export" / "model.json" for run in (folder, *sorted(folder.iterdir()))]
    return [_run_row(card) for card in cards if card.is_file()]


def show_bytes(count: int) -> str:
    """Returns a size in words: 102 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB" if count >= 10**7 else f"{count / 1e6:.1f} MB"


def _row(entry: Entry, access: Access) -> tuple[str, ...]:
    pretraining = entry.pretraining
    if len(pretraining) > _PRETRAINING_LETTERS:
        pretraining = pretraining[: _PRETRAINING_LETTERS - 1] + "…"
    return (
        entry.id,
        entry.architecture,
        f"{entry.num_params / 1e6:.1f} M",
        str(entry.num_features),
        f"{entry.num_classes:,}" if entry.num_classes else "-",
        show_bytes(entry.num_bytes),
        "yes" if next(copies(entry, access), None) else "-",
        pretraining,
        entry.licence,
    )


def _run_row(card: Path) -> tuple[str, ...]:
    run = card.parent.parent
    try:
        tree: dict[str, Any] = json.loads(card.read_bytes())
        trained = tree["trained"]
        steps = f"own run, {trained['steps']:,} steps" if isinstance(trained.get("steps"), int) else "own run"
        size = show_bytes(card.with_name("model.safetensors").stat().st_size)
        return (str(run), tree["architecture"], "", "", f"{len(tree['classes']):,}", size, "yes", steps, "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return (str(run), "", "", "", "", "", "-", f"damaged export ({type(error).__name__})", "")


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if name in _RIGHT else cell.ljust(width) for name, cell, width in zip(_HEADER, row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
