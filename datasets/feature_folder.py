"""Feature folders: a backbone's pooled features of a dataset, on disk.

One folder per (checkpoint hash, preprocessing, data hash, precision): `features.npy` (N × D; float32 or float16), `labels.npy` (int64[N]),
and `manifest.json`, written last: a folder without it is unfinished. `bamboo features` computes those of images; those of captions, or of
an encoder of one's own, are laid down by `write_features`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cli.errors import DataError, UserError
from .atomic import atomic_file, sha256_file, sha256_json, write_json

Matrix = npt.NDArray[np.float32] | npt.NDArray[np.float16]

FORMAT, VERSION = "bamboo-features", 1
FEATURES_NAME, LABELS_NAME, MANIFEST_NAME = "features.npy", "labels.npy", "manifest.json"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureFolder:
    """A finished feature folder; `features` is a memory map."""

    path: Path
    features: Matrix
    labels: npt.NDArray[np.int64]
    manifest: dict[str, Any]


def is_finished(folder: Path) -> bool:
    """Whether a folder holds all its features."""
    return (folder / MANIFEST_NAME).exists()


def read_features(folder: Path) -> FeatureFolder:
    """Returns a finished feature folder, whoever made it.

    Raises:
        UserError: when it is none, or unfinished.
        DataError: when its files do not match its manifest.
    """
    if not is_finished(folder):
        raise UserError(f"{folder}: not a finished feature folder; make one with: bamboo features")
    return read_finished(folder, None)


def read_finished(folder: Path, identity: dict[str, Any] | None) -> FeatureFolder:
    """Returns a finished feature folder; `identity` is what it must have been made from, None: anything.

    Raises:
        DataError: when its files do not match its manifest, or it was made from something else.
    """
    try:
        manifest = _manifest(folder / MANIFEST_NAME)
        features = np.lib.format.open_memmap(folder / FEATURES_NAME, mode="r")  # refuses objects, and more values than the file has
        labels = np.array(np.lib.format.open_memmap(folder / LABELS_NAME, mode="r"))
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{folder}: damaged ({' '.join(str(error).split())}); remove it and run again") from None
    if identity is not None and sha256_json(manifest["identity"]) != sha256_json(identity):
        raise DataError(f"{folder}: made from something else than its name says; remove it and run again")
    if features.dtype.kind != "f" or labels.dtype.kind not in "iu":
        raise DataError(f"{folder}: holds features of {features.dtype}, labels of {labels.dtype}; remove it and run again")
    if list(features.shape) != manifest["shape"] or labels.shape != features.shape[:1]:
        raise DataError(f"{folder}: features are {features.shape}, the manifest says {manifest['shape']}; remove it and run again")
    return FeatureFolder(folder, features, labels, manifest)


def _manifest(path: Path) -> dict[str, Any]:
    """Returns what a manifest says, having looked that it says what readers ask it for; ValueError: it does not."""
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict):
        raise ValueError(f"{path.name} is no JSON object")
    for name, kind in (("identity", dict), ("shape", list), ("classes", list), ("features_sha256", str)):
        if not isinstance(manifest.get(name), kind):
            raise ValueError(f"{path.name} has no {name} that is a {kind.__name__}")
    return manifest


def verify_features(folder: FeatureFolder) -> None:
    """Compares the bytes of the features with their hash in the manifest.

    Raises:
        DataError: when they were altered.
    """
    if sha256_file(folder.path / FEATURES_NAME) != folder.manifest.get("features_sha256"):
        raise DataError(f"{folder.path / FEATURES_NAME}: altered since it was made; remove the folder and make it again")


def write_features(
    folder: Path, features_ND: Matrix, labels: npt.NDArray[np.int64], classes: list[str], identity: dict[str, Any], versions: dict[str, str]
) -> None:
    """Writes a feature folder of features that are at hand, as `bamboo features` writes those of images.

    Args:
        identity: what they were made from: `data` is the data hash of the shard folder whose samples they are, `checkpoint`,
            `preprocessing` and `precision` say what encoded them. Folders are compared by it, so it must differ where they do.
    """
    with atomic_file(folder / FEATURES_NAME) as file:
        np.save(file, features_ND)
    finish_features(folder, labels, classes, identity, versions)


def finish_features(
    folder: Path, labels: npt.NDArray[np.int64], classes: list[str], identity: dict[str, Any], versions: dict[str, str]
) -> None:
    """Writes labels.npy, then manifest.json, beside a finished features.npy."""
    features = np.load(folder / FEATURES_NAME, mmap_mode="r", allow_pickle=False)
    with atomic_file(folder / LABELS_NAME) as file:
        np.save(file, np.asarray(labels, np.int64))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity,
        "shape": list(features.shape),
        "dtype": str(features.dtype),
        "classes": classes,
        "features_sha256": sha256_file(folder / FEATURES_NAME),
        "versions": versions,
    }
    write_json(folder / MANIFEST_NAME, manifest)
