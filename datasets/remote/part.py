"""The unfinished file of a download, and the note beside it that says of which version its bytes are."""

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any

from ..atomic import fsync_folder, write_json
from .locations import shown

_CHUNK_BYTES = 1 << 18


class Part:
    """`NAME.part` and `NAME.part.json`; they outlive the process, so that another one may go on."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        self.digest = hashlib.sha256()
        self.was_resumed = False
        self.was_mistaken = False
        """Whether its bytes had another hash than they should once already."""

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def note(self, url: str) -> dict[str, Any] | None:
        """Returns {"url", "validator", "total"} of the bytes so far; None when there are none, of another address, or the note is damaged.

        Addresses are noted as they are shown, without a signature, which is another one each time.
        """
        try:
            note = json.loads(self._note.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        known = isinstance(note, dict) and note.get("url") == shown(url) and isinstance(note.get("validator"), str)
        return note if known and isinstance(note.get("total"), int | None) and self.size else None

    def total(self, url: str) -> int | None:
        """Returns the size that the server gave the whole file; None where it gave none."""
        note = self.note(url)
        return None if note is None else note["total"]

    def discard(self) -> None:
        """Removes both."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def open(self, offset: int, url: str, version: str, total: int | None) -> IO[bytes]:
        """Opens the file to go on at `offset`, where it ends (0: anew), with the hash of what it holds; unbuffered."""
        self.was_resumed, self.digest = offset > 0, hashlib.sha256()
        if not offset:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            write_json(self._note, {"url": shown(url), "validator": version, "total": total})
            return self.path.open("ab", buffering=0)
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                self.digest.update(chunk)
        return self.path.open("ab", buffering=0)

    def append(self, file: IO[bytes], chunk: bytes) -> None:
        """Writes all of a chunk to the opened file and into the hash; an OSError names the file."""
        view = memoryview(chunk)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            error.filename = error.filename or str(self.path)  # write() knows only a descriptor
            raise
        self.digest.update(chunk)

    def become(self, target: Path) -> None:
        """Makes the complete file `target`, durably."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)
        fsync_folder(target.parent)
