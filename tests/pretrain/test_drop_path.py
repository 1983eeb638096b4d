"""Stochastic depth at one rate in every block, against timm's own."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath

from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.pretrain.drop_path import even_drop_path
from bamboo.pretrain.log import read_log
from tests.pretrain.launch import options

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def rates(model: torch.nn.Module) -> list[float]:
    return [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]


@pytest.mark.parametrize(("name", "args", "branches"), [("deit3_small_patch16_224", VIT, 6), ("resnet18", {}, 8)])
def test_every_block_has_the_rate(name: str, args: dict[str, int], branches: int) -> None:
    """Timm's rates rise from 0, where it has no module at all; ours are one number, and evaluation and the weights stay the same."""
    torch.manual_seed(0)
    model = timm.create_model(name, drop_path_rate=0.4, **args).eval()
    images, state = torch.randn(2, 3, 16, 16), list(model.state_dict())
    before = model(images)
    assert len(set(rates(model))) > 1
    even_drop_path(model, 0.4, name)
    assert rates(model) == [0.4] * branches
    assert torch.equal(model(images), before)
    assert list(model.state_dict()) == state


def test_a_network_without_blocks_is_refused() -> None:
    """VGG: setting, name and remedy."""
    with pytest.raises(UserError, match=r"model\.drop_path_even=true: model\.name=vgg11 .*leave it out"):
        even_drop_path(timm.create_model("vgg11"), 0.1, "vgg11")


def test_a_run_has_it(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step from the same weights and draws, with timm's rates and with ours: other losses. Without a rate the setting is refused."""
    settings = {"model.drop_path_even": "true", "run.duration": "1 steps"}
    assert main(["pretrain", *options(pool, tmp_path / "refused", settings)]) == 2
    assert "drop_path_even=true: nothing is left out with drop_path=0" in capsys.readouterr().err
    losses = set()
    for even in ("true", "false"):
        chosen = {**settings, "model.drop_path": "0.9", "model.drop_path_even": even}
        assert main(["pretrain", *options(pool, tmp_path / even, chosen)]) == 0
        losses.add(read_log(tmp_path / even, "train")[0]["loss"])
    assert len(losses) == 2
