"""Files over http and https: ranges, conditions, redirects, Retry-After."""

import contextlib
import email.utils
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from ...cli.errors import DataError, UserError
from .locations import HTTP, check_address, redacted, scheme_of, shown
from .transport import Opened, Patience, StaleError, TransientError

_MOST_DIGITS = 18  # of a number of bytes in a header
_RETRIED = frozenset({408, 425, 429})
_LASTING = frozenset({501, 505})  # not implemented, no such version of HTTP


def is_retried(status: int) -> bool:
    """Returns whether another attempt may not meet this status code: 408, 425, 429, and 5xx (also a proxy's own) but 501 and 505."""
    return status in _RETRIED or (status >= 500 and status not in _LASTING)


@contextlib.contextmanager
def open_http(url: str, offset: int, version: str, patience: Patience) -> Iterator[Opened]:
    """Opens a file over HTTP, as `Transport` says."""
    check_address(url)
    with _respond(url, offset, version, patience) as response:
        _check_announced(response)
        start, total = _extent(response, offset)

        def read(count: int) -> bytes:
            try:
                return response.read1(count)
            except TimeoutError:
                raise TransientError(f"no byte for {patience.stall_s:g} s") from None
            except (http.client.HTTPException, OSError) as error:
                raise TransientError(f"the connection broke ({type(error).__name__}: {redacted(str(error))})") from None

        yield Opened(read=read, start=start, total=total, version=_validator(response), marks_its_end=bool(response.chunked))


def _respond(url: str, offset: int, validator: str, patience: Patience) -> http.client.HTTPResponse:
    headers = {"User-Agent": "bamboo-vision", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    if offset and validator:
        headers["If-Range"] = validator
    try:
        opener = urllib.request.build_opener(Redirects)
        response: http.client.HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=patience.stall_s)
        return response
    except (http.client.InvalidURL, ValueError):  # whose messages repeat the address
        raise UserError(f"{shown(url)}: is no valid address (a space in it? write %20)") from None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise StaleError("the file is shorter than what was downloaded of it; starting over") from None
        if is_retried(error.code):
            raise TransientError(f"HTTP {error.code} {error.reason}", retry_after(error.headers.get("Retry-After"))) from None
        raise DataError(f"{shown(url)}: HTTP {error.code} {redacted(str(error.reason))}") from None
    except TimeoutError:
        raise TransientError(f"no answer for {patience.stall_s:g} s") from None
    except urllib.error.URLError as error:
        raise TransientError(f"cannot be reached: {redacted(str(error.reason))}") from None
    except (http.client.HTTPException, OSError) as error:  # OSError: broken TLS, no route, …: nothing here is of the disk
        raise TransientError(f"no proper answer: {type(error).__name__}: {redacted(str(error))}") from None


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but not from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        """Returns the request to the new address; raises DataError when that is no longer encrypted, or of another scheme."""
        if scheme_of(newurl) not in HTTP:
            raise DataError(f"{shown(req.full_url)}: redirects to {shown(newurl)}, which is neither http nor https")
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DataError(f"{shown(req.full_url)}: redirects to {shown(newurl)}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _extent(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """Returns where the answer's bytes begin, and the size of the whole file (None: not said)."""
    length = response.headers.get("Content-Length", "")
    if response.status != 206:
        return 0, _bytes(length)
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    stretch, _, whole = rest.partition("/")
    first = stretch.partition("-")[0]
    start = _bytes(first)
    if unit != "bytes" or start is None:
        raise TransientError("the server answers with a range and does not say which")
    return start, _bytes(whole)


def _bytes(number: str) -> int | None:
    """Returns a number of bytes in a header; None where there is none, or one that no file has."""
    return int(number) if number.isdecimal() and len(number) <= _MOST_DIGITS else None


def _validator(response: http.client.HTTPResponse) -> str:
    """Returns what If-Range may carry: a strong ETag, else the time of change; empty: neither is given."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def retry_after(value: str | None) -> float | None:
    """Returns the seconds that a Retry-After header asks for; it holds a number or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _check_announced(response: http.client.HTTPResponse) -> None:
    """Refuses what the headers already show to be the wrong thing."""
    kind = response.headers.get_content_type() if response.headers.get("Content-Type") else ""
    if kind in ("text/html", "application/xhtml+xml"):
        raise DataError(f"{shown(response.url)}: answers with a web page, not a file (a login, a quota notice, a moved file?)")
    if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise DataError(f"{shown(response.url)}: answers with {coding}-encoded bytes, which were not asked for")
