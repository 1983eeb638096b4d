"""A run: built from its settings on one rank, resumed where it stopped, executed, exported."""

import dataclasses
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from ..cli.config import dump, to_yaml
from ..cli.errors import UserError
from ..datasets.atomic import sha256_json, write_json, write_text
from ..datasets.augment.crops import EvalView, TrainView
from ..datasets.plan.order import PLAN_VERSION, Order
from ..datasets.stream.batches import Batch, EvalBatches, TrainBatches
from ..datasets.stream.loader import load_batches
from ..model_zoo.backbone import create_model
from ..model_zoo.export import Card, write_export
from ..model_zoo.preprocessing import Normalize, Preprocessing
from ..model_zoo.ranks import Ranks
from .checkpoint import Checkpoint, CheckpointFolder, Position, read_checkpoint
from .config import PretrainSettings
from .curves import draw_curves
from .engine import PlainEngine
from .evaluate import evaluate
from .log import Console, JsonLines, Logger, Loggers, TensorBoard, Wandb
from .meter import Meter, peak_flops, training_flops
from .objective import Objective
from .optimizer import NoAverage, create_average, create_optimizer, create_schedule
from .pool import Pool
from .trainer import Cadence, Trainer

_PINNED = ("model", "objective", "optimizer")  # besides the parts of data and run that change the stream or the numbers
_PINNED_DATA = ("image_size", "scale", "ratio", "flip", "interpolation", "mean", "std", "window")
_PINNED_RUN = ("duration", "global_batch_size", "accumulate", "seed", "precision", "ema_decay")


class Run:
    """A run on one rank, built and ready: `Run(config, pool, ranks).execute()`."""

    def __init__(self, config: PretrainSettings, pool: Pool, ranks: Ranks) -> None:
        self._config, self._pool, self._ranks = config, pool, ranks
        self._objective = Objective(config.objective, config.run.seed)
        if ranks.world_size * self._objective.unit * config.run.accumulate > config.run.global_batch_size:
            raise UserError(
                f"run.global_batch_size={config.run.global_batch_size}: cannot feed {ranks.world_size} ranks × "
                f"{config.run.accumulate} accumulation steps{' in pairs' if config.mixes else ''}; raise it or use fewer"
            )
        ranks.share_cores(config.data.workers, config.run.threads)
        self._preprocessing = Preprocessing(
            image_size=config.data.image_size,
            mean=config.data.mean,
            std=config.data.std,
            interpolation=config.data.interpolation,
            crop_fraction=config.data.eval_crop,
        )
        self._normalize = Normalize(self._preprocessing).to(ranks.device)
        torch.manual_seed(config.run.seed)
        model = create_model(config.model.name, num_classes=len(pool.train.class_names), **self._model_args())
        layout = torch.channels_last if config.model.channels_last else torch.contiguous_format
        model = model.to(ranks.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        self._checkpoints = CheckpointFolder(config.run.folder, config.run.keep_checkpoints)
        self._average = create_average(model, config.run.ema_decay)
        self._engine = PlainEngine(
            model,
            create_optimizer(model, config.optimizer),
            ranks,
            precision=config.run.precision,
            clip_norm=config.optimizer.clip_norm,
            compile_model=config.model.compile,
        )
        self._flops = training_flops(model, torch.zeros(1, 3, config.data.image_size, config.data.image_size, device=ranks.device))
        self._peak, self._peak_source = peak_flops(ranks.device, config.run.precision)

    def execute(self) -> None:
        """Trains from the newest checkpoint, or from the start, to the end; exports the model."""
        start = self._resume()
        self._logger = self._open_loggers(start)
        try:
            if start < self._pool.lengths.total_steps:
                self._trainer().train(self._batches(start), start)
            if self._ranks.is_first:
                self._export()
        finally:
            self._logger.close()

    def _trainer(self) -> Trainer:
        run, lengths = self._config.run, self._pool.lengths
        every = [max(lengths.steps(text), 1) for text in (run.log_every, run.eval_every, run.checkpoint_every)]
        return Trainer(
            engine=self._engine,
            objective=self._objective,
            normalize=self._normalize,
            schedule=create_schedule(self._engine.optimizer, self._config.optimizer, lengths),
            average=self._average,
            ranks=self._ranks,
            logger=self._logger,
            meter=Meter(run.global_batch_size, self._flops, self._peak * self._ranks.world_size),
            cadence=Cadence(lengths.total_steps, *every),
            seed=run.seed,
            global_batch_size=run.global_batch_size,
            accumulate=run.accumulate,
            evaluate=self._evaluate,
            save=self._save,
        )

    def _batches(self, start: int) -> Iterator[Batch]:
        data, run = self._config.data, self._config.run
        view = TrainView(data.image_size, scale=data.scale, ratio=data.ratio, flip=data.flip, interpolation=data.interpolation)
        order = Order(self._pool.train.shard_counts, seed=run.seed, window=data.window)
        ranks, unit = self._ranks, self._objective.unit
        source = TrainBatches(self._pool.train, order, view, run.seed, run.global_batch_size, ranks.rank, ranks.world_size, unit)
        return self._load(source, range(start, self._pool.lengths.total_steps))

    def _load(self, source: Any, numbers: range) -> Iterator[Batch]:
        data = self._config.data
        pin = self._ranks.device.type == "cuda"
        return load_batches(source, numbers, workers=data.workers, prefetch=data.prefetch, pin=pin)

    def _evaluate(self, step: int) -> None:
        if self._pool.val is None:
            return
        view = EvalView(
            self._config.data.image_size, crop_fraction=self._config.data.eval_crop, interpolation=self._config.data.interpolation
        )
        source = EvalBatches(self._pool.val, view, self._config.run.eval_batch_size, self._ranks.rank, self._ranks.world_size)
        batches = self._load(source, range(len(source)))
        score = evaluate(self._average.module, self._normalize, batches, self._ranks, self._config.run.precision)
        self._logger.write({"kind": "eval", "step": step, **dataclasses.asdict(score)})
        if self._ranks.is_first:
            draw_curves(self._config.run.folder)

    def _save(self, step: int) -> None:
        if self._ranks.is_first:
            model, optimizer = self._engine.save()
            average = None if isinstance(self._average, NoAverage) else self._average.module.state_dict()
            position = Position(step, step * self._config.run.global_batch_size, self._config.run.seed, PLAN_VERSION)
            self._checkpoints.save(Checkpoint(position, model, average, optimizer, self._pinned()))
        self._ranks.barrier()

    def _resume(self) -> int:
        """Loads the newest whole checkpoint, chosen by rank 0 for all; returns the steps done."""
        newest = self._ranks.from_first(str(self._checkpoints.newest() or "") if self._ranks.is_first else "")
        if not newest:
            return 0
        checkpoint = read_checkpoint(Path(newest))
        self._refuse_changes(checkpoint, Path(newest))
        self._engine.load(checkpoint.model, checkpoint.optimizer)
        if checkpoint.average is not None:
            self._average.module.load_state_dict(checkpoint.average)
        return checkpoint.position.step

    def _pinned(self) -> dict[str, Any]:
        tree = dump(self._config)
        pinned = {name: tree[name] for name in _PINNED}
        pinned["data"] = {name: tree["data"][name] for name in _PINNED_DATA}
        pinned["run"] = {name: tree["run"][name] for name in _PINNED_RUN}
        return {**pinned, "plan_version": PLAN_VERSION, "data_hash": self._pool.train.data_hash}

    def _refuse_changes(self, checkpoint: Checkpoint, path: Path) -> None:
        then, now = _flatten(checkpoint.pinned), _flatten(self._pinned())
        differing = [name for name in sorted(then | now) if then.get(name) != now.get(name)]
        if differing:
            changes = [f"  {name}: was {then.get(name)!r}, is {now.get(name)!r}" for name in differing]
            remedy = "give the old values back, or another run.folder"
            raise UserError("\n".join([f"run.folder={path.parent.parent}: holds a run with other settings; {remedy}", *changes]))

    def _open_loggers(self, start: int) -> Loggers:
        run = self._config.run
        if not self._ranks.is_first:
            return Loggers([])
        run.folder.mkdir(parents=True, exist_ok=True)
        write_text(run.folder / "config.yaml", to_yaml(self._config))
        write_json(run.folder / "run.json", self._describe())
        loggers: list[Logger] = [JsonLines(run.folder), Console(self._pool.lengths.total_steps)]
        if run.tensorboard:
            loggers.append(TensorBoard(run.folder))
        if run.wandb != "disabled":
            loggers.append(Wandb(run.folder, run.wandb, dump(self._config)))
        opened = Loggers(loggers)
        opened.write({"kind": "start", "step": start, "world_size": self._ranks.world_size})
        return opened

    def _describe(self) -> dict[str, Any]:
        return {
            "data_hash": self._pool.train.data_hash,
            "num_classes": len(self._pool.train.class_names),
            "num_samples": len(self._pool.train),
            "total_steps": self._pool.lengths.total_steps,
            "world_size": self._ranks.world_size,
            "flops_per_image": self._flops,
            "peak_flops_per_rank": {"value": self._peak, "source": self._peak_source},
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "device": str(self._ranks.device)},
            "versions": _versions(),
            "command": sys.argv,
        }

    def _export(self) -> None:
        args = {name: value for name, value in self._model_args().items() if name != "drop_path_rate"}
        trained = {
            "data_hash": self._pool.train.data_hash,
            "config_hash": sha256_json(self._pinned()),
            "steps": self._pool.lengths.total_steps,
            "weights": "model" if isinstance(self._average, NoAverage) else "ema",
            "versions": _versions(),
        }
        card = Card(
            architecture=self._config.model.name,
            model_args=args,
            classes=tuple(self._pool.train.class_names),
            preprocessing=self._preprocessing,
            trained=trained,
        )
        write_export(self._config.run.folder / "export", self._average.module.state_dict(), card)

    def _model_args(self) -> dict[str, Any]:
        drop_path = {"drop_path_rate": self._config.model.drop_path} if self._config.model.drop_path else {}
        return {**self._config.model.args, **drop_path}


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
    }


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat
