"""The checkpoints of a run: each the whole state after a step, in a folder that is there whole or not at all.

checkpoints/
    step-00001200/  written by all ranks, each its part; the form is told in `model_zoo.run_checkpoints`
    latest          the newest one's name, moved last
"""

import dataclasses
import errno
import functools
import json
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cli.errors import DataError
from ...datasets.atomic import fsync_folder, publish_folder, sha256_json, write_text
from ...datasets.ranks import ALONE, Ranks
from ...model_zoo.run_checkpoints import (
    FORMAT,
    STATE_NAME,
    VERSION,
    RunCheckpoint,
    file_fault,
    file_name,
    read_index,
    read_state,
    stray_fault,
)
from ...model_zoo.tensor_files import Stored, write_tensor_file
from ..settings.evaluators import VAL
from .first_version import FILES_1, read_first_version
from .meeting import Meeting
from .plain_values import from_plain
from .snapshot import Position, Snapshot


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that makes a run go on as if nothing had happened; tensors are read when they are asked for."""

    position: Position
    model: Mapping[str, Stored]
    average: Mapping[str, Stored] | None
    optimizer: dict[str, Any]
    """As `Engine.load` takes it."""
    pinned: dict[str, Any]
    """The settings and data hashes that a resumed run must share."""
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What the evaluators, by name, found after this very step, before the state was saved."""


class CheckpointFolder:
    """The checkpoints of one run; every rank writes its part and reads what it needs, rank 0 decides.

    Args:
        run: the run folder, on a file system that all ranks share.
        keep: how many of the newest are kept.
        best: how many of those that `best_by` scored best are kept besides; among equals the newest.
        best_by: name of an evaluator.
        every: those after a multiple of so many steps are kept besides; 0: none.
    """

    def __init__(self, run: Path, keep: int, *, best: int = 0, best_by: str = VAL, every: int = 0) -> None:
        self._folder, self._keep, self._every = run / "checkpoints", keep, every
        self._best, self._best_by = best, best_by

    def save(self, snapshot: Snapshot, meeting: Meeting | None = None) -> Path:
        """Writes a checkpoint, moves `latest` to it, then drops the old ones that are not to be kept; every rank takes part.

        Raises:
            OSError: on all ranks, when any could not write; the checkpoints before are untouched and nothing half-written stays.
            RankLostError: on those that are left, when a rank dies meanwhile.
        """
        meeting = meeting or Meeting()
        final = self._folder / f"step-{snapshot.position.step:08d}"
        temporary: Path | None = None
        try:
            temporary = meeting.first_does(functools.partial(self._begin, final))
            if temporary is None:  # a resumed run that came to the same step again
                return final
            reports = meeting.all_do(functools.partial(_write_part, temporary, snapshot, meeting))
            meeting.first_does(functools.partial(self._publish, temporary, final, snapshot, reports))
        except BaseException:  # whatever ends it, also on another rank: nothing half-written stays
            if meeting.is_first and temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return final

    def newest(self, ranks: Ranks = ALONE) -> Path | None:
        """Returns the newest whole checkpoint, or None: the same on every rank; each checks its share of the files' hashes.

        A damaged one is named on standard error and passed over.
        """
        for name in json.loads(ranks.from_first(json.dumps([path.name for path in self._by_age()] if ranks.is_first else []))):
            path: Path = self._folder / name
            fault = next(filter(None, ranks.from_all(_fault(path, ranks))), "")
            if not fault:
                return path
            if ranks.is_first:
                sys.stderr.write(f"{fault}; passed over\n")
        return None

    def refuse_loss(self, ranks: Ranks = ALONE) -> None:
        """Raises DataError where there are checkpoints, as when none of them is whole: a run that began anew would replace them."""
        found = int(ranks.from_first(str(len(self._by_age())) if ranks.is_first else ""))
        if found:
            raise DataError(
                f"{self._folder}: none of its {found} checkpoints is whole on all ranks, and the run does not begin anew in their place; "
                "see that every node has run.folder, or move them away, or give another run.folder"
            )

    def _begin(self, final: Path) -> Path | None:
        """Returns the folder to write into, or None where the checkpoint is there and whole."""
        if final.exists() and not _fault(final, ALONE):
            return None
        for leftover in self._folder.glob(".step-*.tmp"):  # of a killed run
            shutil.rmtree(leftover)
        temporary = self._folder / f".{final.name}.{secrets.token_hex(4)}.tmp"  # no rank's file system has ever been asked for that name
        temporary.mkdir(parents=True)
        return temporary

    def _publish(self, temporary: Path, final: Path, snapshot: Snapshot, reports: list["Report"]) -> None:
        state = {
            "format": FORMAT,
            "version": VERSION,
            "position": dataclasses.asdict(snapshot.position),
            **snapshot.facts,
            **_index(reports),
        }
        read_index(state, final)  # what cannot be read is not published
        write_text(temporary / STATE_NAME, json.dumps({**state, "sha256": sha256_json(state)}) + "\n")
        if final.exists():  # damaged, and passed over when the run was resumed
            shutil.rmtree(final)
        publish_folder(temporary, final)
        write_text(self._folder / "latest", final.name + "\n")
        self._drop(final)
        fsync_folder(self._folder)

    def _by_age(self) -> list[Path]:
        return sorted(filter(_is_ours, self._folder.glob("step-*")), key=_step, reverse=True)

    def _drop(self, newest: Path) -> None:
        # Later ones are damaged: the run went back to one before them. They count for nothing, and are replaced when their step comes.
        paths = [path for path in self._by_age() if _step(path) <= _step(newest)]
        kept = set(paths[: self._keep])
        if self._best:
            scored = [(score, path) for path in paths if (score := _score(path, self._best_by)) is not None]
            kept |= {path for _, path in sorted(scored, reverse=True)[: self._best]}
        if self._every:
            kept |= {path for path in paths if _step(path) % self._every == 0}
        for path in paths:
            if path not in kept:
                shutil.rmtree(path)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a rank has written: its files, and by group and name the dtype, shape, start and length of each range."""

    files: dict[str, dict[str, Any]]
    ranges: dict[str, dict[str, list[Any]]]


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the checkpoint at `path`; the hashes of its files are `CheckpointFolder.newest`'s business.

    Raises:
        DataError: when it is damaged or of a version that is not read.
    """
    state = read_state(path)
    try:
        position, pinned, scores = Position(**state["position"]), state["pinned"], dict(state.get("scores", {}))
        if state["version"] == 1:
            model, average, optimizer = read_first_version(path)
        else:
            opened = RunCheckpoint(path, state)
            model, average = opened.tensors("model") or {}, opened.tensors("ema")
            optimizer = _optimizer(state["optimizer"], opened.tensors("optimizer") or {})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged {STATE_NAME} ({type(error).__name__}: {error})") from None
    return Checkpoint(position, model, average, optimizer, pinned, scores)


def _optimizer(tree: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    moments: dict[str, dict[str, Any]] = {}
    for name, stored in tensors.items():
        parameter, _, key = name.rpartition(":")
        moments.setdefault(parameter, {})[key] = stored
    for parameter, state in tree["state"].items():
        moments.setdefault(parameter, {}).update({key: from_plain(value) for key, value in state.items()})
    return {"groups": [{key: from_plain(value) for key, value in group.items()} for group in tree["groups"]], "state": moments}


def _write_part(folder: Path, snapshot: Snapshot, meeting: Meeting) -> Report:
    files, ranges = {}, {}
    if not folder.is_dir():
        what = "rank 0's folder is not here; run.folder must lie on a file system that all ranks share"
        raise FileNotFoundError(errno.ENOENT, what, str(folder))
    for group, pieces in snapshot.pieces.items():
        name = file_name(group, meeting.rank + 1, meeting.world_size)
        written = write_tensor_file(folder / name, {key: piece.values for key, piece in pieces.items() if piece.values.numel()})
        files[name] = dataclasses.asdict(written)
        ranges[group] = {key: piece.facts for key, piece in pieces.items()}
    return Report(files, ranges)


def _index(reports: list[Report]) -> dict[str, Any]:
    """Returns the index of what all ranks have written."""
    tensors: dict[str, dict[str, Any]] = {group: {} for group in reports[0].ranges}
    for part, report in enumerate(reports, start=1):
        for group, ranges in report.ranges.items():
            for name, (dtype, shape, start, numel) in ranges.items():
                entry = tensors[group].setdefault(name, {"dtype": dtype, "shape": shape, "ranges": []})
                assert (entry["dtype"], entry["shape"]) == (dtype, shape), f"{name}: not the same tensor on all ranks"
                entry["ranges"] += [[part, start, numel]] if numel else []
    files = {name: facts for report in reports for name, facts in report.files.items()}
    return {"world_size": len(reports), "files": files, "tensors": tensors}


def _fault(path: Path, ranks: Ranks) -> str:
    """Returns what is wrong with a checkpoint, as far as this rank looks, or nothing."""
    try:
        state = read_state(path)
        if state["version"] == 1:
            names = sorted(set(state["files"]) & set(FILES_1))
        else:
            read_index(state, path)
            names = sorted(state["files"])
        fault = stray_fault(path, state["files"]) or file_fault(path, state["files"], names[ranks.rank :: ranks.world_size])
    except DataError as error:
        return str(error)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: damaged ({type(error).__name__}: {error})"
    return f"{path}: {fault}" if fault else ""


def _is_ours(path: Path) -> bool:
    """Whether a name is a checkpoint's, and not that of a copy that somebody has made."""
    return path.name.removeprefix("step-").isdecimal()


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _score(path: Path, evaluator: str) -> float | None:
    try:
        value = json.loads((path / STATE_NAME).read_bytes())["scores"].get(evaluator)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) else None
