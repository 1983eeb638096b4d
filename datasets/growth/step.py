"""`bamboo grow`: a step of growth, and the snapshot after it.

One process:     bamboo grow grown/ --data shards/train --image runs/features/resnet18-…
Many processes:  torchrun --nproc-per-node 8 -m bamboo.cli grow grown/ --data shards/train --image runs/features/resnet18-…
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...cli.config import build
from ...cli.errors import EXIT_DONE, DataError, UserError
from ..ranks import Ranks, start_ranks
from ..shards import Shards
from .audit import audit, audited_rows
from .columns import Columns
from .correction import WINDOW
from .growing import Memory, Rules, grow_source, unknown_columns
from .hnsw import HnswIndex
from .index import CellIndex, NeighbourIndex
from .inputs import Inputs, open_inputs
from .outputs import bucket_shards, describe, describe_plan, write_outputs
from .policy_settings import PolicySettings
from .policy_summary import PolicySummary
from .seed_lists import import_gains
from .settings import GrowSettings
from .settling import settled_gains
from .snapshot import Snapshot
from .state import FORMAT, VERSION, Codebook, GrowthState, SourceFolder
from .taking import Floats, Table, compiled_table, take_snapshot

_PATIENCE_S = 24 * 3600.0  # of the others, while rank 0 hashes what is there and writes what is new


def run(config: GrowSettings) -> int:
    """Grows the state by what has arrived, takes a snapshot, says what came of it on standard output, and returns the exit code."""
    ranks = start_ranks(config.engine.device, _PATIENCE_S)
    ranks.share_cores(0)
    try:
        if ranks.world_size > 1 and config.engine.kind == "hnsw":
            raise UserError(f"engine.kind=hnsw: a graph cannot be shared out over {ranks.world_size} processes; use one, or kind=cells")
        folders = config.image, config.text, config.recaptions
        inputs = None if config.data is None else open_inputs(config.data, *folders, verify=ranks.is_first)
        state = GrowthState(config.state)
        _require_fitting(state, inputs, config)
        if config.dry_run:
            if ranks.is_first:
                sys.stdout.write(describe_plan(state, inputs, config, _policy_summary(state, config) if inputs is None else None))
            return EXIT_DONE
        with _held(state, ranks):
            step = _Step(config, GrowthState(config.state), ranks)
            ranks.barrier()  # nobody writes before all have looked
            if inputs is not None:
                step.grow(inputs)
            step.take()
    finally:
        ranks.close()
    return EXIT_DONE


@contextlib.contextmanager
def _held(state: GrowthState, ranks: Ranks) -> Iterator[None]:
    """Holds the state in rank 0; the others begin when it has it."""
    with state.held() if ranks.is_first else contextlib.nullcontext():
        ranks.barrier()
        yield


class _Step:
    """One call of `bamboo grow`."""

    def __init__(self, config: GrowSettings, state: GrowthState, ranks: Ranks) -> None:
        self._config, self._state, self._ranks = config, state, ranks
        self._memory: Memory | None = None
        if ranks.is_first:
            state.tidy()
            for source in state.sources():
                source.verify()

    def grow(self, inputs: Inputs) -> None:
        """Takes a shard folder in, unless it is there already; goes on with it where that was begun before."""
        for source in self._state.sources():
            if source.card["identity"] == inputs.identity:
                self._say(f"{inputs.location} is in the state already, as source {source.number}: nothing to grow\n")
                return
            if source.card["data_hash"] == inputs.data_hash:
                raise UserError(f"--data={inputs.location}: is in the state already, as source {source.number}, with other features")
        folder = SourceFolder(self._state.folder, len(self._state.sources()))
        if self._ranks.is_first:
            self._begin(folder, inputs)
        self._ranks.barrier()
        self._state = GrowthState(self._state.folder)
        if self._config.gains:
            self._import(folder, inputs)
        else:
            self._grow(folder, inputs)
        self._ranks.barrier()

    def _begin(self, folder: SourceFolder, inputs: Inputs) -> None:
        effort, shared = self._config.engine.effort, _shared(inputs, self._config)
        begun = folder.card_begun()
        if begun is not None and begun["data_hash"] != inputs.data_hash:
            remedy = f"go on with it by the same command as before, or remove {folder.folder} to give it up"
            raise UserError(f"--data={inputs.location}: growth over {begun['location']} was begun and is not finished; {remedy}")
        is_first = not self._state.sources()
        is_other = is_first and self._state.card != shared
        if begun is not None and (is_other or (begun["identity"], begun["effort"]) != (inputs.identity, effort)):
            self._say(f"{folder.folder}: begun with other features or settings; begun anew\n")
            folder.give_up()
            begun = None
        if is_other:
            self._state.begin(shared)
        if begun is None:
            card = {
                "location": inputs.location,
                "data_hash": inputs.data_hash,
                "identity": inputs.identity,
                "num_samples": len(inputs),
                "shards": list(inputs.shards),
                "shard_counts": inputs.shard_counts.tolist(),
                "shard_bytes": list(inputs.shard_bytes),
                "features": {name: str(part.folder.path) for name, part in inputs.encoded.items()},
                "effort": effort,
            }
            for codebook in self._opened().codebooks.values():
                codebook.drop_cells_after(len(codebook))
            folder.begin(card, inputs.labels)

    def _grow(self, folder: SourceFolder, inputs: Inputs) -> None:
        config, ranks = self._config, self._ranks
        memory = self._memory = self._opened()
        memory.labels.append(inputs.labels)
        for number in range(folder.num_parts()):
            for codebook in memory.codebooks.values():
                codebook.append(folder.part(number, tuple(memory.codebooks)))
        memory.settle()
        rules = Rules(config.k, config.cleaning.alignment, config.cleaning.duplicate_distance)
        grow_source(inputs, folder, memory, rules, ranks)
        audits = self._audit(folder, memory)
        if ranks.is_first:
            folder.finish(inputs.shards, inputs.shard_counts, {"audit": audits})

    def _audit(self, folder: SourceFolder, memory: Memory) -> list[dict[str, Any]]:
        """Returns the audits of the step.

        Raises:
            DataError: when gains are too far off.
        """
        config, found = self._config, list[dict[str, Any]]()
        columns = folder.columns_of_parts()
        first = memory.arrived - len(columns["arrival"])
        rows = audited_rows(len(columns["arrival"]), config.engine.audit_samples, config.seed, first)
        for name, codebook in memory.codebooks.items():
            gains = columns[f"{name}_gain"][rows]
            known = np.isfinite(gains)
            arrivals = columns["arrival"][rows][known]
            made = audit(name, codebook, arrivals, gains[known], config.k, memory.indexes[name].num_cells, self._ranks)
            found.append(dataclasses.asdict(made))
            if made.p99 > config.engine.audit_limit:
                figures = f"the gains of {name} are off by {made.p99:.3g} (99 % quantile over {made.samples} samples)"
                limit = f"more than engine.audit_limit={config.engine.audit_limit:g}"
                remedy = "raise engine.effort (what is grown of this folder is then done again), or use engine.kind=exact in a new state"
                raise DataError(f"{folder.folder}: audit failed: {figures}, {limit}; {remedy}")
        return found

    def _import(self, folder: SourceFolder, inputs: Inputs) -> None:
        """Takes in gains that are known, with nothing that could be compared with later samples."""
        if not self._ranks.is_first:
            return
        image, text = import_gains(Shards.open(inputs.location))
        columns = unknown_columns(inputs, range(len(inputs)), self._arrived())
        folder.add_part(0, columns | {"image_gain": image, "text_gain": text}, {}, np.zeros(0, np.int64))
        folder.finish(inputs.shards, inputs.shard_counts, {"audit": []})

    def _arrived(self) -> int:
        return sum(source.card["num_samples"] for source in self._state.sources())

    def _opened(self) -> Memory:
        """Returns what the finished sources left."""
        sources, shared = self._state.sources(), self._state.card or {}
        widths = {name: entry["width"] for name, entry in shared.get("modalities", {}).items()}
        codebooks = {name: Codebook(self._state.folder, name, width) for name, width in widths.items()}
        for source in sources:
            for number in range(source.card["num_parts"]):
                for codebook in codebooks.values():
                    codebook.append(source.part(number, tuple(codebooks)))
        return Memory({name: self._index(width) for name, width in widths.items()}, codebooks, [source.labels for source in sources])

    def _index(self, width: int) -> NeighbourIndex:
        engine = self._config.engine
        if engine.kind == "hnsw":
            return HnswIndex(width)
        return CellIndex(width, self._ranks, engine.effort if engine.kind == "cells" else 0, self._config.seed)

    def take(self) -> None:
        """Takes a snapshot of the state, and writes what is asked for of it."""
        config, sources = self._config, self._state.sources()
        if not sources:
            raise UserError(f"{self._state.folder}: nothing has grown yet; give data, and its features")
        settled = self._settled(len(sources))
        if not self._ranks.is_first:
            return
        policy, window = _policy(self._state, config)
        table: Table = compiled_table(sources, settled, policy, window)
        snapshot, is_new = take_snapshot(self._state, table, policy, window)
        self._say(describe(snapshot, is_new))
        if config.bucket.out is not None and not _is_packed_into(snapshot, config.bucket.out):
            snapshot, is_new = bucket_shards(self._state, snapshot, config)
            self._say(describe(snapshot, is_new))
        write_outputs(snapshot, config)

    def _settled(self, num_sources: int) -> dict[str, Floats]:
        """Returns the settled gains by modality: of the newest snapshot, where nothing has arrived since, else computed."""
        shared = self._state.card or {}
        if not self._config.settled or shared["imported"]:
            return {}
        newest = self._state.newest()
        if newest is not None and len(newest.sources) == num_sources and newest.card["settled"]:
            return _settled_of(newest, tuple(shared["modalities"]))
        memory = self._memory
        if memory is None:
            memory = self._opened()
            memory.settle()
        return settled_gains(memory, self._config.k, self._ranks)

    def _say(self, text: str) -> None:
        if self._ranks.is_first:
            sys.stdout.write(text)


def _policy_summary(state: GrowthState, config: GrowSettings) -> PolicySummary | None:
    """Returns what a policy comes to on what is there, by the settled gains of the newest snapshot; None: nothing is there."""
    newest = state.newest()
    if newest is None:
        return None
    policy, window = _policy(state, config)
    settled = _settled_of(newest, state.modalities) if len(newest.sources) == len(state.sources()) else {}
    return compiled_table(state.sources(), settled, policy, window).compiled.summary


def _settled_of(snapshot: Snapshot, modalities: tuple[str, ...]) -> dict[str, Floats]:
    parts: list[Columns] = [snapshot.columns(number) for number in range(len(snapshot.sources))]
    return {name: np.concatenate([part[f"{name}_settled"] for part in parts]) for name in modalities}


def _policy(state: GrowthState, config: GrowSettings) -> tuple[PolicySettings, int]:
    """Returns policy and window: what is asked for, else those of the newest snapshot, else the defaults."""
    newest = state.newest()
    policy = PolicySettings() if newest is None else build(PolicySettings, newest.card["policy"], str(newest.folder))
    window = WINDOW if newest is None else int(newest.card["window"])
    return config.policy or policy, config.window or window


def _is_packed_into(snapshot: Snapshot, out: Path) -> bool:
    return "packed_from" in snapshot.card and snapshot.training[0].location == str(out.resolve())


def _shared(inputs: Inputs, config: GrowSettings) -> dict[str, Any]:
    """Returns what growth.json is to say."""
    widths = {str(name): {"encoder": part.encoder, "width": part.width} for name, part in inputs.encoded.items()}
    own = {"modalities": widths, "classes": list(inputs.classes), "imported": config.gains}
    return {"format": FORMAT, "version": VERSION, **config.shared, **own}


def _require_fitting(state: GrowthState, inputs: Inputs | None, config: GrowSettings) -> None:
    """Raises UserError, which lists everything, where settings or features are not those that the state began with."""
    card = state.card
    if card is None or not state.sources():
        if inputs is None:
            raise UserError(f"{state.folder}: no growth state; begin one with data and its features")
        return
    found = [f"{name}={now}: the state began with {card[name]}" for name, now in config.shared.items() if card[name] != now]
    if inputs is not None:
        found += _encoder_differences(card, inputs)
        if config.gains != card["imported"]:
            found.append("gains: a state has gains that were imported, or its own, not both")
        if inputs.classes != tuple(card["classes"]):
            counts = f"{len(inputs.classes)} classes, the state has {len(card['classes'])}"
            found.append(f"data={inputs.location}: {counts}, or their order differs; pack all folders with one --classes")
    if found:
        remedy = "give the old values back, or name another folder for a new state"
        raise UserError("\n".join([f"{state.folder}: does not fit; {remedy}", *(f"  {line}" for line in found)]))


def _encoder_differences(card: dict[str, Any], inputs: Inputs) -> list[str]:
    found = []
    if set(inputs.encoded) != set(card["modalities"]):
        found.append(f"features of {' and '.join(inputs.encoded) or 'nothing'}: the state has {' and '.join(card['modalities']) or 'none'}")
    for name, part in inputs.encoded.items():
        before = card["modalities"].get(name)
        if before is not None and before["width"] != part.width:
            found.append(f"{name}={part.folder.path}: features of width {part.width}; the state has {before['width']}")
        elif before is not None and before["encoder"] != part.encoder:
            found.append(f"{name}={part.folder.path}: made by another encoder or preprocessing than those of the state")
    return found
