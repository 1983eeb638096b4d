"""Learning rates against timm's and PyTorch's schedulers, and against rates worked out by hand."""

import math
from typing import Any

import pytest
import torch
from timm.scheduler import create_scheduler_v2

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.pretrain.schedule import create_schedule
from bamboo.pretrain.settings.duration import Lengths
from bamboo.pretrain.settings.optimizer import OptimizerSettings

SCALES = (1.0, 0.75, 0.5625)


def optimizer_of(lr: float) -> torch.optim.Optimizer:
    """Returns an optimiser with a group for each factor of layer decay."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": scale} for scale in SCALES]
    return torch.optim.SGD(groups, lr=lr)


def rates(settings: OptimizerSettings, lengths: Lengths, steps: list[int]) -> list[list[float]]:
    """Returns the groups' rates at each step."""
    optimizer = optimizer_of(settings.lr)
    schedule, found = create_schedule(optimizer, settings, lengths), []
    for step in steps:
        schedule.step_update(step)
        found.append([group["lr"] for group in optimizer.param_groups])
    return found


@pytest.mark.parametrize("warmup", ["0 epochs", "7 steps", "1.5 epochs"])
@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_rates_equal_timms(schedule: Any, warmup: str) -> None:
    """Every step of a run of 90, in any order, by layer: timm's rates, bit for bit."""
    settings = OptimizerSettings(lr=0.3, schedule=schedule, warmup=warmup, min_lr=1e-3, decay_every="25 %", decay_rate=0.2)
    lengths = Lengths(100, 10, total_steps=90)
    steps = [*range(0, 90, 2), *range(89, 0, -2)]
    optimizer = optimizer_of(0.3)
    theirs, _ = create_scheduler_v2(
        optimizer,
        sched="step" if schedule == "constant" else schedule,
        num_epochs=90,
        decay_epochs=23,
        decay_rate=1.0 if schedule == "constant" else 0.2,
        min_lr=1e-3,
        warmup_lr=settings.warmup_lr,
        warmup_epochs=lengths.steps(warmup),
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    for step, ours in zip(steps, rates(settings, lengths, steps), strict=True):
        theirs.step_update(step)
        assert ours == [group["lr"] for group in optimizer.param_groups]


def test_given_points_equal_pytorchs() -> None:
    """Stairs at 30, 60 and 80 epochs of ten steps, each the first step of the lower rate: MultiStepLR's."""
    settings = OptimizerSettings(lr=0.1, schedule="step", decay_at=("60 epochs", "30 epochs", "800 steps"))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [300, 600, 800], gamma=0.1)
    expected = []
    for _ in range(900):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    found = [groups[0] for groups in rates(settings, Lengths(100, 10, total_steps=900), list(range(900)))]
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_schedule_of_ml_images() -> None:
    """Eight stairs of an epoch by 1.297, then a tenth every 25 epochs, 4,400 steps an epoch: the rates of Tencent's script, by hand."""
    settings = OptimizerSettings(
        lr=0.08, schedule="step", warmup="8 epochs", warmup_lr=0.01, warmup_rate=1.297, decay_every="25 epochs", decay_rate=0.1
    )
    lengths = Lengths(17_600_000, 4000, total_steps=60 * 4400)
    by_hand = {0: 0.01, 1: 0.01297, 2: 0.016822, 3: 0.021818, 4: 0.028298, 5: 0.036703, 6: 0.047604, 7: 0.061742, 8: 0.08, 24: 0.08}
    by_hand |= {25: 0.008, 49: 0.008, 50: 0.0008, 59: 0.0008}
    for epoch, expected in by_hand.items():
        first, last = rates(settings, lengths, [epoch * 4400, epoch * 4400 + 4399])
        assert first[0] == last[0] == pytest.approx(expected, rel=1e-4), epoch
    assert [f"{groups[0]:.4f}" for groups in rates(settings, lengths, [epoch * 4400 for epoch in range(8)])] == [
        *("0.0100", "0.0130", "0.0168", "0.0218", "0.0283", "0.0367", "0.0476", "0.0617")
    ]


def test_a_cosine_ends_at_its_least_rate() -> None:
    """Half-way the mean of peak and least rate; past the end the least."""
    settings = OptimizerSettings(lr=1.0, min_lr=0.2)
    found = [groups[0] for groups in rates(settings, Lengths(100, 10, total_steps=80), [0, 40, 80, 200])]
    assert found == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert math.isclose(rates(settings, Lengths(100, 10, total_steps=80), [20])[0][0], 0.2 + 0.4 * (1 + math.sqrt(0.5)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"decay_at": ["3 epochs"]}, "decay_at=['3 epochs']: schedule=cosine does not use it"),
        ({"decay_at": ["3 epochs"], "schedule": "step", "decay_every": "2 epochs"}, "takes the place of decay_every=2 epochs"),
        ({"warmup_every": "3 steps"}, "a linear warm-up has no stairs"),
        ({"decay_every": "3 epochs"}, "decay_every=3 epochs: schedule=cosine has no stairs"),
        ({"decay_rate": 0.5, "schedule": "constant"}, "decay_rate=0.5: schedule=constant has no stairs"),
        ({"min_lr": 1e-5, "schedule": "step"}, "min_lr=1e-05: schedule=step does not use it"),
        ({"warmup_lr": 0.1}, "warmup_lr=0.1: there is no warm-up with warmup=0 epochs"),
        ({"warmup_rate": 1.3, "warmup": "0.0 %"}, "warmup_rate=1.3: there is no warm-up with warmup=0.0 %"),
    ],
)
def test_settings_that_nothing_uses_are_refused(settings: dict[str, Any], said: str) -> None:
    """Each setting without what it belongs to: named with the remedy."""
    with pytest.raises(UserError) as caught:
        build(OptimizerSettings, settings, "test")
    assert said in str(caught.value)
