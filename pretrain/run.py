"""A run: built from its settings on one rank, resumed where it stopped, executed, exported."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..cli.errors import DataError, UserError
from ..datasets.atomic import sha256_json
from ..datasets.ranks import Ranks
from ..model_zoo.backbone import create_model
from ..model_zoo.export import Card, card_tree, write_export
from ..model_zoo.preprocessing import Normalize, Preprocessing
from .average import create_average
from .batches import RunBatches
from .checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from .checkpoints.pinned import pinned, refuse_changes
from .checkpoints.snapshot import Position, Snapshot, take_snapshot
from .checkpoints.writer import Writer
from .drop_path import even_drop_path
from .engines.choice import open_engine
from .evaluators.evaluations import Evaluations, intervals
from .evaluators.opened import Downstream
from .guards.deadline import Deadlines
from .guards.health import Health, warn_of_waiting
from .log import Loggers
from .loggers.opening import open_loggers
from .meter import Meter, peak_flops
from .objective import Objective
from .optimizer import create_optimizer
from .phases import flops_by_stretch, plan_phases, preprocessing_of
from .pool import Pool
from .profiling.operations import EVALUATION, Operations, watched
from .profiling.profile import profiled
from .recompute import checkpoint_activations
from .record.provenance import versions
from .sampling import open_plan
from .schedule import create_schedule
from .settings.pretrain import PretrainSettings
from .stopping.marker import FINISHED, Marker, Stopped
from .stopping.preemption import StopRequested, Vote
from .stopping.signals import StopSignals
from .trainer import Cadence, Trainer


class Run:
    """A run on one rank, built and ready: `Run(config, pool, evaluators, ranks, signals).execute()`."""

    def __init__(self, config: PretrainSettings, pool: Pool, evaluators: Sequence[Downstream], ranks: Ranks, signals: StopSignals) -> None:
        self._config, self._pool, self._downstream, self._ranks, self._signals = config, pool, evaluators, ranks, signals
        self._deadlines = Deadlines(config.health, ranks, config.run.folder)
        self._vote, self._marker = Vote(signals, ranks, self._deadlines.boundary), Marker(config.run.folder)
        self._objectives = [Objective(stretch.objective, config.run.seed) for stretch in config.stretches]
        self._unit = max(objective.unit for objective in self._objectives)  # the stream's and the accumulation's cuts stay the same
        if ranks.world_size * self._unit * config.run.accumulate > config.run.global_batch_size:
            raise UserError(
                f"run.global_batch_size={config.run.global_batch_size}: cannot feed {ranks.world_size} ranks × "
                f"{config.run.accumulate} accumulation steps{' in pairs' if config.mixes else ''}; raise it or use fewer"
            )
        ranks.share_cores(config.data.workers, config.run.threads)
        self._normalize = Normalize(preprocessing_of(config.data)).to(ranks.device)
        torch.manual_seed(config.run.seed)
        model = create_model(config.model.name, num_classes=len(pool.train.class_names), **self._model_args())
        if config.model.drop_path_even:
            even_drop_path(model, config.model.drop_path, config.model.name)
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        every = max(pool.lengths.steps(config.run.keep_every), 1) if config.run.keep_every else 0
        run = config.run
        self._checkpoints = CheckpointFolder(run.folder, run.keep_checkpoints, best=run.keep_best, best_by=run.best_by, every=every)
        self._writer = Writer(self._checkpoints, ranks, background=config.run.background_saves)
        self._flops = flops_by_stretch(model, config, ranks.device)  # before an engine takes the model apart
        self._recomputing: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if config.model.checkpoint_activations:
            self._recomputing = checkpoint_activations(model, config.model.name)
        build = functools.partial(create_optimizer, settings=config.optimizer)
        self._engine = open_engine(config, model, build, ranks)
        warn_of_waiting(config.health, self._engine, ranks)
        self._average = create_average(self._engine, config.run.ema_decay)
        self._batches = RunBatches(config, pool, ranks, self._unit)
        self._peak, self._peak_source = peak_flops(ranks.device, config.run.precision)

    def execute(self) -> None:
        """Trains from the newest checkpoint, or from the start, to the end; exports the model.

        Raises:
            Stopped: on all ranks, when any was asked to stop.
        """
        done = self._resume()
        if self._marker.is_of_this_launch(self._ranks):
            self._signals.is_saved = True
            raise Stopped(done.step, done.samples, 0)
        offset = done.samples - done.step * self._config.run.global_batch_size  # not 0 once the batch size has changed
        self._plan = open_plan(self._config, self._pool, self._ranks, self._position(done.samples))
        self._refuse_another_plan(done)
        self._lengths = self._pool.lengths.with_epoch(self._plan.history.epoch_samples, self._config.run.duration)
        total = self._lengths.last_step(self._config.run.duration, offset)
        self._phases = plan_phases(self._config, self._lengths, offset)
        self._logger = self._open_loggers(done, total)
        self._cadence = self._create_cadence(total)
        self._evaluations = self._create_evaluations()
        try:
            with self._deadlines:
                self._catch_up(done)
                if done.step < total:
                    batches = self._batches.training(self._plan, self._phases, range(done.step, total), offset)
                    # whatever ends the training: what was to be saved is written first
                    with profiled(self._config, self._ranks) as watchers, self._writer:
                        self._trainer(offset, watched([self._deadlines, *watchers])).train(batches, done.step)
                self._export(max(done.step, total))
            if self._ranks.is_first:
                self._marker.write(max(done.step, total), FINISHED)
        except Stopped as stopped:
            self._tell(stopped)
            raise
        finally:
            self._logger.close()
            self._engine.close()

    def _tell(self, stopped: Stopped) -> None:
        """Writes the last row and the marker, and returns once no rank has anything left to lose: the launcher ends the slower ones."""
        self._logger.write({"kind": "stop", "step": stopped.step, "samples": stopped.samples, "signal": stopped.signal})
        if self._ranks.is_first:
            self._marker.write(stopped.step, stopped.signal)
        self._logger.close()
        self._logger = Loggers([])
        self._ranks.barrier()
        self._signals.is_saved = True

    def _catch_up(self, done: Position) -> None:
        try:
            with self._deadlines.during(EVALUATION):
                self._evaluations.catch_up(done.step)
        except StopRequested as request:
            raise Stopped(done.step, done.samples, request.number) from None

    def _create_cadence(self, total: int) -> Cadence:
        run, lengths = self._config.run, self._lengths
        log, save = (max(lengths.steps(text), 1) for text in (run.log_every, run.checkpoint_every))
        return Cadence(total, log, tuple(intervals(self._config, lengths).values()), save)

    def _create_evaluations(self) -> Evaluations:
        return Evaluations(
            config=self._config,
            val=self._pool.val,
            downstream=self._downstream,
            every=intervals(self._config, self._lengths),
            engine=self._engine,
            average=self._average,
            batches=self._batches,
            normalize=self._normalize,
            card=self._card,
            ranks=self._ranks,
            vote=self._vote,
            logger=self._logger,
            cadence=self._cadence,
        )

    def _trainer(self, offset: int, operations: Operations) -> Trainer:
        run, lengths = self._config.run, self._lengths
        return Trainer(
            engine=self._engine,
            objective=lambda step: self._objectives[self._phases.index(step)],
            unit=self._unit,
            normalize=self._normalize,
            schedule=create_schedule(self._engine.optimizer, self._config.optimizer, lengths),
            average=self._average,
            ranks=self._ranks,
            logger=self._logger,
            meter=Meter(run.global_batch_size, self._flops_at, self._peak * self._ranks.world_size),
            cadence=self._cadence,
            seed=run.seed,
            global_batch_size=run.global_batch_size,
            offset=offset,
            schedule_step=functools.partial(lengths.schedule_step, run.duration, offset),
            accumulate=run.accumulate,
            evaluate=self._evaluations.after,
            save=self._save,
            vote=self._vote,
            recomputing=self._recomputing,
            health=Health(self._config.health, self._ranks, run.folder),
            operations=operations,
        )

    def _preprocessing(self, done: int) -> Preprocessing:
        """Returns what evaluation does to an image after so many steps: that of the phase in which the last one was made."""
        return preprocessing_of(self._phases.at(done - 1).stretch.data)

    def _flops_at(self, step: int) -> float:
        return self._flops[self._phases.index(step)]

    def _save(self, step: int, samples: int) -> None:
        self._writer.save(functools.partial(self._snapshot, step, samples))

    def _snapshot(self, step: int, samples: int) -> Snapshot:
        facts = {
            "pinned": pinned(self._config),
            "scores": self._evaluations.values(step),
            "engine": self._config.engine.kind,
            "zero_stage": self._config.engine.zero_stage if self._config.engine.kind == "deepspeed" else None,
            "versions": versions(),
            "card": card_tree(self._card(step)),
        }
        position = Position(step, samples, self._config.run.seed, self._plan.version_at(self._position(samples) - 1))
        return take_snapshot(position, self._engine, self._average, self._ranks, facts)

    def _resume(self) -> Position:
        """Loads the newest whole checkpoint, each rank what it holds; returns where the run stands.

        Raises:
            DataError: when there are checkpoints, and none is whole.
        """
        newest = self._checkpoints.newest(self._ranks)
        if newest is None:
            self._checkpoints.refuse_loss(self._ranks)
            return Position(0, 0, self._config.run.seed, 0)
        checkpoint = read_checkpoint(newest)
        refuse_changes(checkpoint.pinned, self._config, self._config.run.folder)
        self._engine.load(checkpoint.model, checkpoint.optimizer)
        self._average.load(checkpoint.average)
        return checkpoint.position

    def _position(self, samples: int) -> int:
        """Returns the position of the sample order that stands at so many samples consumed."""
        return samples // self._config.data.repeats

    def _refuse_another_plan(self, done: Position) -> None:
        """Compares the plan version that the checkpoint was made in with the record, which may have been put in another's place."""
        last = self._position(done.samples) - 1
        if last >= 0 and self._plan.history.at(last) is not None and self._plan.version_at(last) != done.plan_version:
            found = (
                f"version {self._plan.version_at(last)} of the plan held at sample {done.samples:,}, but the checkpoint was made in version"
            )
            raise DataError(f"{self._config.run.folder / 'plan.json'}: {found} {done.plan_version}; put the run's own record back")

    def _open_loggers(self, done: Position, total: int) -> Loggers:
        place = {"step": done.step, "samples": done.samples, "plan_version": self._plan.version_at(self._position(done.samples))}
        peak = {"value": self._peak, "source": self._peak_source}
        phases = [
            {"start": phase.start, "stop": phase.stop, "image_size": phase.stretch.data.image_size, "flops_per_image": flops}
            for phase, flops in zip(self._phases, self._flops, strict=True)
        ]
        measured = {"flops_per_image": self._flops[0], "phases": phases, "peak_flops_per_rank": peak}
        return open_loggers(self._config, self._pool, self._ranks, total=total, place=place, measured=measured)

    def _export(self, steps: int) -> None:
        weights = self._engine.gather(self._engine.shards() if self._average.shards is None else self._average.shards)
        if self._ranks.is_first:
            write_export(self._config.run.folder / "export", weights, self._card(steps))

    def _card(self, steps: int) -> Card:
        trained = {
            "data_hash": self._pool.train.data_hash,
            "config_hash": sha256_json(pinned(self._config)),
            "steps": steps,
            "weights": "model" if self._average.shards is None else "ema",
            "versions": versions(),
        }
        return Card(
            architecture=self._config.model.name,
            model_args={name: value for name, value in self._model_args().items() if name != "drop_path_rate"},
            classes=tuple(self._pool.train.class_names),
            preprocessing=self._preprocessing(steps),
            trained=trained,
        )

    def _model_args(self) -> dict[str, Any]:
        drop_path = {"drop_path_rate": self._config.model.drop_path} if self._config.model.drop_path else {}
        return {**self._config.model.args, **drop_path}
