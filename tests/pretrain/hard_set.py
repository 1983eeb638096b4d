"""A downstream set that no backbone gets all right, of unequal classes, and evaluators on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COUNTS = {"train": (41, 37, 31), "test": (19, 23, 17)}  # no batch size or number of ranks divides their sums


def draw(root: Path) -> Path:
    """Writes 16 × 16 images whose brightness hints at their class, and returns `root`."""
    random = np.random.default_rng(0)
    for split, counts in COUNTS.items():
        for label, count in enumerate(counts):
            folder = root / split / "abc"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                array = random.normal(random.normal(90 + 40 * label, 40), 40, (16, 16, 3))
                Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


def evaluators(root: Path, **sections: dict[str, Any]) -> str:
    """Returns the setting `evaluators` of these sections on the set, as an option spells it."""
    return json.dumps({name: {"dataset": "folder", "data_root": str(root), **section} for name, section in sections.items()})
