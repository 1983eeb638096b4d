"""Getting a checkpoint's file: from the cache, from read-only caches, from a mirror, from its sources in their order.

Files lie in `CACHE/zoo/ID/FILE`, those of the Hub in Hugging Face's own cache, which other programs share. One process fetches, under a
lock that the system takes away from a process that dies; the others wait and find the file.
"""

import contextlib
import dataclasses
import errno
import inspect
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from ..cli.errors import BambooError, DataError, UserError, missing_extra
from ..datasets.atomic import atomic_file, fsync_folder, sha256_file
from ..datasets.remote.download import Patience, download
from .file_checks import check_weight_file
from .receipts import expected_hash, read_receipt, said_by, verify
from .registry import Entry, Source

_TRUE = frozenset({"1", "true", "yes", "on"})
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """Where files are looked for, and whether the network may be used."""

    cache: Path
    """Folder of ours; a checkpoint's files lie in zoo/ID/ below it."""
    shared: tuple[Path, ...] = ()
    """Further folders of the same form, read only and searched first."""
    mirror: str = ""
    """Address or folder that holds ID/FILE, tried before the sources."""
    offline: bool = False
    """Never use the network."""
    registry: Path | None = None
    """The user's own registry file."""
    patience: Patience = dataclasses.field(default_factory=Patience)
    """Of downloads."""
    show: bool = True
    """Whether to show progress."""

    def place(self, entry: Entry, file: str) -> Path:
        """Where the cache keeps a file of that entry."""
        return self.cache / "zoo" / entry.id / file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """A checkpoint's file, there and checked."""

    path: Path
    sha256: str
    source: Source
    came_from: str
    """In words."""


def access_from_environment(
    *,
    cache: Path | None = None,
    shared: tuple[Path, ...] | None = None,
    mirror: str | None = None,
    offline: bool = False,
    registry: Path | None = None,
) -> Access:
    """Returns the access that the settings say; what they leave open is taken from the environment.

    BAMBOO_CACHE (else XDG_CACHE_HOME/bamboo, else ~/.cache/bamboo), BAMBOO_SHARED_CACHES (separated by colons), BAMBOO_MIRROR,
    BAMBOO_REGISTRY; BAMBOO_OFFLINE or HF_HUB_OFFLINE at 1 forbid the network whatever the settings say.
    """
    environment = os.environ
    home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bamboo"
    named = [Path(folder) for folder in environment.get("BAMBOO_SHARED_CACHES", "").split(os.pathsep) if folder]
    own = environment.get("BAMBOO_REGISTRY")
    return Access(
        cache=(cache or Path(environment.get("BAMBOO_CACHE") or home)).expanduser().absolute(),
        shared=tuple(named) if shared is None else shared,
        mirror=environment.get("BAMBOO_MIRROR", "") if mirror is None else mirror,
        offline=offline or any(environment.get(name, "").lower() in _TRUE for name in ("BAMBOO_OFFLINE", "HF_HUB_OFFLINE")),
        registry=registry or (Path(own) if own else None),
    )


def copies(entry: Entry, access: Access) -> Iterator[tuple[Source, Path]]:
    """Yields the copies of the entry's files that are on this machine, unchecked: shared caches, ours, Hugging Face's."""
    for name, source in entry.files.items():
        places = [folder / "zoo" / entry.id / name for folder in access.shared] + [access.place(entry, name)]
        yield from ((source, place) for place in places if place.is_file())
    for source in entry.sources:
        if source.hub is not None and (place := _hub_copy(source)) is not None:
            yield source, place


def locate(entry: Entry, access: Access) -> Fetched | None:
    """Returns the entry's file where it is on this machine, after checking it; None where it is not.

    Raises:
        DataError: when the first copy found has another size or hash than it should, or is no whole checkpoint.
    """
    for source, path in copies(entry, access):
        receipt = read_receipt(access.place(entry, source.name))
        digest = verify(path, source, receipt, f"a copy found at {path}")
        return Fetched(path=path, sha256=digest, source=source, came_from=receipt.source)
    return None


def fetch(entry: Entry, access: Access) -> Fetched:
    """Returns the entry's file, fetching it if this machine has none.

    Raises:
        UserError: when it is not here and the network is forbidden; says where to put it.
        DataError: when no source gives it (with the reason of each), or a copy is not what it should be.
        OSError: naming the file, when the cache cannot be written.
    """
    if (found := locate(entry, access)) is not None:
        return found
    if access.offline and not _is_folder(access.mirror):
        raise UserError(_offline_message(entry, access))
    with _lock(access.place(entry, "fetch.lock"), entry.id):
        return locate(entry, access) or _fetch_any(entry, access)


def _fetch_any(entry: Entry, access: Access) -> Fetched:
    attempts = [(f"mirror {access.mirror}", source) for source in entry.files.values()] if access.mirror else []
    attempts += [] if access.offline else [(str(source), source) for source in entry.sources]
    failures = []
    for name, source in attempts:
        try:
            if name.startswith("mirror "):
                return _accept(entry, source, access, _from_mirror(entry, source, access), name)
            return _accept(entry, source, access, _from_source(entry, source, access), name)
        except BambooError as error:
            failures.append(f"{name}: {error}")
    place = access.place(entry, entry.sources[0].name)
    raise DataError("\n  ".join([f"zoo:{entry.id}: no source gives it (by hand: put the file at {place}):", *failures]))


def _accept(entry: Entry, source: Source, access: Access, got: tuple[Path, str], name: str) -> Fetched:
    path, digest = got
    receipt = read_receipt(access.place(entry, source.name))
    digest = verify(path, source, receipt, name, digest)
    return Fetched(path=path, sha256=digest, source=source, came_from=name)


def _from_source(entry: Entry, source: Source, access: Access) -> tuple[Path, str]:
    if source.hub is not None:
        return _from_hub(source), ""
    if source.url is not None:
        return _from_url(source.url, entry, source, access)
    return _from_drive(entry, source, access)


def _from_url(url: str, entry: Entry, source: Source, access: Access) -> tuple[Path, str]:
    target = access.place(entry, source.name)
    receipt = read_receipt(target)
    digest = download(
        url,
        target,
        sha256=expected_hash(source, receipt),
        said_by=said_by(source, receipt),
        num_bytes=source.num_bytes,
        patience=access.patience,
        check=check_weight_file,
        show=access.show,
    )
    return target, digest


def _from_mirror(entry: Entry, source: Source, access: Access) -> tuple[Path, str]:
    """Downloads or copies MIRROR/ID/FILE into the cache."""
    if not _is_folder(access.mirror):
        if not access.mirror.startswith(("http://", "https://")):
            raise UserError(f"mirror={access.mirror}: neither a folder that exists nor an http(s) address")
        return _from_url(f"{access.mirror.rstrip('/')}/{entry.id}/{source.name}", entry, source, access)
    held = Path(access.mirror) / entry.id / source.name
    if not held.is_file():
        raise DataError(f"has no {entry.id}/{source.name}")
    target = access.place(entry, source.name)
    digest = _verify_held(held, source, target)
    with held.open("rb") as original, atomic_file(target) as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
    return target, digest


def _verify_held(held: Path, source: Source, target: Path) -> str:
    """Returns the SHA-256 of a file that is to become `target`; raises DataError when it is no checkpoint, or not the one it should be."""
    check_weight_file(held)
    receipt, size = read_receipt(target), held.stat().st_size
    expected, digest = expected_hash(source, receipt), sha256_file(held)
    if source.num_bytes not in (None, size):
        raise DataError(f"{held}: has {size:,} bytes, the registry says {source.num_bytes:,}")
    if not digest.startswith(expected):
        raise DataError(f"{held}: sha256 is {digest}, not {expected} {said_by(source, receipt)}")
    return digest


def _from_hub(source: Source) -> Path:
    import huggingface_hub  # takes most of a second

    assert source.hub is not None
    try:
        path = Path(huggingface_hub.hf_hub_download(source.hub, source.name, revision=source.revision))
    # the hub's client raises its own errors, its HTTP library's and the system's
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise DataError(_in_words(error)) from None
    return path


def _hub_copy(source: Source) -> Path | None:
    import huggingface_hub  # takes most of a second

    assert source.hub is not None
    found = huggingface_hub.try_to_load_from_cache(source.hub, source.name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _from_drive(entry: Entry, source: Source, access: Access) -> tuple[Path, str]:
    try:
        import gdown
    except ImportError:
        raise missing_extra("gdown", "drive") from None
    target = access.place(entry, source.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.drive")
    try:
        gdown.download(**_drive_options(gdown.download, source, part, access))
    # gdown raises its own errors, its HTTP library's and the system's
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise DataError(_in_words(error)) from None
    try:
        digest = _verify_held(part, source, target)
    except (OSError, DataError):
        part.unlink(missing_ok=True)
        raise
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    fsync_folder(target.parent)
    return target, digest


def _drive_options(call: Callable[..., Any], source: Source, part: Path, access: Access) -> dict[str, Any]:
    """Returns the arguments of gdown's `download`; older versions know no timeout, and wait for ever."""
    patience = {"timeout": access.patience.stall_s, "retries": access.patience.attempts - 1}
    known = inspect.signature(call).parameters
    options = {"id": source.drive, "output": str(part), "quiet": not access.show, "use_cookies": False, "resume": True}
    return {**options, **{name: value for name, value in patience.items() if name in known}}


def _in_words(error: BaseException) -> str:
    """Returns an error of another library in a line, with the first one that it came from."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    causes = [error] if first is error else [error, first]
    return ", from ".join(f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}" for cause in causes)


@contextlib.contextmanager
def _lock(path: Path, id_: str) -> Iterator[None]:
    """Holds the lock; a process that waits says so once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        started = time.monotonic()
        sys.stderr.write(f"zoo:{id_}: another process is fetching it; waiting\n")
        lock.acquire()
        sys.stderr.write(f"zoo:{id_}: waited {time.monotonic() - started:.0f} s\n")
    try:
        yield
    finally:
        lock.release()


def _is_folder(mirror: str) -> bool:
    return bool(mirror) and not mirror.startswith(("http://", "https://")) and Path(mirror).is_dir()


def _offline_message(entry: Entry, access: Access) -> str:
    files = [f"{access.place(entry, name)} (from {source})" for name, source in entry.files.items()]
    return "\n  ".join([f"zoo:{entry.id}: not on this machine, and offline forbids the network; put one of these files there:", *files])
