"""The batches of a run, made from its settings: training batches from any position of the order, and those of the validation split."""

import dataclasses
from collections.abc import Generator, Iterator

from ..datasets.augment.crops import EvalView, TrainView, View
from ..datasets.augment.views import training_view
from ..datasets.ranks import Ranks
from ..datasets.shards import Shards
from ..datasets.stream.batches import Batch, BatchSource, EvalBatches, TrainBatches
from ..datasets.stream.feed import HOLD, feed
from ..datasets.stream.loader import Loader
from ..datasets.stream.policies import FAIL, BadSampleList, BadSamples
from ..datasets.stream.watchdog import Watch
from .phases import Phases
from .pool import Pool
from .sampling import RunPlan
from .settings.data import DataSettings
from .settings.pretrain import PretrainSettings


@dataclasses.dataclass(frozen=True)
class RunBatches:
    """What a run feeds its network."""

    config: PretrainSettings
    pool: Pool
    ranks: Ranks
    unit: int
    """Images that must stay together on one rank."""

    def training(self, plan: RunPlan, phases: Phases, numbers: range, offset: int) -> Iterator[Batch]:
        """Yields this rank's part of the global batches `numbers`, on its device; batch n begins at sample offset + n · global batch.

        Slots whose sample could not be read are listed in `bad_samples/rank-R.tsv` of the run folder, where the policy replaces them.
        """
        data, run, ranks = self.config.data, self.config.run, self.ranks
        (_, first), *later = [(phase.start, view_of(phase.stretch.data)) for phase in phases]
        source = TrainBatches(
            self.pool.train,
            plan.order,
            first,
            run.global_batch_size,
            ranks.rank,
            ranks.world_size,
            self.unit,
            offset=offset,
            repeats=data.repeats,
            bad_samples=BadSamples(data.max_bad_samples) if data.bad_samples == "replace" else FAIL,
            num_ahead=data.shards_ahead,
            later_views=tuple(later),
            weights=plan.loss_weights,
        )
        if data.bad_samples == "fail":
            yield from self.load(source, numbers)
            return
        folder = run.folder / "bad_samples"
        with BadSampleList(folder / f"rank-{ranks.rank}.tsv", sorted(folder.glob("rank-*.tsv"))) as listed:
            for batch in self.load(source, numbers):
                listed.add(batch.replaced)
                yield batch

    def validation(self, shards: Shards, view: EvalView) -> Iterator[Batch]:
        """Yields this rank's batches of the validation split, on its device."""
        batch_size, ranks = self.config.run.eval_batch_size, self.ranks
        source = EvalBatches(shards, view, batch_size, ranks.rank, ranks.world_size, num_ahead=self.config.data.shards_ahead)
        return self.load(source, range(len(source)))

    def load(self, source: BatchSource, numbers: range) -> Generator[Batch, None, None]:
        """Yields the batches `numbers` of any source, loaded as the settings say, on this rank's device."""
        data, ranks = self.config.data, self.ranks
        watch = Watch(data.stall_s, ranks.rank, steps=not self.config.health.step_s)  # deadlines watch the step
        hold = HOLD if ranks.device.type == "cuda" else 1
        how = {"workers": data.workers, "prefetch": data.prefetch, "hold": hold}
        with Loader(source, numbers, kind=data.worker_kind, watch=watch, **how) as loader:
            yield from feed(loader, ranks.device)


def view_of(data: DataSettings) -> View:
    """Returns the training view that the settings ask for."""
    crop = TrainView(data.image_size, scale=data.scale, ratio=data.ratio, flip=data.flip, interpolation=data.interpolation)
    return training_view(
        crop,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        augment=data.augment,
        rand_augment=data.rand_augment,
        color_jitter=data.color_jitter,
        hue_jitter=data.hue_jitter,
        erase=data.erase,
        erase_mode=data.erase_mode,
        erase_area=data.erase_area,
        erase_aspect=data.erase_aspect,
        erase_count=data.erase_count,
    )
