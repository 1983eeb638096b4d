"""The settings of `bamboo pretrain`."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..cli.config import settings
from ..datasets.augment.crops import Interpolation
from ..datasets.augment.erasing import EraseMode
from ..datasets.augment.rand_augment import parse_policy
from ..datasets.augment.views import RAND_AUGMENT, Augment
from ..datasets.plan.sources import parse_source
from ..datasets.stream.loader import WorkerKind
from .duration import Duration
from .engines.compatible import optimizer_problem

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Locations = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Files = Annotated[tuple[Path, ...], BeforeValidator(_one_or_more)]

_MAX_REPEATS = 8.0


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

    train: Locations
    """Shard folders of the training split, local or remote (s3://, https://, gs://); several with amounts: a@70% b@30%, a b@2x, a@50000."""
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
    """Let changed folders, weights or windows begin a new plan version where the run stands, instead of refusing them."""

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


@settings
class ObjectiveSettings:
    """Softmax cross-entropy and what softens it."""

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
        if self.mix_prob != 1 and not (self.mixup or self.cutmix):
            found.append(f"mix_prob={self.mix_prob}: nothing is mixed with mixup=0 and cutmix=0; raise one of them, or leave it out")
        if self.switch_prob != 0.5 and not (self.mixup and self.cutmix):
            found.append(f"switch_prob={self.switch_prob}: chooses between mixup and cutmix; raise both above 0, or leave it out")
        return found


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
    keep_best: Annotated[int, Field(ge=0)] = 0
    """Further checkpoints kept: those of the best top-1 on data.val, where a checkpoint is due after the evaluation of the same step."""
    keep_every: Duration | None = None
    """Further checkpoints kept: those after every so many steps; none: none."""
    background_saves: bool = True
    """Checkpoints are copied to memory and written while training goes on; false: training waits until they are written."""
    tensorboard: bool = False
    """Write TensorBoard events (extra: tensorboard)."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Write a wandb run (extra: wandb); offline needs no network."""


@settings
class EngineSettings:
    """Who runs forward, backward and the optimiser step over the ranks. Any engine goes on from any other's checkpoint."""

    kind: Literal["plain", "fsdp", "deepspeed"] = "plain"
    """plain: one process or DistributedDataParallel; fsdp: PyTorch's FSDP2; deepspeed: ZeRO (extra: deepspeed)."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """kind=deepspeed: what is sharded over ranks: 0 nothing, 1 the optimiser's state, 2 the gradients too, 3 the weights too."""
    offload: bool = False
    """kind=deepspeed, zero_stage 1 to 3: keep the optimiser's state, and step, on the CPU."""
    deepspeed_json: Path | None = None
    """kind=deepspeed: a file of DeepSpeed's own settings, over what is derived from these; contradictions are errors."""
    reshard: bool = True
    """kind=fsdp: give up a block's gathered weights after its forward pass; false: keep them for its backward pass."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        ours = {"zero_stage": 1, "offload": False, "deepspeed_json": None} if self.kind != "deepspeed" else {}
        for name, default in {**ours, **({"reshard": True} if self.kind != "fsdp" else {})}.items():
            if getattr(self, name) != default:
                found.append(f"{name}={getattr(self, name)}: kind={self.kind} does not use it; change kind, or leave it out")
        if self.offload and not self.zero_stage:
            found.append("offload=true: there is nothing to offload with zero_stage=0; allowed are 1 to 3")
        return found


@settings
class PretrainSettings:
    """Everything `bamboo pretrain` can be told."""

    model: ModelSettings
    data: DataSettings
    sampling: SamplingSettings = SamplingSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    engine: EngineSettings = EngineSettings()
    run: RunSettings
    dry_run: bool = False
    """Check everything, print the plan of the run, and stop."""

    @property
    def mixes(self) -> bool:
        """Whether pairs of samples are blended."""
        return self.objective.mixup > 0 or self.objective.cutmix > 0

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = optimizer_problem(self.optimizer.name, self.engine.kind, self.engine.zero_stage)
        if self.model.compile and self.engine.kind == "deepspeed" and self.engine.zero_stage == 3:
            found.append("model.compile=true: not with engine.zero_stage=3; use zero_stage 0 to 2, or engine.kind=fsdp")
        if self.mixes and self.run.global_batch_size % 2:
            found.append(f"run.global_batch_size={self.run.global_batch_size}: mixup and cutmix blend pairs, so it must be even")
        if self.run.global_batch_size % self.data.repeats:
            found.append(f"data.repeats={self.data.repeats}: must divide run.global_batch_size={self.run.global_batch_size}")
        if self.sampling.weights and len(self.sampling.weights) != len(self.data.train):
            found.append(
                f"sampling.weights: {len(self.sampling.weights)} files for {len(self.data.train)} folders of data.train; give one each"
            )
        if self.sampling.coupled and (len(self.data.train) > 1 or not parse_source(self.data.train[0]).is_plain):
            found.append("sampling.coupled=true: pairs of epochs are of one folder without an amount")
        if self.run.global_batch_size < self.run.accumulate:
            found.append(f"run.accumulate={self.run.accumulate}: at most run.global_batch_size={self.run.global_batch_size}")
        if "%" in self.run.duration:
            found.append(f"run.duration={self.run.duration}: a run's own length cannot be a share of it; give steps, samples or epochs")
        return found
