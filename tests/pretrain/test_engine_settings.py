"""Engines' settings: which optimiser goes with which engine, and DeepSpeed's JSON, which is derived and not contradicted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.pretrain.engines.compatible import BY_ROWS, COUNTING_BY_GROUP, ELEMENTWISE, optimizer_problem
from bamboo.pretrain.engines.deepspeed_json import derive, merge, read_json
from bamboo.pretrain.engines.portable import by_name, check_groups, group_names
from bamboo.pretrain.optimizer import create_optimizer
from bamboo.pretrain.settings.pretrain import EngineSettings, OptimizerSettings
from tests.pretrain.launch import options

OURS: dict[str, Any] = {
    "zero_stage": 2,
    "offload": False,
    "precision": "bf16",
    "clip_norm": 1.0,
    "accumulate": 2,
    "global_batch_size": 24,
    "world_size": 2,
}


def stepped(name: str, weights: list[torch.Tensor], gradients: list[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """Returns all weights in a row after a step for each list of gradients, and the optimiser."""
    module = torch.nn.ParameterList([torch.nn.Parameter(weight.clone()) for weight in weights])
    optimizer = create_optimizer(module, OptimizerSettings(name=name, lr=0.01, weight_decay=0.05))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.05  # of vectors too, for a slice is one
    for row in gradients:
        for parameter, gradient in zip(module.parameters(), row, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]), optimizer


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_elementwise_optimisers_are(name: str) -> None:
    """Two matrices stepped by themselves against the first and second half of them in a row, as ZeRO cuts them, for five steps."""
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = [[torch.randn(shape, generator=generator) for shape in ((6, 4), (5, 3))] for _ in range(6)]
    rows = [torch.cat([tensor.flatten() for tensor in row]) for row in (weights, *gradients)]
    whole, optimizer = stepped(name, weights, gradients)
    halves = [stepped(name, [rows[0][cut]], [[row[cut]] for row in rows[1:]])[0] for cut in (slice(0, 20), slice(20, None))]
    torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-6, atol=1e-7)
    assert ("step" in optimizer.param_groups[0]) == (name in COUNTING_BY_GROUP)


@pytest.mark.parametrize("name", ["lamb", "muon", "lars", "adafactor", "cadamw", "novograd"])
def test_optimisers_that_look_at_whole_parameters(name: str) -> None:
    """The same steps come out otherwise, or cannot be made: from stage 1 on they are refused, by name and with what is allowed."""
    generator = torch.Generator().manual_seed(0)
    weights, *gradients = [[torch.randn(shape, generator=generator) for shape in ((6, 4), (5, 3))] for _ in range(6)]
    rows = [torch.cat([tensor.flatten() for tensor in row]) for row in (weights, *gradients)]
    whole, _ = stepped(name, weights, gradients)
    halves = [stepped(name, [rows[0][cut]], [[row[cut]] for row in rows[1:]])[0] for cut in (slice(0, 20), slice(20, None))]
    assert not torch.allclose(torch.cat(halves), whole, rtol=1e-6, atol=1e-7)
    for stage in (1, 2, 3):
        (problem,) = optimizer_problem(name, "deepspeed", stage)
        assert problem.startswith(f"optimizer.name={name}:")
        assert f"engine.zero_stage={stage}" in problem
    assert not optimizer_problem(name, "deepspeed", 0)
    assert not optimizer_problem(name, "plain", 1)
    assert bool(optimizer_problem(name, "fsdp", 1)) == (name not in BY_ROWS)


def test_counters_by_group_and_stage_3() -> None:
    """Adan counts a group's steps, of which stage 3 makes one per slice of any group: refused there, allowed below."""
    assert not optimizer_problem("adan", "deepspeed", 2)
    assert "engine.zero_stage=3" in optimizer_problem("adan", "deepspeed", 3)[0]


def test_mistakes_are_named_before_anything_is_touched(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake ends with exit code 2 and the setting's name, and leaves no run folder."""
    (tmp_path / "ds.json").write_text('{"gradient_clipping": 5}')
    deepspeed = {"engine.kind": "deepspeed"}
    for settings, message in (
        ({"engine.zero_stage": "3"}, "engine.zero_stage=3: kind=plain does not use it"),
        ({"engine.reshard": "false"}, "engine.reshard=False: kind=plain does not use it"),
        ({**deepspeed, "engine.zero_stage": "0", "engine.offload": "true"}, "engine.offload=true"),
        ({**deepspeed, "optimizer.name": "lamb"}, "optimizer.name=lamb"),
        ({"engine.kind": "fsdp", "optimizer.name": "muon"}, "optimizer.name=muon"),
        ({**deepspeed, "engine.zero_stage": "3", "model.compile": "true"}, "model.compile=true"),
        ({**deepspeed, "engine.deepspeed_json": str(tmp_path / "none.json")}, "engine.deepspeed_json"),
        ({**deepspeed, "engine.deepspeed_json": str(tmp_path / "ds.json")}, "optimizer.clip_norm makes it 0.0"),
    ):
        assert main(["pretrain", *options(pool, tmp_path / "run", settings)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not EngineSettings().problems()


def test_a_json_may_add_keys() -> None:
    """Keys that are not ours come in beside ours, "auto" and equal values stand for ours."""
    theirs = {
        "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000},
        "gradient_clipping": "auto",
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 6,
        "wall_clock_breakdown": True,
    }
    merged = merge(derive(**OURS), theirs, Path("x.json"), 24)
    assert merged["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert merged["wall_clock_breakdown"] is True
    assert merged["gradient_clipping"] == 1.0
    assert merged["gradient_accumulation_steps"] == 2
    assert "train_batch_size" not in merged
    assert merged["torch_autocast"]["enabled"] is True


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"zero_optimization": {"stage": 3}}, ("zero_optimization.stage=3", "engine.zero_stage makes it 2")),
        ({"train_batch_size": 32}, ("train_batch_size=32", "run.global_batch_size makes it 24")),
        ({"gradient_accumulation_steps": 4}, ("gradient_accumulation_steps=4", "run.accumulate makes it 2")),
        ({"bf16": {"enabled": True}}, ("bf16.enabled=true", "run.precision makes it false")),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ("offload_optimizer.device", 'engine.offload makes it "none"')),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1}}}, ("optimizer:", "optimizer.name")),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, ("zero_optimization.offload_param", "not supported")),
    ],
)
def test_a_json_that_contradicts_is_refused(theirs: dict[str, Any], named: tuple[str, str]) -> None:
    """The message names DeepSpeed's key with its value, and our setting with what it makes of it; two faults are told at once."""
    with pytest.raises(UserError) as caught:
        merge(derive(**OURS), {**theirs, "scheduler": {"type": "WarmupLR"}}, Path("x.json"), 24)
    assert all(part in str(caught.value) for part in (*named, "scheduler", "x.json"))


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    """Half a file, a list, an empty file: a UserError that names the file."""
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"ds\.json"):
        read_json(path)


def test_a_state_by_number_becomes_one_by_name() -> None:
    """PyTorch's own state dict of two groups against the parameters themselves; another model's is refused."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.AdamW([{"params": [model[1].weight]}, {"params": []}, {"params": [model[0].bias, model[0].weight], "lr": 0.5}])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    names = group_names(model, optimizer)
    assert names == [["1.weight"], ["0.bias", "0.weight"]]
    tree = by_name(saved, names)
    check_groups(tree, names)
    assert [group["lr"] for group in tree["groups"]] == [0.001, 0.5]
    assert torch.equal(tree["state"]["0.weight"]["exp_avg"], optimizer.state[model[0].weight]["exp_avg"])
    with pytest.raises(RuntimeError, match=r"0\.bias"):
        check_groups(json.loads(json.dumps({"groups": [{"params": ["1.weight"]}, {"params": ["0.weight"]}]})), names)
