"""What a growth step takes in: a shard folder and the features of its samples, checked against each other before anything is written."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError, UserError
from ..atomic import sha256_json
from ..feature_folder import FeatureFolder, read_features, verify_features
from ..shards import Shards
from .codes import MAX_WIDTH, Codes, encode

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")

_ENCODER = ("checkpoint", "preprocessing", "precision")


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """The features of one modality of a shard folder's samples."""

    folder: FeatureFolder
    option: str
    """The option that named them, for messages."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.folder.features.shape[1])

    @property
    def encoder(self) -> dict[str, Any]:
        """What made them, apart from the data."""
        identity = self.folder.manifest["identity"]
        return {name: identity.get(name) for name in _ENCODER}

    @property
    def sha256(self) -> str:
        """Of the features."""
        return str(self.folder.manifest["features_sha256"])

    def codes(self, start: int, stop: int, *, may_lack: bool = False) -> Codes:
        """Returns float16[n, D] the codes of the rows start ≤ i < stop; a row that `may_lack` features is NaN.

        Raises:
            DataError: naming the first row that is not finite, or all zeros.
        """
        codes = encode(np.asarray(self.folder.features[start:stop]))
        bad = np.flatnonzero(~np.isfinite(codes).all(axis=1) | ~codes.any(axis=1))
        if len(bad) and not may_lack:
            row = start + int(bad[0])
            what = "all zeros" if not np.any(self.folder.features[row]) else "not finite, or beyond what a float64's square holds"
            raise DataError(f"{self.option}={self.folder.path}: the features of sample {row} are {what}; compute them again")
        return codes


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """A shard folder with the features that it grows by."""

    location: str
    data_hash: str
    shards: tuple[str, ...]
    shard_counts: npt.NDArray[np.int64]
    shard_bytes: tuple[int, ...]
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    """int32[N] class ids, -1: none."""
    place: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
    """key_hash, offset and size of every sample, as in index.arrow."""
    encoded: dict[Modality, Encoded]
    recaptions: Encoded | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def identity(self) -> str:
        """Hex SHA-256 of all that the result depends on."""
        features = {name: encoded.sha256 for name, encoded in self.encoded.items()}
        return sha256_json([self.data_hash, features, None if self.recaptions is None else self.recaptions.sha256])


def open_inputs(location: str, image: Path | None, text: Path | None, recaptions: Path | None, *, verify: bool = True) -> Inputs:
    """Opens a shard folder and its features.

    Args:
        verify: compare the bytes of the features with their hashes, too.

    Raises:
        UserError: for features of other samples, without which nothing can grow, or of other widths where widths must be equal.
        DataError: when a folder is damaged.
    """
    shards = Shards.open(location)
    options: dict[Modality, Path | None] = {"image": image, "text": text}
    encoded = {name: _open(path, f"--{name}", shards, verify) for name, path in options.items() if path is not None}
    again = None if recaptions is None else _open(recaptions, "--recaptions", shards, verify)
    if len({part.width for part in [*encoded.values(), *([again] if again else [])]}) > 1 and len(encoded) == len(MODALITIES):
        widths = ", ".join(f"{part.option} has {part.width}" for part in [*encoded.values(), *([again] if again else [])])
        raise UserError(f"features of image and text are compared, so they need one width: {widths}")
    if again is not None and again.encoder != encoded["text"].encoder:
        raise UserError(f"--recaptions={recaptions}: made by another encoder than --text={text}; encode both alike")
    index = shards.index
    place = (np.array(index.key_hash), np.array(index.offset), np.array(index.size))
    return Inputs(
        location=location if "://" in location else str(Path(location).resolve()),
        data_hash=shards.data_hash,
        shards=tuple(entry.name for entry in shards.manifest.shards),
        shard_counts=shards.shard_counts,
        shard_bytes=tuple(entry.size_bytes for entry in shards.manifest.shards),
        classes=tuple(shards.class_names),
        labels=np.asarray(shards.labels, np.int32),
        place=place,
        encoded=encoded,
        recaptions=again,
    )


def _open(path: Path, option: str, shards: Shards, verify: bool) -> Encoded:
    folder = read_features(path)
    identity = folder.manifest.get("identity")
    if not isinstance(identity, dict) or folder.features.ndim != 2 or folder.features.dtype.kind != "f":
        raise DataError(f"{option}={path}: its manifest has no identity, or its features are no matrix of floats; make it again")
    if identity.get("data") != shards.data_hash or len(folder.features) != len(shards):
        counts = f"{len(folder.features):,} rows for {len(shards):,} samples"
        raise UserError(f"{option}={path}: features of other data than {shards.folder} ({counts}); make them from that folder")
    if not 1 <= folder.features.shape[1] <= MAX_WIDTH:
        raise UserError(f"{option}={path}: features of width {folder.features.shape[1]}; allowed are 1 to {MAX_WIDTH}")
    if verify:
        verify_features(folder)
    return Encoded(folder, option)
