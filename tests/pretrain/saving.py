"""Checkpoints without a run around them: a small engine's state, and ranks that are threads."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bamboo.datasets.ranks import ALONE, Ranks
from bamboo.pretrain.average import create_average
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder
from bamboo.pretrain.checkpoints.meeting import Meeting
from bamboo.pretrain.checkpoints.snapshot import Position, Snapshot, take_snapshot
from bamboo.pretrain.engines.plain import PlainEngine


def engine_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None, ranks: Ranks = ALONE) -> PlainEngine:
    """Returns the plain engine around a model."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters())
    return PlainEngine(model, optimizer, dataclasses.replace(ranks, world_size=1), precision="fp32", clip_norm=None)


def trained(step: int, ema_decay: float | None = 0.5) -> Any:
    """Returns (engine, average) of a small model after one step; its values tell the step."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, step)
    engine = engine_of(model)
    average = create_average(engine, ema_decay)
    engine.backward(engine.forward(torch.arange(12.0).view(4, 3)).square().sum(), last=True)
    engine.step(measure=False)
    return engine, average


def snapshots(step: int, world_size: int = 1, **facts: Any) -> list[Snapshot]:
    """Returns every rank's snapshot of the state after `step`."""
    engine, average = trained(step)
    ranks = [Ranks(rank, rank, world_size, torch.device("cpu")) for rank in range(world_size)]
    rest = {"pinned": {"model": {"name": "x"}}, "scores": {}, **facts}
    return [take_snapshot(Position(step, step * 8, 0, 1), engine, average, rank, rest) for rank in ranks]


def save(folder: CheckpointFolder, step: int, world_size: int = 1, **facts: Any) -> Path:
    """Saves the state after `step` from so many ranks."""
    return save_all(folder, snapshots(step, world_size, **facts))[0]


def save_all(folder: CheckpointFolder, parts: Sequence[Snapshot]) -> list[Any]:
    """Saves from ranks that are threads; returns the path, or what was raised, of each; raises where all raised the same."""
    board = Board(len(parts))
    results: list[Any] = [None] * len(parts)

    def work(rank: int) -> None:
        try:
            results[rank] = folder.save(parts[rank], ThreadMeeting(rank, board))
        except Exception as error:  # noqa: BLE001  # handed to the test
            results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if all(isinstance(result, Exception) and str(result) == str(results[0]) for result in results):
        raise results[0]
    return results


class Board:
    """Where threads leave what they say."""

    def __init__(self, world_size: int) -> None:
        self.values: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=60)


class ThreadMeeting(Meeting):
    """A meeting of threads, which need no process group."""

    def __init__(self, rank: int, board: Board) -> None:
        super().__init__()
        self.rank, self.world_size, self._board = rank, len(board.values), board

    def _from_first(self, value: Any) -> Any:
        return self._exchange(value)[0]

    def _from_all(self, value: Any) -> list[Any]:
        values = self._exchange(value)
        return values if self.is_first else []

    def _exchange(self, value: Any) -> list[Any]:
        self._board.values[self.rank] = value
        self._board.barrier.wait()
        values = list(self._board.values)
        self._board.barrier.wait()
        return values
