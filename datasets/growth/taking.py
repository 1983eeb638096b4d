"""A snapshot is taken: columns of all sources put together, gains corrected, the policy compiled, all of it published at once."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cli.config import dump
from ...cli.errors import DataError
from ..atomic import atomic_file, publish_folder, sha256_file, sha256_json, write_json, write_text
from ..plan.groups import form_groups, shares_read
from ..plan.rates import ONE
from .bucket import Bucketed
from .columns import SETTLED, Columns, Decision, write_columns
from .correction import combined, corrected
from .policy import Compiled, PolicyColumns, chosen_gain, compile_policy
from .policy_settings import PolicySettings
from .snapshot import (
    CARD_NAME,
    FORMAT,
    LATEST_NAME,
    ONCE,
    PROBABILITIES,
    SNAPSHOTS,
    SOURCES,
    VERSION,
    Snapshot,
    content_of,
    open_snapshot,
    sidecar,
    snapshot_folder,
)
from .state import GrowthState, SourceFolder

Floats = npt.NDArray[np.float32]



@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """All columns of a state, its sources one after another, and what a policy makes of them."""

    sources: Sequence[SourceFolder]
    columns: Columns
    compiled: Compiled

    def parts(self) -> list[slice]:
        """Returns the rows of each source."""
        ends = np.cumsum([source.card["num_samples"] for source in self.sources]).tolist()
        return [slice(stop - source.card["num_samples"], stop) for source, stop in zip(self.sources, ends, strict=True)]


def compiled_table(sources: Sequence[SourceFolder], settled: Mapping[str, Floats], policy: PolicySettings, window: int) -> Table:
    """Returns the columns of a state and what a policy makes of them; 100 bytes a sample or so.

    Args:
        settled: float32[N] settled gains by modality; without one it is NaN.

    Raises:
        UserError: when the policy cannot be had, `compile_policy` says when.
        DataError: when a column is damaged.
    """
    parts = [source.columns() for source in sources]
    for source, part in zip(sources, parts, strict=True):
        if {len(part["arrival"]), len(source.labels)} != {source.card["num_samples"]}:
            raise DataError(f"{source.folder}: its columns or labels are not as long as source.json says; restore them from a copy")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    unknown = np.full(len(columns["arrival"]), np.nan, np.float32)
    columns |= {f"{name}_settled": settled.get(name, unknown) for name in ("image", "text")}
    gain = combined(columns["image_gain"], columns["text_gain"], policy.resolved().combine)
    is_accepted = np.isin(columns["decision"], [Decision.ACCEPT, Decision.CLEAN])
    columns |= {"gain": gain, "corrected": corrected(gain, is_accepted, window)}
    classes = np.concatenate([source.labels for source in sources]).astype(np.int64)
    has_labels = bool((classes >= 0).any())
    looked_at = PolicyColumns(
        gain=chosen_gain(columns, policy),
        decision=columns["decision"],
        label_entropy=columns["label_entropy"] if has_labels else None,
        classes=classes if has_labels else None,
    )
    return Table(sources, columns, compile_policy(looked_at, policy))


def take_snapshot(state: GrowthState, table: Table, policy: PolicySettings, window: int) -> tuple[Snapshot, bool]:
    """Writes a snapshot, unless the newest is just the same, and returns it and whether it is new."""
    entries, files = list[dict[str, Any]](), list[tuple[str, Floats]]()
    for number, (source, rows) in enumerate(zip(table.sources, table.parts(), strict=True)):
        names = _columns_of(table.compiled, f"{number:06d}", rows, files)
        card = source.card
        forecast = _forecast(table.compiled, rows, card, table.columns["size"][rows], grouped=False)
        entries.append({name: card[name] for name in ("location", "data_hash", "num_samples")} | names | {"grouped": False, **forecast})

    def write(folder: Path) -> None:
        for number, (source, rows) in enumerate(zip(table.sources, table.parts(), strict=True)):
            _write_sidecars(folder / SOURCES / f"{number:06d}", source, {field: table.columns[field][rows] for field in SETTLED.names})
        for name, column in files:
            _save(folder / name, column)

    counts = {decision.name.lower(): int((table.columns["decision"] == decision).sum()) for decision in Decision}
    card = {
        "growth": state.card,
        "sources": [{name: source.card[name] for name in ("location", "data_hash", "num_samples", "shards")} for source in table.sources],
        "source_hashes": [sha256_json(source.card["files"]) for source in table.sources],
        "audit": [entry | {"source": source.number} for source in table.sources for entry in source.card["audit"]],
        "decisions": counts,
        "window": window,
        "settled": bool(np.isfinite(table.columns["image_settled"]).any() or np.isfinite(table.columns["text_settled"]).any()),
        "policy": dump(policy),
        "policy_summary": dataclasses.asdict(table.compiled.summary),
        "coupled": table.compiled.coupled,
        "training": entries,
    }
    return _publish(state, card, write)


def take_bucketed(state: GrowthState, snapshot: Snapshot, bucketed: Bucketed, location: str) -> tuple[Snapshot, bool]:
    """Writes the snapshot that is trained from shards packed anew, and otherwise is `snapshot`."""
    names = {"probabilities": f"{PROBABILITIES}/bucketed.npy", "second": None}
    paths = {names["probabilities"]: bucketed.probabilities}
    if bucketed.second is not None:
        names["second"] = f"{PROBABILITIES}/bucketed-second.npy"
        paths[names["second"]] = bucketed.second
    manifest = bucketed.manifest
    entry = {"location": location, "data_hash": manifest.data_hash, "num_samples": manifest.num_samples, **names}
    entry |= {"grouped": not snapshot.coupled}  # coupled epochs read every shard

    def write(folder: Path) -> None:
        shutil.copytree(snapshot.folder / SOURCES, folder / SOURCES)
        (folder / PROBABILITIES).mkdir(parents=True)
        for name, path in paths.items():
            shutil.copyfile(path, folder / str(name))

    sizes = np.concatenate([snapshot.columns(number)["size"] for number in range(len(snapshot.sources))])
    starts = np.cumsum([0, *(folder.num_samples for folder in snapshot.training)])
    size = sizes[starts[bucketed.origins[:, 0]] + bucketed.origins[:, 1]]
    first = np.load(bucketed.probabilities)
    counts, num_bytes = ([getattr(shard, name) for shard in manifest.shards] for name in ("num_samples", "size_bytes"))
    forecast = _reading(first, {"shard_counts": counts, "shard_bytes": num_bytes}, size, grouped=not snapshot.coupled)
    card = {name: value for name, value in snapshot.card.items() if name not in ("format", "version", "files", *ONCE)}
    before = snapshot.card.get("packed_from") or content_of(snapshot.card)
    return _publish(state, card | {"training": [entry | forecast], "packed_from": before}, write)


def _publish(state: GrowthState, card: dict[str, Any], write: Callable[[Path], None]) -> tuple[Snapshot, bool]:
    """Writes a snapshot's files by `write` into a folder that appears when all are there, then says that it is the newest.

    Where the newest is just the same, or was packed by gain from just this, nothing is added.
    """
    before = state.newest()
    number = 1 if before is None else before.number + 1
    temporary = state.folder / SNAPSHOTS / ".new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        files = {str(path.relative_to(temporary)): sha256_file(path) for path in sorted(temporary.rglob("*")) if path.is_file()}
        whole = {"format": FORMAT, "version": VERSION, "number": number, "parent": before.content_hash if before else "", **card}
        whole["files"] = files
        if before is not None and content_of(whole) in (content_of(before.card), before.card.get("packed_from")):
            shutil.rmtree(temporary)
            write_text(state.folder / LATEST_NAME, f"{before.number}\n")
            return before, False
        write_json(temporary / CARD_NAME, whole)
        publish_folder(temporary, snapshot_folder(state.folder, number))
    except BaseException:  # also a Ctrl-C: half a snapshot, as large as its columns, is not left behind
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    write_text(state.folder / LATEST_NAME, f"{number}\n")
    return open_snapshot(state.folder), True


def _columns_of(compiled: Compiled, name: str, rows: slice, files: list[tuple[str, Floats]]) -> dict[str, str | None]:
    """Notes the probability columns of one folder to be written, and returns their names."""
    first, second = f"{PROBABILITIES}/{name}.npy", f"{PROBABILITIES}/{name}-second.npy"
    files.append((first, compiled.probabilities[rows]))
    if compiled.second is not None:
        files.append((second, compiled.second[rows]))
    return {"probabilities": first, "second": second if compiled.second is not None else None}


def _forecast(compiled: Compiled, rows: slice, card: Mapping[str, Any], size: npt.NDArray[np.int64], *, grouped: bool) -> dict[str, float]:
    return _reading(compiled.probabilities[rows], card, size, grouped=grouped)


def _reading(visits: Floats, card: Mapping[str, Any], size: npt.NDArray[np.int64], *, grouped: bool) -> dict[str, float]:
    """Returns what an epoch is expected to read, as `plan.reading.predicted_reading` has it, before the column is compiled."""
    counts, num_bytes = np.array(card["shard_counts"], np.int64), np.array(card["shard_bytes"], np.int64)
    units = np.rint(visits.astype(np.float64) * ONE).astype(np.int64)
    starts = np.cumsum(counts) - counts
    filled = np.flatnonzero(counts)
    sums, greatest = np.zeros_like(counts), np.zeros_like(counts)
    if len(filled):
        sums[filled] = np.add.reduceat(units, starts[filled])
        greatest[filled] = np.maximum.reduceat(units, starts[filled])
    groups = form_groups(sums, greatest, num_bytes) if grouped and sums.any() else None
    read, used = float(shares_read(sums, groups) @ num_bytes), 0.0
    if len(filled):
        taken, whole = (np.add.reduceat(column, starts[filled]) for column in (visits.astype(np.float64) * size, size))
        used = float(num_bytes[filled] @ (taken / whole))
    return {"read_bytes": read, "used_bytes": used, "amplification": read / used if used else 0.0}


def _write_sidecars(folder: Path, source: SourceFolder, columns: Columns) -> None:
    counts = source.card["shard_counts"]
    for shard, stop, count in zip(source.card["shards"], np.cumsum(counts).tolist(), counts, strict=True):
        write_columns(sidecar(folder, shard), {name: column[stop - count : stop] for name, column in columns.items()}, SETTLED)


def _save(path: Path, column: Floats) -> None:
    with atomic_file(path) as file:
        np.save(file, column)
