"""The settings of `bamboo pretrain`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..cli.config import settings
from ..datasets.augment.crops import Interpolation
from .duration import Duration

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@settings
class ModelSettings:
    """The network."""

    name: str
    """timm's name of a ResNet, ViT or any other classifier, e.g. resnet50, vit_small_patch16_224."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, e.g. {img_size: 64, patch_size: 8}."""
    drop_path: Fraction = 0.0
    """Stochastic depth rate."""
    channels_last: bool = True
    """Channels-last weights and activations (faster for convolutions)."""
    compile: bool = False
    """torch.compile."""


@settings
class DataSettings:
    """What is streamed in, and how it is cropped."""

    train: Path
    """Shard folder of the training split."""
    val: Path | None = None
    """Shard folder of the validation split, with the same classes; none: no evaluation."""
    image_size: Annotated[int, Field(ge=8, le=2048)] = 224
    """Side of the training and evaluation crops, in pixels."""
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    """Least and greatest area of the random-resized crop, as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest aspect ratio of the random-resized crop."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
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
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: Count = 2
    """Batches that each worker prepares ahead."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if not 0 < self.scale[0] <= self.scale[1]:
            found.append(f"scale={self.scale}: needs 0 < least <= greatest")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            found.append(f"ratio={self.ratio}: needs 0 < least <= greatest")
        if min(self.std) <= 0:
            found.append(f"std={self.std}: every value must be above 0")
        return found


@settings
class ObjectiveSettings:
    """Softmax cross-entropy and what softens it."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread evenly over all classes."""
    mixup: NonNegative = 0.0
    """α of the Beta law that blends pairs of images; 0: off."""
    cutmix: NonNegative = 0.0
    """α of the Beta law that pastes boxes between pairs of images; 0: off. With both, each step takes one at random."""


@settings
class OptimizerSettings:
    """Optimiser and schedule, from timm's factories."""

    name: str = "adamw"
    """timm's name of the optimiser: sgd, adamw, lamb, lion, muon, …"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate at the given global batch size; it is not rescaled."""
    weight_decay: NonNegative = 0.05
    """Decoupled or L2, as the optimiser has it; biases and norms are exempt."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum, for the optimisers that have one."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser, e.g. {betas: [0.9, 0.95]}."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate per layer, from the head down; none: off."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Greatest gradient norm; none: no clipping."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: Duration = "0 epochs"
    """Linear warm-up from warmup_lr."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate at the first step of the warm-up."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of a cosine."""
    decay_every: Duration = "30 %"
    """schedule=step: length of a stair."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """schedule=step: factor per stair."""


@settings
class RunSettings:
    """Where the run lies, how long it is, what it writes and when."""

    folder: Path
    """Run folder: config, logs, checkpoints, export. The same command on the same folder resumes."""
    duration: Duration = "90 epochs"
    """Length of the run."""
    global_batch_size: Count = 256
    """Samples per optimiser step, over all ranks and accumulation steps."""
    accumulate: Count = 1
    """Forward and backward passes per optimiser step."""
    seed: int = 0
    """Keys the initial weights, the order of samples, crops, mixing and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: autocast, with float32 weights."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Intra-op threads per rank on a CPU; 0: the rank's share of the machine's cores, less its loader workers."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Exponential moving average of the weights, evaluated and exported in their place; none: off."""
    log_every: Duration = "20 steps"
    """How often a line is logged."""
    eval_every: Duration = "1 epochs"
    """How often the validation split is scored; it always is at the end."""
    eval_batch_size: Count = 256
    """Validation images per rank and batch."""
    checkpoint_every: Duration = "1 epochs"
    """How often the state is saved; it always is at the end."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept."""
    tensorboard: bool = False
    """Write TensorBoard events (extra: tensorboard)."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Write a wandb run (extra: wandb); offline needs no network."""


@settings
class PretrainSettings:
    """Everything `bamboo pretrain` can be told."""

    model: ModelSettings
    data: DataSettings
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    run: RunSettings
    dry_run: bool = False
    """Check everything, print the plan of the run, and stop."""

    @property
    def mixes(self) -> bool:
        """Whether pairs of samples are blended."""
        return self.objective.mixup > 0 or self.objective.cutmix > 0

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        if self.mixes and self.run.global_batch_size % 2:
            found.append(f"run.global_batch_size={self.run.global_batch_size}: mixup and cutmix blend pairs, so it must be even")
        if self.run.global_batch_size < self.run.accumulate:
            found.append(f"run.accumulate={self.run.accumulate}: at most run.global_batch_size={self.run.global_batch_size}")
        if "%" in self.run.duration:
            found.append(f"run.duration={self.run.duration}: a run's own length cannot be a share of it; give steps, samples or epochs")
        return found
