"""What is known of each file of the cache: its SHA-256, where it came from, and which copies were checked.

A receipt `<file>.receipt.json` lies in the cache beside the file's place. It saves hashing gigabytes at every start, for a copy whose
size and time of change are the recorded ones; and for a file whose publisher gives no hash it holds the first download's, which
every later one must have (trust on first use).
"""

import contextlib
import dataclasses
import json
import time
from pathlib import Path

from ..cli.errors import DataError
from ..datasets.atomic import sha256_file, write_json
from .file_checks import check_weight_file
from .registry import Source


@dataclasses.dataclass(kw_only=True)
class Receipt:
    """The record of one file, by its name in the cache."""

    path: Path
    sha256: str = ""
    source: str = ""
    """Where the first copy came from, in words."""
    date: str = ""
    """Of the first check."""
    checked: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """Path of a copy → its size and time of change (ns) when it was hashed."""

    def write(self) -> None:
        """Writes it; in a cache that cannot be written the file is only hashed again next time."""
        tree = {key: value for key, value in dataclasses.asdict(self).items() if key != "path"}
        with contextlib.suppress(OSError):
            write_json(self.path, {"format": "bamboo-receipt", "version": 1, **tree})


def read_receipt(file: Path) -> Receipt:
    """Returns the receipt of the cache's `file`; an empty one where there is none.

    Raises:
        DataError: when it is damaged: the hash it held is not silently given up.
    """
    path = file.with_name(f"{file.name}.receipt.json")
    try:
        tree = json.loads(path.read_bytes())
        return Receipt(path=path, **{key: tree[key] for key in ("sha256", "source", "date", "checked")})
    except FileNotFoundError:
        return Receipt(path=path)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it to trust the next copy of {file.name} anew") from None


def expected_hash(source: Source, receipt: Receipt) -> str:
    """Returns the SHA-256 (or its first digits) that the file must have; empty where nobody knows yet.

    The registry has the say: a receipt counts as far as it agrees with it, and adds the digits that the registry lacks.
    """
    pin = source.sha256 or ""
    return receipt.sha256 if receipt.sha256 and receipt.sha256.startswith(pin) else pin


def verify(copy: Path, source: Source, receipt: Receipt, came_from: str, digest: str = "") -> str:
    """Returns the SHA-256 of a copy of the file, after checking it against the registry and the receipt, and records it.

    Args:
        copy: the file, wherever it lies.
        digest: its SHA-256, where the caller has just computed it, and has looked whether the file is a whole checkpoint.

    Raises:
        DataError: when its size or hash is another than the registry's or the first copy's, or it is no whole checkpoint; nothing is
            recorded then.
    """
    stat = copy.stat()
    seen = [stat.st_size, stat.st_mtime_ns]
    if receipt.checked.get(str(copy)) != seen or not receipt.sha256.startswith(source.sha256 or ""):
        if source.num_bytes not in (None, stat.st_size):
            raise DataError(f"{copy}: has {stat.st_size:,} bytes, the registry says {source.num_bytes:,}; remove it and fetch again")
        is_checked = bool(digest)
        digest = digest or sha256_file(copy)
        expected = expected_hash(source, receipt)
        if not digest.startswith(expected):
            raise DataError(f"{copy}: sha256 is {digest}, not {expected} {said_by(source, receipt)}; to fetch it again remove {copy}")
        if not is_checked:
            _check_kind(copy)
        if digest != receipt.sha256:  # the first copy, or the registry has been pinned to another one since
            receipt.sha256, receipt.source, receipt.date, receipt.checked = digest, came_from, time.strftime("%Y-%m-%d"), {}
        receipt.checked[str(copy)] = seen
        receipt.write()
    return receipt.sha256


def said_by(source: Source, receipt: Receipt) -> str:
    """Returns who says what hash the file must have, and what to do if that is wrong; empty where nobody knows it."""
    expected = expected_hash(source, receipt)
    if expected == (source.sha256 or ""):
        return "as the registry says" if expected else ""
    return f"as the first copy had ({receipt.date}, {receipt.source}); to accept the new file remove {receipt.path}"


def _check_kind(copy: Path) -> None:
    try:
        check_weight_file(copy)
    except DataError as error:
        raise DataError(f"{error}; remove the file and fetch again") from None
