"""A sweep: one pretraining run per cell, each with settings, a name and a run folder of its own."""

import collections
import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.config import read_yaml
from ..cli.errors import UserError

_OURS = ("run.folder", "dry_run")
_LONGEST_NAME = 120  # run folders hold longer paths


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    number: int
    """Its place in the sweep, from 0: the number of its task."""
    name: str
    """Its settings by name, `optimizer.lr=0.001,run.seed=0`; a function of them alone, so that a sweep that grows keeps its runs."""
    overrides: tuple[str, ...]
    """Its settings as options of bamboo pretrain, `--optimizer.lr=0.001`."""


def read_sweep(file: Path) -> tuple[Cell, ...]:
    """Returns the cells of a sweep from YAML.

    A mapping of settings to lists of values has a cell for every combination, the last setting changing fastest; a list of mappings
    of settings to values has a cell for each::

        optimizer.lr: [1e-3, 3e-4]               - {model.name: resnet50, optimizer.lr: 1e-3}
        run.seed: [0, 1]                         - {model.name: vit_small_patch16_224, optimizer.lr: 5e-4}

    Raises:
        UserError: for another shape, a setting that the sweep itself gives, and two cells with the same settings.
    """
    tree = read_yaml(file, "sweep")
    rows = _combinations(tree, file) if isinstance(tree, dict) else tree
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        shape = "a mapping of settings to lists of values (every combination), or a list of mappings of settings to values (one run each)"
        raise UserError(f"--sweep={file}: must hold {shape}")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        if not isinstance(key, str) or key in _OURS:
            reason = "is given by --runs and the cell's name" if key == "run.folder" else "is no setting to sweep over"
            raise UserError(f"--sweep={file}: {key} {reason}; leave it out")
    cells = [Cell(number, _name(row), _options(row)) for number, row in enumerate(rows)]
    (name, count), *_ = collections.Counter(cell.name for cell in cells).most_common(1)
    if count > 1:
        raise UserError(f"--sweep={file}: holds {name} {count} times; leave the others out")
    return tuple(cells)


def _combinations(axes: Mapping[str, Any], file: Path) -> list[dict[str, Any]]:
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            nested = f"; spell a setting of a section as {key}.NAME" if isinstance(values, dict) else f"; one value is [{_spelled(values)}]"
            raise UserError(f"--sweep={file}: {key}={_spelled(values)}: must be a list of values{nested}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _options(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"--{key}={_spelled(value)}" for key, value in row.items())


def _spelled(value: Any) -> str:
    """Returns a value as an option takes it: text as it stands, all else as JSON, which is YAML."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _name(row: Mapping[str, Any]) -> str:
    """Returns the settings, in whatever order, as the name of a folder; where that does not tell all of them, with a hash behind."""
    spelled = sorted((key, _spelled(value)) for key, value in row.items())
    plain = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9.+_-]+', '-', text)}" for key, text in spelled)
    if plain == ",".join("=".join(pair) for pair in spelled) and len(plain) <= _LONGEST_NAME:
        return plain
    told = hashlib.sha256(json.dumps(dict(row), sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{plain[:_LONGEST_NAME].rstrip('-')},{told}"
