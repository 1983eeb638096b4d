"""The settings of the loss: objective.*."""

from typing import Annotated, Literal

from pydantic import Field

from ...cli.config import settings
from .data import Fraction, NonNegative


@settings
class ObjectiveSettings:
    """The loss of single-label classification, and what softens it."""

    loss: Literal["cross_entropy", "bce"] = "cross_entropy"
    """cross_entropy: of the softmax; bce: binary, a sigmoid per class, the mean over classes."""
    bce_threshold: Annotated[float, Field(ge=0, lt=1)] | None = None
    """loss=bce: targets above it count as 1 and others as 0; none: as label smoothing and mixing leave them."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread evenly over all classes."""
    mixup: NonNegative = 0.0
    """α of the Beta law that blends pairs of images; 0: off."""
    cutmix: NonNegative = 0.0
    """α of the Beta law that pastes boxes between pairs of images; 0: off. With both, each step takes one at random."""
    mix_prob: Fraction = 1.0
    """Probability that a step mixes at all, where mixup or cutmix is on."""
    switch_prob: Fraction = 0.5
    """Probability of cutmix rather than mixup in a step that mixes, where both are on."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if self.bce_threshold is not None and self.loss != "bce":
            found.append(f"bce_threshold={self.bce_threshold}: loss={self.loss} does not use it; give loss=bce, or leave it out")
        if self.mix_prob != 1 and not (self.mixup or self.cutmix):
            found.append(f"mix_prob={self.mix_prob}: nothing is mixed with mixup=0 and cutmix=0; raise one of them, or leave it out")
        if self.switch_prob != 0.5 and not (self.mixup and self.cutmix):
            found.append(f"switch_prob={self.switch_prob}: chooses between mixup and cutmix; raise both above 0, or leave it out")
        return found
