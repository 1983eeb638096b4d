"""The phases of a run: which settings hold at which step, and what an image costs in each."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import torch

from ..cli.errors import UserError
from ..model_zoo.backbone import create_model
from ..model_zoo.preprocessing import Preprocessing
from .meter import training_flops
from .pool import Pool
from .settings.changes import Stretch
from .settings.data import DataSettings
from .settings.duration import Lengths
from .settings.pretrain import PretrainSettings


@dataclasses.dataclass(frozen=True)
class Phase:
    """The steps start ≤ s < stop, over which the settings of one stretch hold."""

    start: int
    stop: int
    stretch: Stretch


class Phases:
    """The phases of a run in order; the first begins at step 0 and each where the one before it ends."""

    def __init__(self, stretches: Sequence[Stretch], starts: Sequence[int], total: int) -> None:
        self._starts = tuple(starts)
        self._phases = [Phase(*of) for of in zip(starts, (*starts[1:], total), stretches, strict=True)]

    def index(self, step: int) -> int:
        """Returns the number of the phase of a step, counted from 0; the last phase goes on beyond the run's end."""
        return max(bisect.bisect_right(self._starts, step) - 1, 0)

    def at(self, step: int) -> Phase:
        """Returns the phase of a step."""
        return self._phases[self.index(step)]

    def __iter__(self) -> Iterator[Phase]:
        return iter(self._phases)


def plan_phases(config: PretrainSettings, lengths: Lengths, offset: int = 0) -> Phases:
    """Returns the phases of a run in which step s begins at sample offset + s · global batch: batch n is of the phase of step n.

    Raises:
        UserError: when the points are not in order, or not inside the run.
    """
    duration, points = config.run.duration, [change.at for change in config.changes]
    nominal = [lengths.step_at(point, duration, 0) for point in points]
    for number, (point, step) in enumerate(zip(points, nominal, strict=True)):
        least, total = (nominal[number - 1] if number else 0) + 1, lengths.steps(duration)
        if not least <= step < total:
            where = f"after changes.{number - 1} and " if number else ""
            raise UserError(f"changes.{number}.at={point}: is step {step}; must come {where}inside the run, steps {least} to {total - 1}")
    # Once the batch size has changed, points round to other steps; two that meet leave a phase of no step between them.
    starts = [0, *(max(lengths.step_at(point, duration, offset), 0) for point in points)]
    return Phases(config.stretches, starts, lengths.last_step(duration, offset))


def preprocessing_of(data: DataSettings) -> Preprocessing:
    """Returns what evaluation does to an image."""
    return Preprocessing(
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        interpolation=data.interpolation,
        crop_fraction=data.eval_crop,
    )


def flops_by_stretch(model: torch.nn.Module, config: PretrainSettings, device: torch.device) -> list[float]:
    """Returns FLOPs per training image in each stretch of the run, from a forward pass at each image size.

    Raises:
        UserError: when the network cannot take one of the sizes.
    """
    by_size: dict[int, float] = {}
    for number, stretch in enumerate(config.stretches):
        size = stretch.data.image_size
        if size not in by_size:
            try:
                by_size[size] = training_flops(model, torch.zeros(1, 3, size, size, device=device))
            except (AssertionError, RuntimeError, ValueError) as error:  # what timm's models raise for a size that is not theirs
                setting = f"changes.{number - 1}.data.image_size={size}" if number else f"data.image_size={size}"
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                remedy = "a ViT takes other multiples of its patch size with model.args={dynamic_img_size: true}"
                raise UserError(f"{setting}: {config.model.name} does not take it ({reason}); {remedy}") from None
    return [by_size[stretch.data.image_size] for stretch in config.stretches]


def describe_run(config: PretrainSettings, pool: Pool, phases: Phases) -> Iterator[str]:
    """Yields the lines of `dry_run`: data, length, and a line per phase; the network is built without memory, and fed each image size.

    Raises:
        UserError: when there is no such network, or it cannot take one of the sizes.
    """
    num_classes = len(pool.train.class_names)
    yield (
        f"{config.model.name}: {len(pool.train)} images of {num_classes} classes, "
        f"{pool.lengths.total_steps} steps of {config.run.global_batch_size} → {config.run.folder}"
    )
    if pool.grown is not None:
        yield f"  snapshot {pool.grown.snapshot.number} of {pool.grown.snapshot.state}: {pool.lengths.samples_per_epoch} images an epoch"
    with torch.device("meta"):
        model = create_model(config.model.name, num_classes=num_classes, **config.model.args)
    for phase, flops in zip(phases, flops_by_stretch(model, config, torch.device("meta")), strict=True):
        data, objective = phase.stretch.data, phase.stretch.objective
        total = flops * (phase.stop - phase.start) * config.run.global_batch_size
        softened = ", ".join(f"{name} {getattr(objective, name):g}" for name in ("mixup", "cutmix", "label_smoothing"))
        yield (
            f"  steps {phase.start}–{phase.stop - 1}: {data.image_size} px, augment {data.augment}, {softened}; "
            f"{flops / 1e9:.3g} GFLOP per image, {total:.3g} FLOP"
        )
