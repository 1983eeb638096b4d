"""Health of a run: no wait for the device in a step, spikes, garbage collection, and what is said of a rank that is late."""

import gc
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.datasets.stream.batches import Batch
from bamboo.model_zoo.preprocessing import Normalize, Preprocessing
from bamboo.pretrain.average import create_average
from bamboo.pretrain.engines.plain import PlainEngine
from bamboo.pretrain.guards.collector import Collector
from bamboo.pretrain.guards.deadline import Deadlines, Whereabouts, late
from bamboo.pretrain.guards.health import Health
from bamboo.pretrain.guards.nonfinite import all_finite
from bamboo.pretrain.guards.spikes import Spikes
from bamboo.pretrain.log import Loggers, read_log
from bamboo.pretrain.meter import Meter
from bamboo.pretrain.objective import Objective
from bamboo.pretrain.optimizer import create_optimizer
from bamboo.pretrain.profiling.operations import EVALUATION, LOGGING, SAVING
from bamboo.pretrain.schedule import create_schedule
from bamboo.pretrain.settings.duration import Lengths
from bamboo.pretrain.settings.health import HealthSettings
from bamboo.pretrain.settings.objective import ObjectiveSettings
from bamboo.pretrain.settings.optimizer import OptimizerSettings
from bamboo.pretrain.stopping.preemption import Vote
from bamboo.pretrain.stopping.signals import StopSignals
from bamboo.pretrain.trainer import Cadence, Trainer
from tests.pretrain.launch import options

STEPS = 8


class Reads(TorchDispatchMode):
    """Counts values read off the device, by the operation that reads them; it is an `Operations` itself."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.counts: Counter[str] = Counter()

    def step(self, number: int) -> None:
        pass

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield
        self.names.pop()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.counts[self.names[0] if self.names else "between"] += 1
        return function(*args, **(kwargs or {}))


def make_trainer(optimizer: OptimizerSettings, health: HealthSettings, clip: float | None, reads: Reads, steps: int = STEPS) -> Trainer:
    ranks, lengths = start_ranks("cpu"), Lengths(100, 4, total_steps=steps)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    made = create_optimizer(model, optimizer)
    engine = PlainEngine(model, made, ranks, precision="fp32", clip_norm=clip)
    objective = Objective(ObjectiveSettings(), seed=0)
    return Trainer(
        engine=engine,
        objective=lambda step: objective,
        normalize=Normalize(Preprocessing(image_size=8)),
        schedule=create_schedule(made, optimizer, lengths),
        average=create_average(engine, 0.9),
        ranks=ranks,
        logger=Loggers([]),
        meter=Meter(4, lambda step: 1.0, 1.0),
        cadence=Cadence(steps, 4, (), 0),
        seed=0,
        global_batch_size=4,
        accumulate=1,
        evaluate=lambda step: None,
        save=lambda step, samples: None,
        vote=Vote(StopSignals(), ranks),
        health=Health(health, ranks),
        operations=reads,
    )


def batches(steps: int = STEPS) -> Iterator[Batch]:
    for number in range(steps):
        ids = torch.arange(4) + 4 * number
        yield Batch(torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8), ids % 3, ids, torch.ones(4, dtype=torch.bool), ids)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    ("optimizer", "nonfinite", "expected"),
    [
        (OptimizerSettings(name="sgd"), "stop", 0),
        (OptimizerSettings(name="adamw", args={"fused": True}), "skip", 0),
        (OptimizerSettings(name="sgd"), "skip", STEPS),  # the one that is documented, and warned of
    ],
)
def test_a_step_reads_nothing_off_the_device(optimizer: OptimizerSettings, nonfinite: Any, expected: int, clip: float | None) -> None:
    """Values read off the device, counted by a dispatch mode: none outside log lines and saves, or exactly one a step."""
    reads = Reads()
    trainer = make_trainer(optimizer, HealthSettings(nonfinite=nonfinite), clip, reads)
    with reads:
        trainer.train(batches())
    assert sum(count for name, count in reads.counts.items() if name not in (LOGGING, SAVING, EVALUATION)) == expected
    assert reads.counts[LOGGING] > 0, "it can count"


def test_spikes_equal_numpy() -> None:
    """Random lines with jumps: the same lines are spikes, by the same factor, as numpy finds over the 50 lines before."""
    random = np.random.default_rng(0)
    lines = random.normal(2.0, 0.1, 300)
    lines[[5, 60, 61, 200]] += (3.0, 2.0, 2.5, 1.5)
    spikes = Spikes(6.0)
    found = {number: spike.factor for number, line in enumerate(lines) if (spike := spikes.take(float(line))) is not None}
    expected = {}
    for number in range(10, len(lines)):
        before = lines[max(number - 50, 0) : number]
        middle = np.median(before)
        factor = (lines[number] - middle) / max(1.4826 * np.median(np.abs(before - middle)), 0.01 * abs(middle))
        if factor >= 6:
            expected[number] = factor
    assert found == pytest.approx(expected)
    assert found.keys() >= {60, 61, 200}
    assert 5 not in found, "nothing to compare with yet"


def test_spikes_keep_quiet() -> None:
    """A factor of 0, equal lines with a rounding error, figures that are missing or not finite: nothing is said."""
    assert not any(Spikes(0.0).take(value) for value in [1.0] * 20 + [1e9])
    level = Spikes(3.0)
    assert not any(level.take(value) for value in [1.0, 1.0 + 1e-7] * 20 + [None, float("nan"), float("inf")])
    assert level.take(1.1) is not None


def test_a_spike_is_logged(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose loss is tenfold in one step of 14: one row of kind warning, with what was expected; the run goes on."""
    part_loss = Trainer._part_loss
    monkeypatch.setattr(Trainer, "_part_loss", lambda *given: part_loss(*given) * (10 if given[3] == 12 else 1))
    assert main(["pretrain", *options(pool, tmp_path, {"run.duration": "14 steps", "optimizer.lr": "1e-5"})]) == 0
    (row,) = (row for row in read_log(tmp_path, "warning") if "loss" in row)
    assert row["step"] == 13
    assert row["loss"] == pytest.approx(10 * row["loss_expected"], rel=0.5)
    assert row["loss_factor"] > 8


class Circle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_collected_on_schedule() -> None:
    """Circles dropped at every step live until the schedule's step and no longer; afterwards Python's own collection is back."""
    assert gc.isenabled()
    living = []
    with Collector(4) as collector:
        assert not gc.isenabled()
        dropped: list[weakref.ref[Circle]] = []
        for done in range(1, 13):
            dropped.append(weakref.ref(Circle()))
            collector.step(done)
            living.append(sum(reference() is not None for reference in dropped))
    assert living == [1, 2, 3, 0] * 3
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_schedule_lets_nothing_grow() -> None:
    """150 steps of training with a collection every 10: as many objects after the last collections as after the early ones."""
    trainer = make_trainer(OptimizerSettings(name="adamw"), HealthSettings(gc_every=10), None, Reads(), steps=150)
    living = []

    def watched() -> Iterator[Batch]:
        for number, batch in enumerate(batches(150)):
            if number % 10 == 1:  # the step after a collection, with as many steps in the tally
                living.append(len(gc.get_objects()))
            yield batch

    trainer.train(watched())
    assert len(living) == 15
    assert max(living[10:]) <= max(living[2:5]) + 30


def test_no_schedule_leaves_python_its_own() -> None:
    """gc_every=0 touches nothing."""
    with Collector(0) as collector:
        assert gc.isenabled()
        collector.step(1)
        assert gc.get_freeze_count() == 0


def test_all_finite_equals_isfinite() -> None:
    """One NaN or infinity anywhere, of any floating type, among whole numbers and empty tensors, against torch.isfinite."""
    for value in (1.0, float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            tensors = [torch.zeros(3), torch.empty(0), torch.arange(3), torch.full((2, 2), 3e38), torch.zeros(5, dtype=dtype)]
            tensors[-1][3] = value
            assert bool(all_finite(tensors, torch.device("cpu"))) == all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def where(rank: int, operation: str, step: int, marks: int) -> Whereabouts:
    return Whereabouts(rank, operation, "", step, marks, 12.0, f"node{rank // 2}", 1000 + rank)


def test_the_culprit_is_the_rank_behind_all_others() -> None:
    """Hand-made places of four ranks: the one with the fewest marks is named, and so are those without a word."""
    found = {0: where(0, "backward", 17, 103), 1: where(1, "data", 17, 100), 3: where(3, "backward", 17, 103)}
    text = late(found[0], found, 4)
    assert text.splitlines() == [
        "rank 0 (node node0, process 1000): in the backward pass, step 17, for 12 s",
        "  rank 1: waiting for a batch, step 17, for 12 s",
        "  rank 3: in the backward pass, step 17, for 12 s",
        "  no word from rank 2: dead, frozen, or cut off from the run folder",
        "→ rank 1 on node0, waiting for a batch, step 17: the others have passed that and wait for it",
    ]
    del found[1]
    assert "ranks 1-2 did not answer" in late(found[0], found, 4)


def test_limits_follow_the_operation(tmp_path: Path) -> None:
    """The first step, evaluations and saves have the long limit, all else of a later step the short one."""
    deadlines = Deadlines(HealthSettings(first_step_s=9, step_s=3), Ranks(0, 0, 1, torch.device("cpu")), tmp_path)
    seen = [deadlines.limit()[1]]
    for step in (5, 6):  # a run that was resumed
        deadlines.step(step)
        for name in ("data", "evaluation"):
            with deadlines.during(name):
                seen.append(deadlines.limit()[1])
    assert seen == [9, 9, 9, 3, 9]


def test_a_job_that_was_suspended_is_not_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on by an hour while no thread runs, with a limit of a second: nothing ends; then it does after that second."""
    ahead_s, ended = [0.0], threading.Event()
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s[0], sleep=time.sleep)
    monkeypatch.setattr("bamboo.pretrain.guards.deadline.time", clock)
    settings, alone = HealthSettings(first_step_s=1, step_s=1), Ranks(0, 0, 1, torch.device("cpu"))
    with Deadlines(settings, alone, tmp_path, end=lambda code: ended.set()) as deadlines, deadlines.during(EVALUATION):
        ahead_s[0] = 3600.0
        assert not ended.wait(0.5)
        assert ended.wait(10)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_nonfinite": 3}, "give nonfinite=skip"),
        ({"step_s": 0.5}, "allowed are 0 (never) and 1 or more"),
        ({"first_step_s": 5.0}, "at least step_s=900"),
        ({"nonfinite": "ignore"}, "nonfinite"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    """What is refused is named with its remedy."""
    with pytest.raises(UserError) as refused:
        build(HealthSettings, given, "test")
    assert words in str(refused.value)
    assert next(iter(given)) in str(refused.value)
