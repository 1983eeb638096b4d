"""What every pool of labelled images in the house can do, whatever it lies in (shards, folders, a downstream set)."""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..cli.errors import DataError


class CutShortError(DataError):
    """A sample whose bytes end before it does. The damage is this sample's: others of the store may be whole."""


class ImageStore(Protocol):
    """Labelled images by number, 0 ≤ sample < len. Picklable, so that loader workers can be spawned or forked with it."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> npt.NDArray[np.integer]:
        """int32[N] or int64[N] class ids, -1 where there is none; may be read-only."""

    @property
    def class_names(self) -> list[str]:
        """Class names by class id."""

    @property
    def data_hash(self) -> str:
        """Hex SHA-256 identity of images, labels and classes."""

    def load(self, sample: int) -> torch.Tensor:
        """Returns uint8[3, H, W] in [0, 255]; raises UnreadableImageError or DataError."""

    def name(self, sample: int) -> str:
        """Returns the sample's name for messages."""
