"""The folder a pack writes into: fresh, half-done, finished, or somebody else's."""

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..cli.errors import BambooError, UserError
from .atomic import write_json
from .index import FILE_NAME as INDEX_NAME
from .manifest import FILE_NAME as MANIFEST_NAME
from .manifest import read_manifest
from .pack_plan import PackPlan
from .shard_writer import PARTS_FOLDER

SKIPPED_NAME = "skipped.tsv"

_PLAN_NAME = "plan.json"

State = Literal["fresh", "half-done", "finished"]


@dataclasses.dataclass(frozen=True)
class OutOption:
    """How messages name the folder."""

    option: str = "--out"
    """The option that names it."""
    remedy: str = "use --overwrite to replace it, or another --out"
    """What to do about a folder that holds something else."""


PACK_OUT = OutOption()
"""That of `bamboo shards pack`."""


def state_of(folder: Path, plan: PackPlan, prefix: str, *, overwrite: bool, named: OutOption = PACK_OUT) -> State:
    """Returns what `folder` holds of `plan`; touches nothing.

    `fresh` stands for everything that `writing` may replace: nothing of ours, or anything with `overwrite`.

    Raises:
        UserError: when it holds something else and `overwrite` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{named.option}={folder}: is a file; name a folder")
    started = _started_plan(folder)
    if not (folder / MANIFEST_NAME).exists() and started is not None and started["identity"] == plan.identity:
        return "half-done"
    if overwrite:
        return "fresh"
    if (folder / MANIFEST_NAME).exists():
        _require_finished(folder, plan, named)
        return "finished"
    if started is not None:
        raise UserError(f"{named.option}={folder}: holds an unfinished pack of another plan ({_difference(started, plan)}); {named.remedy}")
    foreign = next(iter([*folder.glob(f"{prefix}-*.tar"), *folder.glob(INDEX_NAME)]), None)
    if foreign is not None:
        raise UserError(f"{named.option}={folder}: holds {foreign.name}, which this pack did not write; {named.remedy}")
    return "fresh"


@contextlib.contextmanager
def writing(folder: Path, plan: PackPlan, prefix: str, state: State, named: OutOption = PACK_OUT) -> Iterator[None]:
    """Holds the folder for one pack: makes or clears it, records the plan, and sweeps up what a killed run left half-written.

    Raises:
        UserError: when another process is packing into it.
        OSError: when it cannot be written to.
    """
    parts = folder / PARTS_FOLDER
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{named.option}={folder}: another process is packing into it; wait for it, or name another folder") from None
        for left in (*folder.glob(".*.tmp"), *parts.glob(".*.tmp")):
            left.unlink(missing_ok=True)
        if state == "fresh":
            _clear(folder, prefix)
            write_json(parts / _PLAN_NAME, {"identity": plan.identity, "options": plan.options, "source": plan.fingerprint})
        yield


def finish(folder: Path) -> None:
    """Removes what only an unfinished pack needs."""
    shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)


def _started_plan(folder: Path) -> dict[str, object] | None:
    path = folder / PARTS_FOLDER / _PLAN_NAME
    if not path.exists():
        return None
    try:
        tree: dict[str, object] = json.loads(path.read_bytes())
    except ValueError:
        return {"identity": "", "options": {}, "source": ""}
    return tree


def _require_finished(folder: Path, plan: PackPlan, named: OutOption) -> None:
    try:
        manifest = read_manifest(folder)
    except BambooError as error:
        raise UserError(f"{named.option}={folder}: {error}; {named.remedy}") from None
    if manifest.made_by.get("plan") != plan.identity:
        raise UserError(f"{named.option}={folder}: holds a dataset packed from other sources or with other options; {named.remedy}")
    for entry in manifest.shards:
        shard = folder / entry.name
        if not shard.exists() or shard.stat().st_size != entry.size_bytes:
            raise UserError(f"{named.option}={folder}: {entry.name} is missing or of another size; {named.remedy}")


def _difference(started: dict[str, object], plan: PackPlan) -> str:
    before = started["options"] if isinstance(started["options"], dict) else {}
    changed = [f"{name} was {before.get(name)}, is {value}" for name, value in plan.options.items() if before.get(name) != value]
    if started["source"] != plan.fingerprint:
        changed.append("the images, labels or classes have changed")
    return "; ".join(changed)


def _clear(folder: Path, prefix: str) -> None:
    """Removes an earlier dataset, its manifest first; other people's files stay."""
    named: list[str] = []
    with contextlib.suppress(BambooError):
        named = [entry.name for entry in read_manifest(folder).shards]
    ours = [folder / MANIFEST_NAME, folder / INDEX_NAME, folder / SKIPPED_NAME]
    shards = {*(folder / Path(name).name for name in named), *folder.glob(f"{prefix}-[0-9]*.tar")}
    for path in (*ours, *shards):
        path.unlink(missing_ok=True)
    for path in (folder / PARTS_FOLDER).iterdir():
        if path.name != "lock":
            path.unlink()
