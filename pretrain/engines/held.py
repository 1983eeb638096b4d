"""What a rank holds of a tensor, and whose word counts when the tensor is saved."""

import dataclasses
from typing import Literal

import torch

from ...cli.errors import DataError
from ...model_zoo.tensor_files import Stored


@dataclasses.dataclass(frozen=True)
class Held:
    """A range of a tensor's row-major flattening; whole tensors may have any memory format, parts are row-major."""

    values: torch.Tensor
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int = 0
    """Where the range begins in the flattening."""
    by: Literal["rank", "all", "first"] = "all"
    """Who holds these elements: this rank alone, every rank the same ones, or every rank its own whole tensor, of which rank 0's counts."""

    def fill(self, stored: Stored) -> None:
        """Takes up the range from where the tensor is stored, reading no more than that.

        Raises:
            DataError: when that tensor has another shape, or cannot be read.
        """
        if stored.shape != self.shape:
            raise DataError(f"a tensor of shape {list(stored.shape)} where one of {list(self.shape)} belongs")
        self.values.copy_(stored.read(self.start, self.values.numel()).view(self.values.shape))


def whole(tensor: torch.Tensor) -> Held:
    """Returns a tensor that every rank holds, the same on each."""
    return Held(tensor.detach(), tuple(tensor.shape))
