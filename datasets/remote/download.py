"""One file over HTTP, whole and right or not at all: resumed after a cut, checked by size and SHA-256, renamed when it is complete.

While it is under way the bytes are in `NAME.part`, and `NAME.part.json` says of which version of the file they are (address, ETag or
Last-Modified). A later attempt, also of another process, asks for the rest under the condition that the version is still the same.
"""

import contextlib
import dataclasses
import email.utils
import hashlib
import http.client
import json
import os
import random
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ...cli.errors import DataError, UserError
from ...cli.progress import Progress
from ..atomic import fsync_folder, write_json

_CHUNK_BYTES = 1 << 18
_ADVANCE_BYTES = 1 << 20  # an attempt that gains so much is no failure in a row
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_html(head: bytes) -> bool:
    """Returns whether a file that begins so is a web page: a login, an error, a quota notice."""
    return head.lstrip()[:16].lower().startswith(_HTML)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download waits, and how often it tries."""

    stall_s: float = 30.0
    """Seconds without a byte, after which the connection is given up."""
    attempts: int = 5
    """Failures in a row."""
    first_wait_s: float = 1.0
    """Before the second attempt; doubled for each further one."""
    longest_wait_s: float = 120.0
    """Upper bound of a wait; a server that asks for more (Retry-After) ends the download."""
    sleep: Callable[[float], None] = time.sleep
    """Replaced in tests."""


class _TransientError(Exception):
    """Trouble that another attempt may not have."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    said_by: str = "",
    num_bytes: int | None = None,
    patience: Patience | None = None,
    check: Callable[[Path], object] = lambda path: None,
    show: bool = True,
) -> str:
    """Downloads `url` to `target` and returns its SHA-256; the caller holds the lock on `target`.

    Args:
        sha256: the hash, or its first digits, that the file must have; empty: not known.
        said_by: who says so, and what to do if that is wrong, for the error.
        num_bytes: the size it must have; None: not known.
        check: raises DataError when the complete file is not what it should be.
        show: whether to show the progress.

    Raises:
        DataError: when the server has no such file or another one, keeps failing, or says nothing of the length of a file that nothing
            is known of; what is downloaded so far is kept, unless it is wrong.
        UserError: when the disk has no room for it.
        OSError: naming the file, when it cannot be written.
    """
    patience = patience or Patience()
    part = _Part(target)
    failures, longest = 0, part.size
    while True:
        try:
            _transfer(url, part, sha256, num_bytes, patience, show)
            return _finish(url, part, target, sha256, said_by, check)
        except _TransientError as trouble:
            # Only bytes beyond the most there ever were are progress: what was thrown away and fetched again is none.
            failures = 1 if part.size >= longest + _ADVANCE_BYTES else failures + 1
            longest = max(longest, part.size)
            if failures >= patience.attempts:
                kept = f"; {part.size:,} bytes are kept, run again to go on" if part.size else ""
                raise DataError(f"{url}: {trouble} (attempt {failures} of {patience.attempts}){kept}") from None
            wait_s = trouble.wait_s if trouble.wait_s is not None else patience.first_wait_s * 2 ** (failures - 1)
            if trouble.wait_s is not None and wait_s > patience.longest_wait_s:
                raise DataError(f"{url}: {trouble}, and asks to wait {wait_s:.0f} s; try again later") from None
            patience.sleep(min(wait_s, patience.longest_wait_s) * random.uniform(1.0, 1.1))


class _Part:
    """The unfinished file and the note beside it."""

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

    def version(self, url: str) -> dict[str, Any] | None:
        """Returns the note on the bytes so far; None when there are none, or they are of another address."""
        try:
            note = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) and note.get("url") == url and self.size else None

    def discard(self) -> None:
        """Removes both."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def open(self, offset: int, note: dict[str, Any]) -> IO[bytes]:
        """Opens the file to go on at `offset`, where it ends (0: anew), with the hash of what it holds; unbuffered."""
        self.was_resumed, self.digest = offset > 0, hashlib.sha256()
        if not offset:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
            write_json(self._note, note)
            return self.path.open("ab", buffering=0)
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                self.digest.update(chunk)
        return self.path.open("ab", buffering=0)

    def close(self, target: Path) -> None:
        """Makes the complete file `target`, durably."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)
        fsync_folder(target.parent)


def _transfer(url: str, part: _Part, sha256: str, num_bytes: int | None, patience: Patience, show: bool) -> None:
    """Fetches what is missing; returns when the file is complete as far as server and registry say."""
    note = part.version(url)
    resumable = note is not None and bool(note.get("validator") or len(sha256) == 64)
    offset = part.size if resumable else 0
    validator = note["validator"] if note is not None and offset else ""
    if note is not None and offset and note.get("total") == offset:  # killed between the last byte and the rename
        part.open(offset, note).close()
        return
    with _open(url, offset, validator, part, patience) as response:
        start, total = _extent(response, offset)
        version = _validator(response)
        if start and total is None and note is not None:
            total = note.get("total")
        if start != offset and start:
            part.discard()
            raise _TransientError(f"the server goes on at byte {start:,} instead of {offset:,}")
        if start and (version != validator or (note is not None and note.get("total") not in (None, total))):
            part.discard()
            raise _TransientError("the file changed on the server; starting over")
        _check_announced(url, response, total, num_bytes, sha256)
        _check_space(part.path, total, start)
        with part.open(start, {"url": url, "validator": version, "total": total}) as file:
            _stream(response, file, part, total, patience, show)
    if total is not None and part.size != total:
        raise _TransientError(f"the connection was cut after {part.size:,} of {total:,} bytes")
    if num_bytes is not None and part.size != num_bytes:
        size = part.size
        part.discard()
        raise DataError(f"{url}: gave {size:,} bytes, the registry says {num_bytes:,}")


def _open(url: str, offset: int, validator: str, part: _Part, patience: Patience) -> http.client.HTTPResponse:
    headers = {"User-Agent": "bamboo-vision", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if offset and validator:
        headers["If-Range"] = validator
    try:
        opener = urllib.request.build_opener(_Redirects)
        response: http.client.HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=patience.stall_s)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            part.discard()
            raise _TransientError("the file is shorter than what was downloaded of it; starting over") from None
        if error.code in _RETRIED:
            raise _TransientError(f"HTTP {error.code} {error.reason}", _retry_after(error.headers.get("Retry-After"))) from None
        raise DataError(f"{url}: HTTP {error.code} {error.reason}") from None
    except TimeoutError:
        raise _TransientError(f"no answer for {patience.stall_s:g} s") from None
    except urllib.error.URLError as error:
        raise _TransientError(f"cannot be reached: {error.reason}") from None
    except (http.client.HTTPException, OSError) as error:  # OSError: broken TLS, no route, …: nothing here is of the disk
        raise _TransientError(f"no proper answer: {type(error).__name__}: {error}") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        """Returns the request to the new address; raises DataError when it is no longer encrypted."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DataError(f"{req.full_url}: redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _extent(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """Returns where the answer's bytes begin, and the size of the whole file (None: not said)."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        return 0, int(length) if length.isdecimal() else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    stretch, _, whole = rest.partition("/")
    first = stretch.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise _TransientError("the server answers with a range and does not say which")
    return int(first), int(whole) if whole.isdecimal() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """Returns what If-Range may carry: a strong ETag, else the time of change; empty: neither is given."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _retry_after(value: str | None) -> float | None:
    """Returns the seconds that a Retry-After header asks for; it holds a number or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _check_announced(url: str, response: http.client.HTTPResponse, total: int | None, num_bytes: int | None, sha256: str) -> None:
    """Refuses what the headers already show to be the wrong thing."""
    kind = response.headers.get_content_type() if response.headers.get("Content-Type") else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise DataError(f"{url}: answers with a web page, not a file (a login, a quota notice, a moved file?)")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DataError(f"{url}: answers with {response.headers['Content-Encoding']}-encoded bytes, which were not asked for")
    if None not in (num_bytes, total) and total != num_bytes:
        raise DataError(f"{url}: has {total:,} bytes, the registry says {num_bytes:,}")
    if total is None and num_bytes is None and not sha256 and not response.chunked:
        raise DataError(f"{url}: does not say how long the file is, so a cut would not be seen; give its sha256 or num_bytes in a registry")


def _check_space(path: Path, total: int | None, start: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    needed = 0 if total is None else total - start
    if needed > free:
        raise UserError(f"{path.parent}: {needed:,} bytes are to be written, {free:,} are free; make room, or set cache (BAMBOO_CACHE)")


def _stream(response: http.client.HTTPResponse, file: IO[bytes], part: _Part, total: int | None, patience: Patience, show: bool) -> None:
    done = part.size
    with _megabytes(done, total, part.path.name.removesuffix(".part"), show) as advance:
        while True:
            try:
                chunk = response.read1(_CHUNK_BYTES)
            except TimeoutError:
                raise _TransientError(f"no byte for {patience.stall_s:g} s") from None
            except (http.client.HTTPException, OSError) as error:
                raise _TransientError(f"the connection broke ({type(error).__name__}: {error})") from None
            if not chunk:
                return
            if not done and is_html(chunk):
                part.discard()
                raise DataError(f"{response.url}: answers with a web page, not a file (a login, a quota notice, a moved file?)")
            _write_all(file, chunk, part.path)
            part.digest.update(chunk)
            done += len(chunk)
            advance(done)


@contextlib.contextmanager
def _megabytes(done: int, total: int | None, what: str, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the bytes so far and shows them as whole megabytes."""
    shown = done // 10**6
    with Progress(-(-(total or 0) // 10**6), what, "MB", enabled=show) as progress:
        progress.resume(shown)

        def advance(count: int) -> None:
            nonlocal shown
            if count // 10**6 > shown:
                progress.advance(count // 10**6 - shown)
                shown = count // 10**6

        yield advance


def _write_all(file: IO[bytes], chunk: bytes, path: Path) -> None:
    view = memoryview(chunk)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        error.filename = error.filename or str(path)  # write() knows only a descriptor
        raise


def _finish(url: str, part: _Part, target: Path, sha256: str, said_by: str, check: Callable[[Path], object]) -> str:
    digest = part.digest.hexdigest()
    if not digest.startswith(sha256):
        may_be_spliced = part.was_resumed and not part.was_mistaken
        part.was_mistaken = True
        part.discard()
        if may_be_spliced:
            raise _TransientError("what was downloaded in several pieces has another sha256 than it should; starting over")
        raise DataError(f"{url}: sha256 is {digest}, it should be {' '.join([sha256, said_by]).strip()}; nothing of it was kept")
    try:
        check(part.path)
    except DataError as error:
        part.discard()
        raise DataError(f"{url}: gave a wrong file: {error}; nothing of it was kept") from None
    part.close(target)
    return digest
