"""Durations in every unit."""

import pytest

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.pretrain.settings.duration import Lengths
from bamboo.pretrain.settings.pretrain import RunSettings


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("1e3 samples", 32),
        ("2 epochs", 63),
        ("0.5 epochs", 16),
        ("10 %", 20),
        ("0 steps", 0),
        ("7%", 14),  # 7 / 100 · 200 is above 14 in binary floats
    ],
)
def test_duration_in_steps(text: str, steps: int) -> None:
    """Hand-worked: 1,000 samples an epoch, 32 a step, 200 steps in all; rounded up."""
    assert Lengths(1000, 32, 200).steps(text) == steps


@pytest.mark.parametrize("text", ["", "5", "steps", "-1 steps", "5 hours", "1 epochs 2 steps", "nan steps"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    """The message shows the form; exit code 2."""
    with pytest.raises(UserError, match="for example 30 epochs") as caught:
        build(RunSettings, {"folder": "x", "duration": text}, "test")
    assert caught.value.exit_code == 2
