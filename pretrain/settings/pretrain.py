"""The settings of `bamboo pretrain`."""

import functools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ...cli.config import settings
from ...datasets.plan.sources import parse_source
from ..engines.compatible import optimizer_problem
from .changes import Change, Stretch, change_problems, stretches
from .data import Count, DataSettings, Fraction, SamplingSettings
from .duration import Duration, is_nothing
from .evaluators import VAL, Evaluators, name_problems
from .health import HealthSettings
from .loggers import ProfileSettings, WandbSettings, unused
from .objective import ObjectiveSettings
from .optimizer import OptimizerSettings

_OF_A_POLICY = ("weights", "weights_are", "balance", "max_repeats", "epoch", "coupled")  # of sampling.*: what a snapshot settles


@settings
class ModelSettings:
    """The network."""

    name: str
    """timm's name of a ResNet, ViT or any other classifier, e.g. resnet50, vit_small_patch16_224."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, e.g. {img_size: 64, patch_size: 8}."""
    drop_path: Fraction = 0.0
    """Stochastic depth rate."""
    drop_path_even: bool = False
    """Stochastic depth at that rate in every block, as DeiT III has it; false: rising to it from 0 in the first block."""
    channels_last: bool = True
    """Channels-last weights and activations (faster for convolutions)."""
    compile: bool = False
    """torch.compile."""
    checkpoint_activations: bool = False
    """Keep the activations of block borders only, and compute the others again in the backward pass: less memory, a third more time."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        if self.drop_path_even and not self.drop_path:
            return ["drop_path_even=true: nothing is left out with drop_path=0; raise that, or leave it out"]
        return []


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
    """Further checkpoints kept: those that run.best_by scored best, where a checkpoint is due after the evaluation of the same step."""
    best_by: str = VAL
    """The evaluator that keep_best goes by: val, the top-1 on data.val, or a name of evaluators."""
    keep_every: Duration | None = None
    """Further checkpoints kept: those after every so many steps; none: none."""
    background_saves: bool = True
    """Checkpoints are copied to memory and written while training goes on; false: training waits until they are written."""
    tensorboard: bool = False
    """Write TensorBoard events (extra: tensorboard)."""
    wandb: Literal["disabled", "auto", "offline", "online"] = "disabled"
    """Write a wandb run (extra: wandb). auto: online where its server answers, else offline; online: a new run insists on the server."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        given = {name: getattr(self, name) for name in ("log_every", "eval_every", "checkpoint_every", "keep_every")}
        return [f"{name}={every}: must be above 0" for name, every in given.items() if every is not None and is_nothing(every)]


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
    evaluators: Evaluators = Field(default_factory=dict)
    """Scores on downstream sets every so often, by a name of yours, e.g. {cifar: {kind: knn, dataset: cifar10, data_root: data}}."""
    health: HealthSettings = HealthSettings()
    run: RunSettings
    wandb: WandbSettings = WandbSettings()
    changes: tuple[Change, ...] = ()
    """Other sizes, augmentation or objectives from points of the run on, in order: [{at: 90 %, data: {image_size: 288}}, …]."""
    profiling: ProfileSettings = ProfileSettings()
    profile: bool = False
    """Profile some steps: a trace and a table of where the time goes, in run.folder/profile; the run goes on as ever."""
    dry_run: bool = False
    """Check everything, print the plan of the run, and stop."""

    @property
    def mixes(self) -> bool:
        """Whether pairs of samples are blended at any point of the run."""
        return any(stretch.mixes for stretch in self.stretches)

    @functools.cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The settings that hold from each point of the run on, the first from its start."""
        return stretches(self.data, self.objective, self.changes)

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = change_problems(self.data, self.objective, self.changes)
        if found:
            return found  # what follows asks for the stretches
        found = optimizer_problem(self.optimizer.name, self.engine.kind, self.engine.zero_stage)
        if self.model.compile and self.engine.kind == "deepspeed" and self.engine.zero_stage == 3:
            found.append("model.compile=true: not with engine.zero_stage=3; use zero_stage 0 to 2, or engine.kind=fsdp")
        if self.run.wandb == "disabled":
            found += unused("wandb", self.wandb, "run.wandb=disabled does not use it; set run.wandb=auto, or leave it out")
        if not self.profile:
            found += unused("profiling", self.profiling, "nothing is profiled; add --profile, or leave it out")
        if self.mixes and self.run.global_batch_size % 2:
            found.append(f"run.global_batch_size={self.run.global_batch_size}: mixup and cutmix blend pairs, so it must be even")
        if self.run.global_batch_size % self.data.repeats:
            found.append(f"data.repeats={self.data.repeats}: must divide run.global_batch_size={self.run.global_batch_size}")
        found += self._sampling_problems() if self.data.snapshot is None else self._snapshot_problems()
        if self.run.global_batch_size < self.run.accumulate:
            found.append(f"run.accumulate={self.run.accumulate}: at most run.global_batch_size={self.run.global_batch_size}")
        found += name_problems(self.evaluators) + self._best_problems()
        if "%" in self.run.duration:
            found.append(f"run.duration={self.run.duration}: a run's own length cannot be a share of it; give steps, samples or epochs")
        return found

    def _sampling_problems(self) -> list[str]:
        sampling, train, found = self.sampling, self.data.train, []
        if sampling.weights and len(sampling.weights) != len(train):
            found.append(f"sampling.weights: {len(sampling.weights)} files for {len(train)} folders of data.train; give one each")
        if sampling.coupled and train and (len(train) > 1 or not parse_source(train[0]).is_plain):
            found.append("sampling.coupled=true: pairs of epochs are of one folder without an amount")
        is_even = sampling.is_even and all(parse_source(text).is_plain for text in train)
        if sampling.loss_beta and (is_even or sampling.coupled):
            why = "two coupled epochs see every sample once" if sampling.coupled else "every sample is taken once an epoch"
            found.append(f"sampling.loss_beta={sampling.loss_beta:g}: {why}, so there is nothing to correct; leave it out")
        return found

    def _snapshot_problems(self) -> list[str]:
        given, default = self.sampling, SamplingSettings()
        names = [name for name in _OF_A_POLICY if getattr(given, name) != getattr(default, name)]
        remedy = "data.snapshot has a policy of its own; leave it out, or make a snapshot with another: bamboo grow"
        return [f"sampling.{name}={getattr(given, name)}: {remedy}" for name in names]

    def _best_problems(self) -> list[str]:
        run, names = self.run, [*([VAL] if self.data.val is not None else []), *self.evaluators]
        if not run.keep_best:
            return [] if run.best_by == VAL else [f"run.best_by={run.best_by}: nothing goes by it with run.keep_best=0; raise that"]
        if run.best_by not in names:
            allowed = f"allowed are {', '.join(names)}" if names else "there is none; give data.val or evaluators"
            return [f"run.best_by={run.best_by}: no such evaluator for run.keep_best={run.keep_best} to go by; {allowed}"]
        return []
