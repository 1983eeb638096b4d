"""One file from anywhere, whole and right or not at all: resumed after a cut, checked by size and SHA-256, renamed when it is complete.

While it is under way the bytes are in `NAME.part`, and `NAME.part.json` says of which version of the file they are (address, ETag or
Last-Modified). A later attempt, also of another process, asks for the rest under the condition that the version is still the same.
"""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from ...cli.errors import DataError, UserError
from ...cli.progress import Progress
from .fsspec_transport import open_fsspec
from .http_transport import open_http
from .locations import HTTP, scheme_of, shown
from .part import Part
from .transport import Opened, Patience, StaleError, TransientError, Transport

__all__ = ["NoRoomError", "Patience", "download", "fetch_bytes", "is_html"]

T = TypeVar("T")

_CHUNK_BYTES = 1 << 18
_MOST_BYTES = 10**9  # of a file that is read into memory
_ADVANCE_BYTES = 1 << 20  # an attempt that gains so much is no failure in a row
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml")


class NoRoomError(UserError):
    """The disk has less room than a file needs; nothing of the file was written yet."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


def is_html(head: bytes | bytearray) -> bool:
    """Returns whether a file that begins so is a web page: a login, an error, a quota notice."""
    return head.lstrip()[:16].lower().startswith(_HTML)


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    said_by: str = "",
    num_bytes: int | None = None,
    size_said_by: str = "the registry",
    most_bytes: int | None = None,
    patience: Patience | None = None,
    check: Callable[[Path], object] = lambda path: None,
    show: bool = True,
) -> str:
    """Downloads `url` (http, https, or a scheme of fsspec) to `target` and returns its SHA-256; the caller holds the lock on `target`.

    Args:
        sha256: the hash, or its first digits, that the file must have; empty: not known.
        said_by: who says so, and what to do if that is wrong, for the error.
        num_bytes: the size it must have; None: not known.
        size_said_by: who says so.
        most_bytes: the size it may have at most, where `num_bytes` is not known; None: any.
        check: raises DataError when the complete file, which has the right hash, is not what it should be.
        show: whether to show the progress.

    Raises:
        DataError: when the server has no such file or another one, keeps failing, sends more than there should be, or says nothing of
            the length of a file that nothing is known of; what is downloaded so far is kept, unless it is wrong. Addresses are shown
            without secrets.
        UserError: when the disk has no room for it (`NoRoomError`), when the address carries a password, or when the client of its
            scheme is not installed.
        OSError: naming the file, when it cannot be written.
    """
    part = Part(target)
    wanted = _Wanted(url, part, sha256, said_by, num_bytes, size_said_by, most_bytes)

    def attempt(patience: Patience) -> str:
        wanted.transfer(patience, show)
        return wanted.finish(target, check)

    return _insist(url, patience or Patience(), attempt, part)


def fetch_bytes(url: str, patience: Patience | None = None) -> bytes:
    """Returns the bytes of a small file, up to a gigabyte, of which nothing is known beforehand; errors as `download`."""

    def attempt(patience: Patience) -> bytes:
        data = bytearray()
        with _transport(url)(url, 0, "", patience) as source:
            _check_most(url, source.total, _MOST_BYTES)
            while chunk := source.read(_CHUNK_BYTES):
                data += chunk
                _check_most(url, len(data), _MOST_BYTES)
        if source.total is not None and len(data) != source.total:
            raise TransientError(f"the connection was cut after {len(data):,} of {source.total:,} bytes")
        if is_html(data):
            raise DataError(f"{shown(url)}: answers with a web page, not a file (a login, a quota notice, a moved file?)")
        return bytes(data)

    return _insist(url, patience or Patience(), attempt, None)


def _check_most(url: str, size: int | None, most: int | None) -> None:
    if size is not None and most is not None and size > most:
        raise DataError(f"{shown(url)}: has {size:,} bytes or more; {most:,} are the most that such a file may have")


def _transport(url: str) -> Transport:
    return open_http if scheme_of(url) in HTTP else open_fsspec


def _insist(url: str, patience: Patience, attempt: Callable[[Patience], T], part: Part | None) -> T:
    """Returns what an attempt returns, after as many as patience allows; `part` is what they leave, which tells progress."""
    failures, longest = 0, part.size if part else 0
    while True:
        try:
            return attempt(patience)
        except TransientError as trouble:
            if part and isinstance(trouble, StaleError):
                part.discard()
            size = part.size if part else 0
            # Only bytes beyond the most there ever were are progress: what was thrown away and fetched again is none.
            failures = 1 if size >= longest + _ADVANCE_BYTES else failures + 1
            longest = max(longest, size)
            if failures >= patience.attempts:
                kept = f"; {size:,} bytes are kept, run again to go on" if size else ""
                raise DataError(f"{shown(url)}: {trouble} (attempt {failures} of {patience.attempts}){kept}") from None
            wait_s = trouble.wait_s if trouble.wait_s is not None else patience.first_wait_s * 2 ** (failures - 1)
            if trouble.wait_s is not None and wait_s > patience.longest_wait_s:
                raise DataError(f"{shown(url)}: {trouble}, and asks to wait {wait_s:.0f} s; try again later") from None
            patience.sleep(min(wait_s, patience.longest_wait_s) * random.uniform(1.0, 1.1))


class _Wanted:
    """A file, what is known of it, and what there is of it."""

    def __init__(self, url: str, part: Part, sha256: str, said_by: str, num_bytes: int | None, size_said_by: str, most: int | None) -> None:
        self.url, self.part, self.sha256, self.said_by = url, part, sha256, said_by
        self.num_bytes, self.size_said_by, self.most_bytes = num_bytes, size_said_by, most

    def transfer(self, patience: Patience, show: bool) -> None:
        """Fetches what is missing; returns when the file is complete as far as server and registry say."""
        part, note = self.part, self.part.note(self.url)
        resumable = note is not None and bool(note.get("validator") or len(self.sha256) == 64)
        offset = part.size if resumable else 0
        if self.num_bytes is not None and offset > self.num_bytes:
            offset = 0
        version = note["validator"] if note is not None and offset else ""
        if note is not None and offset and offset in (note["total"], self.num_bytes):  # killed between the last byte and the rename
            part.open(offset, self.url, version, offset).close()
            return
        with _transport(self.url)(self.url, offset, version, patience) as source:
            total = source.total
            if source.start and total is None and note is not None:
                total = note["total"]
            if source.start != offset and source.start:
                raise StaleError(f"the server goes on at byte {source.start:,} instead of {offset:,}")
            if source.start and (source.version != version or (note is not None and note["total"] not in (None, total))):
                raise StaleError("the file changed on the server; starting over")
            self._check_size(total, source)
            _check_space(part.path, total, source.start)
            with part.open(source.start, self.url, source.version, total) as file:
                self._stream(source, file, total, show)
        if total is not None and part.size != total:
            raise TransientError(f"the connection was cut after {part.size:,} of {total:,} bytes")
        if self.num_bytes is not None and part.size < self.num_bytes:
            raise TransientError(f"the answer ended after {part.size:,} bytes, {self.size_said_by} says {self.num_bytes:,}")

    def _check_size(self, total: int | None, source: Opened) -> None:
        if None not in (self.num_bytes, total) and total != self.num_bytes:
            raise DataError(f"{shown(self.url)}: has {total:,} bytes, {self.size_said_by} says {self.num_bytes:,}")
        _check_most(self.url, total, self.most_bytes)
        if total is None and self.num_bytes is None and not self.sha256 and not source.marks_its_end:
            remedy = "give its sha256 or num_bytes in a registry"
            raise DataError(f"{shown(self.url)}: does not say how long the file is, so a cut would not be seen; {remedy}")

    def _stream(self, source: Opened, file: IO[bytes], total: int | None, show: bool) -> None:
        done = source.start
        bound = min((size for size in (self.num_bytes, total, self.most_bytes) if size is not None), default=None)
        with _megabytes(done, total, self.part.path.name.removesuffix(".part"), show) as advance:
            while chunk := source.read(_CHUNK_BYTES):
                if not done and is_html(chunk):
                    self.part.discard()
                    raise DataError(f"{shown(self.url)}: answers with a web page, not a file (a login, a quota notice, a moved file?)")
                if bound is not None and done + len(chunk) > bound:
                    self.part.discard()
                    raise DataError(f"{shown(self.url)}: sends more than the {bound:,} bytes that there should be; nothing of it was kept")
                self.part.append(file, chunk)
                done += len(chunk)
                advance(done)

    def finish(self, target: Path, check: Callable[[Path], object]) -> str:
        """Checks the complete file, makes it `target` and returns its SHA-256."""
        part, digest = self.part, self.part.digest.hexdigest()
        if not digest.startswith(self.sha256):
            may_be_spliced = part.was_resumed and not part.was_mistaken
            part.was_mistaken = True
            part.discard()
            if may_be_spliced:
                raise TransientError("what was downloaded in several pieces has another sha256 than it should; starting over")
            should = " ".join([self.sha256, self.said_by]).strip()
            raise DataError(f"{shown(self.url)}: sha256 is {digest}, it should be {should}; nothing of it was kept")
        try:
            check(part.path)
        except DataError as error:
            part.discard()
            raise DataError(f"{shown(self.url)}: gave a wrong file: {error}; nothing of it was kept") from None
        part.become(target)
        return digest


def _check_space(path: Path, total: int | None, start: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    needed = 0 if total is None else total - start
    if needed > free:
        what = f"{path.parent}: {needed:,} bytes are to be written, {free:,} are free"
        raise NoRoomError(f"{what}; make room, or set cache (BAMBOO_CACHE)", needed)


@contextlib.contextmanager
def _megabytes(done: int, total: int | None, what: str, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the bytes so far and shows them as whole megabytes."""
    shown_mb = done // 10**6
    with Progress(-(-(total or 0) // 10**6), what, "MB", enabled=show) as progress:
        progress.resume(shown_mb)

        def advance(count: int) -> None:
            nonlocal shown_mb
            if count // 10**6 > shown_mb:
                progress.advance(count // 10**6 - shown_mb)
                shown_mb = count // 10**6

        yield advance
