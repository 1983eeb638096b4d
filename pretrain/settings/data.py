"""The settings of what a run streams in: data.*, how often each sample is taken: sampling.*."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ...cli.config import settings
from ...datasets.augment.crops import Interpolation
from ...datasets.augment.erasing import EraseMode
from ...datasets.augment.rand_augment import parse_policy
from ...datasets.augment.views import RAND_AUGMENT, Augment
from ...datasets.stream.loader import WorkerKind

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Locations = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Files = Annotated[tuple[Path, ...], BeforeValidator(_one_or_more)]

_MAX_REPEATS = 8.0


@settings
class DataSettings:
    """What is streamed in, and how it is cropped."""

    train: Locations = ()
    """Shard folders of the training split, local or remote (s3://, https://, gs://); several with amounts: a@70% b@30%, a b@2x, a@50000."""
    snapshot: Path | None = None
    """In place of train: a growth state (its newest snapshot), or one snapshot; names the folders, and how often samples are taken."""
    val: str | None = None
    """Shard folder of the validation split, with the same classes; none: no evaluation."""
    image_size: Annotated[int, Field(ge=8, le=2048)] = 224
    """Side of the training and evaluation crops, in pixels."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Least and greatest area of the random-resized crop, as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest aspect ratio of the random-resized crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    augment: Augment = "none"
    """rand: RandAugment; three: DeiT III's 3-Augment, one of greyscale, solarising and blur."""
    rand_augment: str = RAND_AUGMENT
    """augment=rand: timm's spelling of magnitude m, number of ops n, their probability p, noise mstd, cut mmax, increasing set inc."""
    color_jitter: Fraction | None = None
    """Strength of the jitter of brightness, contrast and saturation; none: 0.3 with augment=three, else 0."""
    hue_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Greatest turn of the hue, as a share of the circle."""
    erase: Fraction = 0.0
    """Probability of random erasing."""
    erase_mode: EraseMode = "pixel"
    """What is put there: mean, the colour of data.mean; pixel, noise that is N(0, 1) once normalised."""
    erase_area: tuple[Fraction, Fraction] = (0.02, 1 / 3)
    """Least and greatest area erased, as a share of the crop."""
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Least and greatest height over width of an erased box."""
    erase_count: Annotated[int, Field(ge=1, le=16)] = 1
    """Greatest number of boxes; with more than one, their number is drawn, and the area divided among them."""
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation: crop side over resized short side."""
    interpolation: Interpolation = "bicubic"
    """bilinear or bicubic, both antialiased."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Channel means of pixels in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Channel standard deviations of pixels in [0, 1]."""
    window: Count = 64
    """Shards interleaved at a time by the plan."""
    repeats: Count = 1
    """Repeated augmentation: views of each sample in a batch; it divides the global batch."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Loader workers per rank; 0 loads in the training process."""
    worker_kind: WorkerKind = "processes"
    """processes, or threads of the training process (decoding and cropping release the interpreter)."""
    prefetch: Count = 2
    """Batches that each worker prepares ahead."""
    bad_samples: Literal["fail", "replace"] = "fail"
    """An unreadable training sample ends the run, or the next of the plan stands in and the slot is listed in the run folder."""
    max_bad_samples: Count = 16
    """bad_samples=replace: so many in a row in the plan end the run."""
    stall_s: NonNegative = 300.0
    """After so many seconds without a batch or a step, each rank says what its workers are doing; 0: never."""
    cache: Path | None = None
    """Folder that keeps remote shards; none: the shards folder below BAMBOO_CACHE or ~/.cache/bamboo."""
    cache_bytes: Annotated[float, Field(gt=0)] = 50e9
    """Greatest size of that folder; what it must hold follows from window, shards_ahead and what is under way: docs/streaming.md."""
    shards_ahead: Count = 4
    """Remote shards fetched before they come into use."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if not self.train and self.snapshot is None:
            found.append("train: names no folder; give data.train its shard folders, or data.snapshot a growth state")
        if not 0 < self.scale[0] <= self.scale[1]:
            found.append(f"scale={self.scale}: needs 0 < least <= greatest")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            found.append(f"ratio={self.ratio}: needs 0 < least <= greatest")
        if min(self.std) <= 0:
            found.append(f"std={self.std}: every value must be above 0")
        return found + self._augment_problems()

    def _augment_problems(self) -> list[str]:
        found = []
        try:
            parse_policy(self.rand_augment)
        except ValueError as error:
            found.append(f"rand_augment={self.rand_augment}: {error}")
        if self.rand_augment != RAND_AUGMENT and self.augment != "rand":
            found.append(f"rand_augment={self.rand_augment}: augment={self.augment} does not use it; give augment=rand, or leave it out")
        if not 0 < self.erase_area[0] <= self.erase_area[1]:
            found.append(f"erase_area={self.erase_area}: needs 0 < least <= greatest")
        if not 0 < self.erase_aspect[0] <= self.erase_aspect[1]:
            found.append(f"erase_aspect={self.erase_aspect}: needs 0 < least <= greatest")
        if self.erase_mode != "pixel" and not self.erase:
            found.append(f"erase_mode={self.erase_mode}: nothing is erased with erase=0; raise erase, or leave erase_mode out")
        return found


@settings
class SamplingSettings:
    """How often an epoch takes each training sample; without these, once."""

    weights: Files = ()
    """An .npy file of one number per sample, in index order; of several folders one each."""
    weights_are: Literal["weights", "probabilities"] = "weights"
    """Relative weights, scaled to the epoch's length, or the expected visits an epoch, scaled only to add up to a whole number."""
    balance: NonNegative = 0.0
    """Exponent γ: weights are divided by (images of the class in its folder) ** γ; 1: classes equal, 0.5: the square-root rule."""
    max_repeats: Annotated[float, Field(ge=1, le=255)] = _MAX_REPEATS
    """Most visits of one sample an epoch."""
    epoch: Count | None = None
    """Samples an epoch; none: as many as there are, or the sum of the probabilities."""
    coupled: bool = False
    """Epochs come in pairs: the second takes what the first, drawn by the weights, left over."""
    replan: bool = False
    """Let changed folders, weights or windows begin a new plan version where the run stands, a new snapshot at the next epoch boundary."""
    loss_beta: Fraction = 0.0
    """Exponent β: an image's loss is multiplied by (1 / its visits an epoch) ** β over their mean; 1 undoes the weights on average."""

    @property
    def is_even(self) -> bool:
        """Whether every sample is taken once an epoch."""
        return not self.weights and not self.balance

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if self.weights_are == "probabilities" and not self.weights:
            found.append("weights_are=probabilities: give the file, weights=FILE.npy")
        if self.weights_are == "probabilities" and (self.balance or self.epoch):
            found.append("weights_are=probabilities: they set the epoch's length and balance; leave balance and epoch out, or give weights")
        if self.max_repeats != _MAX_REPEATS and (self.is_even or self.coupled):
            why = (
                "with coupled=true none is drawn twice an epoch" if self.coupled else "every sample is taken once; give weights or balance"
            )
            found.append(f"max_repeats={self.max_repeats:g}: {why}")
        if self.coupled and self.is_even:
            found.append("coupled=true: nothing is left over when every sample is taken once; give weights or balance")
        return found
