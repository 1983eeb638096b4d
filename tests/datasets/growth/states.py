"""Growth states laid down by hand: the files of the contract, with whatever gains and probabilities a test wants."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bamboo.datasets.atomic import sha256_file, write_json, write_text
from bamboo.datasets.growth.columns import CAUSAL, SETTLED, write_columns
from bamboo.datasets.growth.snapshot import FORMAT, LATEST_NAME, VERSION, Snapshot, open_snapshot, sidecar, snapshot_folder
from bamboo.datasets.shards import Shards

Column = Any


def write_state(
    state: Path,
    folders: Sequence[Path],
    probabilities: Sequence[Column],
    *,
    second: Sequence[Column | None] | None = None,
    columns: Sequence[Mapping[str, Column]] = (),
    number: int = 1,
    card: Mapping[str, Any] | None = None,
) -> Snapshot:
    """Writes a state of one snapshot, whose training folders are its sources, and opens it.

    Args:
        columns: of each source the columns, causal or settled, that are not to have their defaults: arrivals through all sources, every
            sample accepted, every gain ½, alignment, neighbours and label entropy not known.
        card: what snapshot.json says besides or instead; by itself it has only what `open_snapshot` needs, and with anything of what
            `bamboo grow` says besides all of it.
    """
    opened, folder, first = [Shards.open(location) for location in folders], snapshot_folder(state, number), 0
    training = []
    for ordinal, shards in enumerate(opened):
        given = columns[ordinal] if ordinal < len(columns) else {}
        _write_sidecars(state, folder, ordinal, shards, _defaults(shards, first) | dict(given))
        first += len(shards)
        names: list[str | None] = [f"probabilities/{ordinal:06d}.npy", None]
        _save(folder / str(names[0]), probabilities[ordinal])
        if second is not None and second[ordinal] is not None:
            names[1] = f"probabilities/{ordinal:06d}-second.npy"
            _save(folder / names[1], second[ordinal])
        training.append({**_entry(shards), "probabilities": names[0], "second": names[1], "grouped": False})
    sources = [{**_entry(shards), "shards": [entry.name for entry in shards.manifest.shards]} for shards in opened]
    files = {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.*"))}
    needed = {"format": FORMAT, "version": VERSION, "number": number, "sources": sources, "training": training, "coupled": False}
    besides = {"growth": {}, "audit": [], "decisions": {}, "window": 1, "settled": False, "policy": {"kind": "seed"}, "policy_summary": {}}
    if not besides.keys().isdisjoint(card or {}):
        needed |= besides
    write_json(folder / "snapshot.json", {**needed, **(card or {}), "files": files})
    write_text(state / LATEST_NAME, f"{number}\n")
    return open_snapshot(state)


def _entry(shards: Shards) -> dict[str, Any]:
    return {"location": str(shards.folder), "data_hash": shards.data_hash, "num_samples": len(shards)}


def _defaults(shards: Shards, first: int) -> dict[str, Column]:
    count = len(shards)
    found = {field.name: np.full(count, np.nan, np.float32) for field in (*CAUSAL, *SETTLED)}
    found |= {name: np.full(count, 0.5, np.float32) for name in ("image_gain", "text_gain", "gain", "corrected")}
    found |= {name: np.full(count, -1, np.int64) for name in ("image_nearest", "text_nearest")}
    found |= {name: np.zeros(count, np.uint8) for name in ("decision", "reason")}
    found |= {name: np.array(getattr(shards.index, name)) for name in ("key_hash", "offset", "size")}
    return found | {"arrival": np.arange(first, first + count)}


def _write_sidecars(state: Path, folder: Path, ordinal: int, shards: Shards, columns: Mapping[str, Column]) -> None:
    start = 0
    for entry in shards.manifest.shards:
        rows = slice(start, start + entry.num_samples)
        part = {name: np.asarray(column)[rows] for name, column in columns.items()}
        for place, schema in ((state, CAUSAL), (folder, SETTLED)):
            write_columns(sidecar(place / "sources" / f"{ordinal:06d}", entry.name), part, schema)
        start += entry.num_samples


def _save(path: Path, column: Column) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(column, np.float32))
