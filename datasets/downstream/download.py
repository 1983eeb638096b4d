"""Fetches a set through torchvision where its source lives; where it does not, the error is the recipe."""

import http.client
import os
import ssl
import tarfile
import tempfile
import urllib.error
import zipfile
import zlib
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...cli.errors import UserError
from ..atomic import fsync_folder
from .facts import DownstreamSet, describe
from .layouts import layouts
from .sets import find_layout, open_described

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
    not kept. An interrupted download begins anew.

    Raises:
        UserError: for a set that has no live source (with the recipe), when the network fails, or when its place is taken.
        DataError: when what came is not the official set.
    """
    described = describe(name)
    if name not in TORCHVISION:
        raise UserError(f"{name}: cannot be downloaded ({described.source}): {described.recipe}")
    present = _present(described, root)
    if present is not None:
        return present
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".download-{name}-") as temporary:
        _fetch(described, Path(temporary))
        _open_both(described, Path(temporary))
        folders = [entry for entry in Path(temporary).iterdir() if entry.is_dir()]
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
        _open_both(described, root)
    return place


def _open_both(described: DownstreamSet, root: Path) -> None:
    for split in ("train", "test"):
        open_described(described, root, "train" if split == "train" else "test")


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
