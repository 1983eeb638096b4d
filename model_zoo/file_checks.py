"""Whether a file is a whole checkpoint, as far as its own form can tell; asked before a hash of it is believed."""

from pathlib import Path

from .file_kinds import weight_file_kind


def check_weight_file(path: Path) -> None:
    """Raises DataError when the file is no checkpoint or is not whole.

    safetensors and zip archives say in their header or directory where they end; torch's older pickle does not, and is read to the end
    by the weights-only loader, which takes as much memory as the file is long.
    """
    if weight_file_kind(path) == "pickle":
        from .weight_files import read_checkpoint  # torch takes seconds

        read_checkpoint(path)
