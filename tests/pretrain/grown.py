"""Snapshots of a grown dataset, written by their contract without growing anything."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bamboo.datasets.atomic import sha256_file
from bamboo.datasets.growth.snapshot import FORMAT, LATEST_NAME, VERSION, snapshot_folder
from bamboo.datasets.shards import Shards

Column = npt.NDArray[np.floating]
Training = tuple[Path | str, Column] | tuple[Path | str, Column, Column]
"""A shard folder, or its address; its probabilities, and those of every second epoch."""


def write_snapshot(state: Path, number: int, folders: Sequence[Training], *, grouped: bool = False, **card: Any) -> Path:
    """Writes snapshot `number` of a growth state and makes it the newest; returns its folder.

    Args:
        grouped: whether an epoch may pass over shards.
        card: further entries of snapshot.json, such as coupled=True.
    """
    folder = snapshot_folder(state, number)
    (folder / "probabilities").mkdir(parents=True)
    entries, sources, files = [], [], {}
    for place, (location, *columns) in enumerate(folders):
        names = [f"probabilities/{place:06d}{suffix}.npy" for suffix in ("", "-second")][: len(columns)]
        for name, column in zip(names, columns, strict=True):
            np.save(folder / name, column.astype(np.float32))
            files[name] = sha256_file(folder / name)
        opened = Shards.open(location)
        source = {"location": str(location), "data_hash": opened.data_hash, "num_samples": len(opened)}
        sources.append({**source, "shards": [entry.name for entry in opened.manifest.shards]})
        entries.append({**source, "probabilities": names[0], "second": names[1] if names[1:] else None, "grouped": grouped})
    made = {
        "format": FORMAT,
        "version": VERSION,
        "number": number,
        "sources": sources,
        "training": entries,
        "coupled": False,
        "files": files,
    }
    (folder / "snapshot.json").write_text(json.dumps({**made, **card}))
    (state / LATEST_NAME).write_text(f"{number}\n")
    return folder
