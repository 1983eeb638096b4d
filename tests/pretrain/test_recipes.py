"""The recipes of configs/pretrain: their headers' commands, their networks at full size, and one tiny run of each with all its settings."""

import math
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.arguments import parse
from bamboo.cli.config import build, dump, load, to_yaml
from bamboo.cli.main import main
from bamboo.model_zoo.backbone import create_model, open_backbone
from bamboo.pretrain.log import read_log
from bamboo.pretrain.optimizer import create_optimizer
from bamboo.pretrain.settings.pretrain import PretrainSettings
from bamboo.slurm.job_settings import SubmitSettings
from bamboo.slurm.script import render_job

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))}
RECIPES = [name for name in FILES if "data/imagenet" in FILES[name].read_text()]
SMALL = {"resnet": {"layers": [1, 1, 1, 1]}, "deit3": {"img_size": 32, "depth": 2, "embed_dim": 192, "num_heads": 3}}


def commands(name: str) -> list[list[str]]:
    """Returns the words of each command in a recipe's header."""
    return [shlex.split(line) for line in re.findall(r"^# command: (.*)$", FILES[name].read_text(), flags=re.MULTILINE)]


def launched(words: list[str]) -> tuple[int, list[str]]:
    """Returns (ranks, arguments of bamboo pretrain) of a command; a job's script is rendered and checked by bash on the way."""
    if words[:2] == ["bamboo", "pretrain"]:
        return 1, words[2:]
    if words[:3] == ["bamboo", "slurm", "submit"]:
        job = parse(SubmitSettings, words[3:], prog="submit", doc="", positional=("arguments",))
        script = render_job(job, ROOT, ())
        assert shlex.join(job.arguments) in script
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
        return job.nodes * job.ranks_per_node, list(job.arguments)
    assert words[:2] == ["torchrun", "--nproc-per-node"]
    assert words[3:5] == ["-m", "bamboo.pretrain"]
    return int(words[2]), words[5:]


def test_there_are_recipes() -> None:
    """The networks that are promised, each with a command for one GPU, one node and several."""
    assert RECIPES == ["resnet101_ml_images", "resnet50_300", "resnet50_90", "vit_base", "vit_large", "vit_small"]
    for name in RECIPES:
        assert [launched(words)[0] for words in commands(name)] == [1, 8, 32]


@pytest.mark.parametrize("name", list(FILES))
def test_every_command_of_a_header_fits_its_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as typed: the same batch and rate whatever the hardware, and the batch divides into ranks, passes, pairs and views."""
    monkeypatch.chdir(ROOT)
    whole = load(PretrainSettings, FILES[name], {})
    assert commands(name)
    for words in commands(name):
        num_ranks, arguments = launched(words)
        config = parse(PretrainSettings, arguments, prog="pretrain", doc="")
        assert config.run.global_batch_size == whole.run.global_batch_size
        assert config.optimizer == whole.optimizer
        parts = num_ranks * config.run.accumulate * (2 if config.mixes else 1)
        assert config.run.global_batch_size % parts == 0, (words, parts)
        assert config.run.global_batch_size % config.data.repeats == 0


DEIT_III: dict[str, Any] = {
    "loss": "bce",
    "bce_threshold": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.8,
    "cutmix": 1.0,
    "switch_prob": 0.5,
    "augment": "three",
    "erase": 0.0,
    "scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "eval_crop": 1.0,
    "repeats": 3,
    "drop_path_even": True,
    "duration": "800 epochs",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": "5 epochs",
    "warmup_lr": 1e-06,
    "min_lr": 1e-05,
}
"""The commands of its repository; its engine sets every target above 0 to 1, and its --min-lr is 1e-5 unless given."""
PAPERS: dict[str, dict[str, Any]] = {
    "resnet50_90": {"lr": 0.4, "warmup_lr": 0.1, "warmup": "5 epochs", "weight_decay": 1e-4, "global_batch_size": 1024},
    "resnet50_300": {"lr": 5e-3, "weight_decay": 0.02, "drop_path": 0.05, "mixup": 0.1, "cutmix": 1.0, "eval_crop": 0.95, "repeats": 3},
    "resnet101_ml_images": {"lr": 0.08, "warmup": "8 epochs", "warmup_lr": 0.01, "warmup_rate": 1.297, "weight_decay": 1e-4},
    "vit_small": {**DEIT_III, "lr": 4e-3, "drop_path": 0.05, "image_size": 224},
    "vit_base": {**DEIT_III, "lr": 3e-3, "drop_path": 0.2, "image_size": 192},
    "vit_large": {**DEIT_III, "lr": 3e-3, "drop_path": 0.45, "image_size": 192},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_its_paper_says(name: str) -> None:
    """The settings against the papers' tables and the commands and defaults of their repositories."""
    tree = dump(load(PretrainSettings, FILES[name], {}))
    found = {key: value for section in ("model", "data", "objective", "optimizer", "run") for key, value in tree[section].items()}
    assert {key: found[key] for key in PAPERS[name]} == PAPERS[name]


@pytest.mark.parametrize(("name", "nesterov"), [("resnet50_90", True), ("resnet101_ml_images", False)])
def test_momentum_is_the_papers(name: str, nesterov: bool) -> None:
    """Goyal et al. have Nesterov's momentum, TensorFlow's MomentumOptimizer has not unless told."""
    optimizer = create_optimizer(torch.nn.Linear(2, 2), load(PretrainSettings, FILES[name], {}).optimizer)
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["nesterov"] is nesterov and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_layer_scale_begins_where_deit_has_it() -> None:
    """1e-4, the default of its repository's models; timm's is 1e-6."""
    model = load(PretrainSettings, FILES["vit_small"], {}).model
    gammas = [weight for key, weight in create_model(model.name, **model.args).named_parameters() if key.endswith("gamma")]
    assert len(gammas) == 24
    assert all((gamma == 1e-4).all() for gamma in gammas)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_network_takes_its_sizes(name: str, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run at full size: the whole network, fed every image size of its phases."""
    data = ["--data.train", str(pool / "train"), "--data.val", str(pool / "val"), "--run.folder", str(tmp_path / "run")]
    smaller = ["--run.global-batch-size", "12", "--dry-run"]  # the pool is smaller than a batch
    assert main(["pretrain", "--config", str(FILES[name]), *data, *smaller]) == 0
    config = load(PretrainSettings, FILES[name], {})
    phases = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  steps")]
    assert [int(re.findall(r": (\d+) px", line)[0]) for line in phases] == [stretch.data.image_size for stretch in config.stretches]


def tiny(name: str, pool: Path, folder: Path) -> Path:
    """Returns a file with all settings of a recipe, but for a shallow, narrow network, small images, three steps and a change after two."""
    tree = dump(load(PretrainSettings, FILES[name], {}))
    args: dict[str, Any] = next(small for kind, small in SMALL.items() if tree["model"]["name"].startswith(kind))
    tree["model"] |= {"args": {**tree["model"]["args"], **args}, "compile": False}
    tree["data"] |= {"train": [str(pool / "train")], "val": str(pool / "val"), "image_size": 32, "workers": 0, "window": 2}
    tree["run"] |= {"folder": str(folder / "run"), "duration": "3 steps", "global_batch_size": 12, "device": "cpu", "log_every": "1 steps"}
    tree["run"] |= {"eval_every": "3 steps", "checkpoint_every": "3 steps", "accumulate": 2, "threads": 1}
    for change in tree["changes"]:
        change |= {"at": "2 steps", "data": {**change["data"], "image_size": 48}}
    path = folder / "tiny.yaml"
    path.write_text(to_yaml(build(PretrainSettings, tree, "tiny")))
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_settings_work_together(name: str, pool: Path, tmp_path: Path) -> None:
    """Three steps, an evaluation and an export with all other settings of the recipe: the losses are finite, and the backbone opens."""
    assert main(["pretrain", "--config", str(tiny(name, pool, tmp_path))]) == 0
    rows = read_log(tmp_path / "run", "train")
    assert len(rows) == 3
    assert all(0 < row["loss"] < math.inf for row in rows)
    assert read_log(tmp_path / "run", "eval")[-1]["num_images"] == 37
    last = load(PretrainSettings, tmp_path / "tiny.yaml", {}).stretches[-1].data
    preprocessing = open_backbone(str(tmp_path / "run")).preprocessing
    assert (preprocessing.image_size, preprocessing.mean, preprocessing.crop_fraction) == (last.image_size, last.mean, last.eval_crop)
