"""Fetches a set through torchvision where its source lives; where it does not, the error is the recipe."""

import contextlib
import fcntl
import http.client
import os
import shutil
import ssl
import tarfile
import urllib.error
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...cli.errors import UserError
from ..atomic import fsync_folder
from .facts import DownstreamSet, describe
from .layouts import layouts
from .matlab import require_scipy
from .sets import find_layout, open_both_described

TORCHVISION = MappingProxyType(
    {
        "cifar10": "CIFAR10",
        "cifar100": "CIFAR100",
        "food": "Food101",
        "pet": "OxfordIIITPet",
        "flower": "Flowers102",
        "dtd": "DTD",
        "caltech": "Caltech101",
        "aircraft": "FGVCAircraft",
    }
)
"""Set → torchvision's class that downloads it."""

_IN_MATLAB_FILES = ("flower",)  # their readers, torchvision's too, need scipy

# What a cut line, a refused connection, a wrong checksum and half an archive raise; torchvision reports checksums as RuntimeError.
_FAILURES = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    ssl.SSLError,
    TimeoutError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
)


def download(name: str, root: Path) -> Path:
    """Downloads a set to `root` in torchvision's layout and returns its folder; one that is there already is only checked.

    It is fetched into a hidden folder in `root`, both splits are opened, and only then is it moved to its place; the archives are
    not kept. An interrupted download begins anew, in the same hidden folder.

    Raises:
        UserError: for a set that has no live source (with the recipe), when a package that reads it is not installed, when the network
            fails, when its place is taken, or when another process is downloading it to the same root.
        DataError: when what came is not the official set.
    """
    described = describe(name)
    if name not in TORCHVISION:
        raise UserError(f"{name}: cannot be downloaded ({described.source}): {described.recipe}")
    present = _present(described, root)
    if present is not None:
        return present
    if name in _IN_MATLAB_FILES:
        require_scipy()
    root.mkdir(parents=True, exist_ok=True)
    with _working_folder(root, name) as temporary:
        present = _present(described, root)  # another process may have ended meanwhile
        if present is not None:
            return present
        _fetch(described, temporary)
        open_both_described(described, temporary)
        folders = [entry for entry in temporary.iterdir() if entry.is_dir()]
        for folder in folders:
            if (root / folder.name).exists():
                raise UserError(f"{root / folder.name}: is there, but is not the whole of {name}; move it away, or give another folder")
        os.sync()
        for folder in folders:
            folder.rename(root / folder.name)
    fsync_folder(root)
    return find_layout(described, root)[1]


def _present(described: DownstreamSet, root: Path) -> Path | None:
    """Returns the folder of the set below `root` where it is there and whole; raises DataError where it is not whole."""
    place = layouts(described)[0].find(root)  # the first is torchvision's
    if place is not None:
        open_both_described(described, root)
    return place


@contextlib.contextmanager
def _working_folder(root: Path, name: str) -> Iterator[Path]:
    """Yields an empty folder in `root` that no other process has; what a killed process left in it is cleared before, the folder after."""
    folder, path = root / f".download-{name}", root / f".download-{name}.lock"
    taken = UserError(f"{root}: another process is downloading {name} there; wait for it, or give another folder")
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        if not os.fstat(lock.fileno()).st_nlink:  # its owner removed it between our opening and locking it: others lock a new file
            raise taken
        try:
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)


def _fetch(described: DownstreamSet, folder: Path) -> None:
    import torchvision.datasets

    name = TORCHVISION[described.name]
    fetch: Any = getattr(torchvision.datasets, name)
    try:
        fetch(str(folder), download=True)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{described.name}: torchvision.datasets.{name} could not fetch it: {reason}; try again later, or take a copy of the archive "
            f"from elsewhere and look at it with: bamboo sets check {described.name} DIR"
        ) from None
