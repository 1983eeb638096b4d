"""Files of object stores and of whatever else fsspec reads: `s3://`, `gs://`, …

Credentials come from the client's usual environment. A file is read in stretches, a request each, so a cut costs one stretch; the
client's own retries are turned off where they can be, so that one rule says how often is tried and how long is waited.
"""

import contextlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from typing import Any

from ...cli.errors import BambooError, DataError, UserError, missing_extra
from .http_transport import is_retried, retry_after
from .locations import check_address, credentials_remedy, redacted, scheme_of, shown
from .transport import Opened, Patience, StaleError, TransientError

_STRETCH_BYTES = 8 << 20
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ValueError, TypeError, ImportError)
# Of botocore and google-auth, which are optional.
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"})
_ENVIRONMENT = ("AWS_", "GOOGLE_", "GCSFS_", "STORAGE_EMULATOR_", "FSSPEC_")

_mine = threading.local()
"""This thread's file systems: fsspec's cannot be used after a fork, and sharing one between threads saves nothing."""


@contextlib.contextmanager
def open_fsspec(url: str, offset: int, version: str, patience: Patience) -> Iterator[Opened]:
    """Opens a file through fsspec, as `Transport` says; raises UserError where the client of that scheme is not installed."""
    check_address(url)
    with _in_our_words(url):
        files = _file_system(scheme_of(url), patience)
        about = files.info(url)
    size = about.get("size")
    if about.get("type") == "directory":
        raise DataError(f"{shown(url)}: is a folder")
    now = _version(about)
    start = offset if version == now and size is not None else 0
    if size is not None and start > size:
        raise StaleError("the file is shorter than what was downloaded of it; starting over")
    position, held = start, memoryview(b"")

    def read(count: int) -> bytes:
        nonlocal position, held
        if not held:
            held = memoryview(_stretch(files, url, position, size))
            position += len(held)
        chunk, held = held[:count], held[count:]
        return bytes(chunk)

    yield Opened(read=read, start=start, total=size, version=now, marks_its_end=True)


def _stretch(files: Any, url: str, position: int, size: int | None) -> bytes:
    """Returns the next bytes of a file, empty at its end."""
    if size is not None and position >= size:
        return b""
    end = position + _STRETCH_BYTES if size is None else min(position + _STRETCH_BYTES, size)
    with _in_our_words(url):
        data: bytes = files.cat_file(url, start=position, end=end)
    if len(data) > end - position:
        raise TransientError(f"{len(data):,} bytes were sent where {end - position:,} were asked for")
    return data


def _version(about: dict[str, Any]) -> str:
    """Returns what fsspec says of a file's version; the clients have no one name for it."""
    for name in ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "updated", "created"):
        if about.get(name):
            return str(about[name])
    return ""


def _file_system(scheme: str, patience: Patience) -> Any:
    """Returns this thread's file system for a scheme, made in the process that uses it."""
    import fsspec

    if getattr(_mine, "owner", None) != os.getpid():
        _mine.owner, _mine.made = os.getpid(), {}
    ready: dict[object, Any] = _mine.made
    # A client reads its environment once; another one (new keys, another endpoint) takes another client.
    environment = frozenset(item for item in os.environ.items() if item[0].startswith(_ENVIRONMENT))
    key = (scheme, patience.stall_s, environment)
    if key not in ready:
        package, extra = _EXTRAS.get(scheme, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            raise missing_extra(package, extra)
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if package == "s3fs":
            limits = {"connect_timeout": patience.stall_s, "read_timeout": patience.stall_s}
            options["config_kwargs"] = {**limits, "retries": {"total_max_attempts": 1}}
        try:
            made = fsspec.filesystem(scheme, **options)
        except ValueError:
            raise UserError(f"{scheme}://: neither http(s), s3, gs nor another scheme that fsspec knows") from None
        if package == "s3fs":
            made.retries = 1
        ready[key] = made
    return ready[key]


@contextlib.contextmanager
def _in_our_words(url: str) -> Iterator[None]:
    """Turns what a client raises into TransientError or DataError."""
    try:
        yield
    except (TransientError, BambooError):
        raise
    except Exception as error:  # noqa: BLE001  each client has its own errors, and those of the libraries below it
        status, headers = _answer(error)
        words = redacted(" ".join(f"{type(error).__name__}: {error}".split()))
        if status == 416:
            raise StaleError("the file is shorter than what was downloaded of it; starting over") from None
        if type(error).__name__ in _NO_CREDENTIALS:
            raise UserError(f"{shown(url)}: no credentials are found; {credentials_remedy(scheme_of(url))}") from None
        refused = status is not None and 400 <= status < 500 and not is_retried(status) and "RequestTimeout" not in _code(error)
        if refused or isinstance(error, _LASTING):
            raise DataError(f"{shown(url)}: {words}") from None
        code = f"HTTP {status}, " if status is not None else ""
        raise TransientError(f"{code}{words}", retry_after(headers.get("retry-after"))) from None


def _answer(error: BaseException) -> tuple[int | None, dict[str, str]]:
    """Returns the HTTP status and headers behind a client's exception, as botocore and gcsfs keep them; (None, {}): there are none."""
    about = _of_botocore(error, "ResponseMetadata") or _of_botocore(error.__cause__, "ResponseMetadata")
    if isinstance(about.get("HTTPStatusCode"), int):
        return about["HTTPStatusCode"], {str(key).lower(): value for key, value in about.get("HTTPHeaders", {}).items()}
    code = getattr(error, "code", None)  # not of the cause: aiohttp gives a cut body a code too
    return (code, {}) if isinstance(code, int) else (None, {})


def _code(error: BaseException) -> str:
    """Returns S3's own name of an error; a slow request, which may be repeated, has the status of a wrong one."""
    return str(_of_botocore(error.__cause__ or error, "Error").get("Code", ""))


def _of_botocore(error: BaseException | None, part: str) -> dict[str, Any]:
    response = getattr(error, "response", None)
    about = response.get(part) if isinstance(response, dict) else None
    return about if isinstance(about, dict) else {}
