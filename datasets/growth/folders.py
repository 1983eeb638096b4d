"""The shard folders that a snapshot was made over, found again on this machine."""

from collections.abc import Sequence
from pathlib import Path

from ...cli.errors import UserError
from ..manifest import read_manifest
from ..remote.locations import is_remote, local_path, shown
from .snapshot import SnapshotSource, TrainingFolder


def local_folders(entries: Sequence[SnapshotSource | TrainingFolder], purpose: str) -> list[Path]:
    """Returns the paths of shard folders, which hold what they held when the snapshot was made.

    Args:
        purpose: what reads them, `--bucket`, for the errors.

    Raises:
        UserError: when one is remote, missing, or was packed anew since.
        DataError: when its `dataset.json` is damaged.
    """
    return [_local_folder(entry, purpose) for entry in entries]


def _local_folder(entry: SnapshotSource | TrainingFolder, purpose: str) -> Path:
    if is_remote(entry.location):
        remedy = "copy the folder to this machine, and grow over the copy"
        raise UserError(f"{purpose}: {shown(entry.location)} is remote, and every tar of it must be read from end to end; {remedy}")
    folder = local_path(entry.location)
    if read_manifest(folder).data_hash != entry.data_hash:
        raise UserError(f"{purpose}: {folder} holds other data than when the snapshot was made; make a new snapshot with: bamboo grow")
    return folder
