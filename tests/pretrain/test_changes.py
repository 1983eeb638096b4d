"""Sizes, augmentation and objectives that change in mid-run: when they hold, what they refuse, and that a run resumes exactly in each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from bamboo.cli.config import build, dump, load, to_yaml
from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.datasets.ranks import start_ranks
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import EvalBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.model_zoo.backbone import create_model, open_backbone
from bamboo.model_zoo.export import read_weights
from bamboo.model_zoo.preprocessing import Normalize
from bamboo.pretrain.evaluators.classify import evaluate
from bamboo.pretrain.log import read_log
from bamboo.pretrain.meter import Meter, training_flops
from bamboo.pretrain.phases import plan_phases
from bamboo.pretrain.settings.duration import Lengths
from bamboo.pretrain.settings.pretrain import PretrainSettings
from tests.pretrain.launch import finish, kill_group, options, rank_processes, start, wait_for_step

CHANGES = (
    "[{at: 50 %, data: {image_size: 48, augment: rand, eval_crop: 1.0}, objective: {mixup: 0.5}}, "
    "{at: 9 steps, data: {image_size: 40, augment: none, scale: [0.5, 1.0]}, objective: {mixup: 0, label_smoothing: 0, loss: bce}}]"
)
SETTINGS = {
    "model.args": "{img_size: 32, patch_size: 8, dynamic_img_size: true}",
    "run.duration": "12 steps",
    "run.checkpoint_every": "1 steps",
    "run.keep_checkpoints": "20",
    "run.eval_every": "6 steps",
    "run.ema_decay": "0.9",
    "run.accumulate": "2",
    "data.repeats": "2",
    "model.drop_path": "0.3",
    "changes": CHANGES,
}
COMPARED = ("step", "samples", "loss", "grad_norm", "lr", "stream")


def trace(folder: Path) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in COMPARED) for row in read_log(folder, "train")]


def config_of(changes: list[dict[str, Any]], duration: str = "10 epochs", batch: int = 10) -> PretrainSettings:
    run = {"folder": "x", "duration": duration, "global_batch_size": batch}
    return build(PretrainSettings, {"model": {"name": "resnet18"}, "data": {"train": "x"}, "run": run, "changes": changes}, "test")


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an uninterrupted run with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["pretrain", *options(pool, folder, SETTINGS)]) == 0
    return folder


@pytest.mark.parametrize(("step", "workers"), [(5, "2"), (6, "0"), (7, "2"), (9, "1")])
def test_a_run_resumes_bit_equal_around_the_borders(pool: Path, whole: Path, tmp_path: Path, step: int, workers: str) -> None:
    """From checkpoints around steps 6 and 9, as a run killed there has it: the uninterrupted run's losses, stream, scores and export."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "export")
    (folder / "log.jsonl").unlink()
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    assert main(["pretrain", *options(pool, folder, {**SETTINGS, "data.workers": workers})]) == 0
    assert [row["step"] for row in read_log(folder, "start")] == [step]
    assert trace(folder) == trace(whole)[step:]
    assert read_log(folder, "eval")[-1]["loss"] == read_log(whole, "eval")[-1]["loss"]
    for name in ("model.safetensors", "model.json"):
        assert (folder / "export" / name).read_bytes() == (whole / "export" / name).read_bytes()


@pytest.mark.slow
def test_killed_ranks_resume_bit_equal_around_the_borders(pool: Path, tmp_path: Path) -> None:
    """Two ranks with a worker each, SIGKILL at steps 5, 6, 7, 8 and 9, then three workers: the uninterrupted run's losses, bit for bit."""
    code, output = finish(start(2, options(pool, tmp_path / "whole", SETTINGS)))
    assert code == 0, output
    killed = tmp_path / "killed"
    for step in (5, 6, 7, 8, 9):
        process = start(2, options(pool, killed, {**SETTINGS, "data.workers": "1"}))
        wait_for_step(process, killed, step)
        kill_group(process, rank_processes(process))
    code, output = finish(start(2, options(pool, killed, {**SETTINGS, "data.workers": "3"})))
    assert code == 0, output
    assert trace(killed) == trace(tmp_path / "whole")
    assert len({row["step"] for row in read_log(killed, "start")}) > 1


@pytest.mark.slow
def test_ranks_see_the_same_stream(pool: Path, tmp_path: Path) -> None:
    """One process against three ranks, without stochastic depth, which each rank draws for itself: equal fingerprints, losses to 2e-4."""
    settings = {**SETTINGS, "model.drop_path": "0"}
    assert main(["pretrain", *options(pool, tmp_path / "one", settings)]) == 0
    code, output = finish(start(3, options(pool, tmp_path / "three", settings)))
    assert code == 0, output
    ours, theirs = read_log(tmp_path / "three", "train"), read_log(tmp_path / "one", "train")
    assert [row["stream"] for row in ours] == [row["stream"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=2e-4)


def test_evaluation_and_export_are_of_their_phase(pool: Path, whole: Path, tmp_path: Path) -> None:
    """After the last step of a phase the scores of a run that never changes; at the end those worked out here from the export."""
    unchanged = {**SETTINGS, "changes": "[]"}
    assert main(["pretrain", *options(pool, tmp_path, unchanged)]) == 0
    assert trace(tmp_path)[:6] == trace(whole)[:6]
    assert trace(tmp_path)[6] != trace(whole)[6]
    before, after = read_log(whole, "eval")
    assert {**read_log(tmp_path, "eval")[0], "time": before["time"], "seconds": before["seconds"]} == before
    preprocessing = open_backbone(str(whole)).preprocessing
    assert (preprocessing.image_size, preprocessing.crop_fraction) == (40, 1.0)
    model = create_model("test_vit", num_classes=3, img_size=32, patch_size=8, dynamic_img_size=True)
    model.load_state_dict(read_weights(whole / "export" / "model.safetensors"))
    source = EvalBatches(Shards.open(pool / "val"), preprocessing.view, 256)
    score = evaluate(model, Normalize(preprocessing), load_batches(source, range(1), workers=0), start_ranks("cpu"), "fp32")
    assert (score.top1, score.num_images) == (after["top1"], 37)
    assert score.loss == pytest.approx(after["loss"], rel=1e-6)


def test_floating_point_operations_follow_the_size(whole: Path) -> None:
    """run.json's phases against a count at each size; the meter's mean over a border against the two steps' own."""
    model = create_model("test_vit", num_classes=3, img_size=32, patch_size=8, dynamic_img_size=True)
    facts = json.loads((whole / "run.json").read_text())
    assert [(phase["start"], phase["stop"], phase["image_size"]) for phase in facts["phases"]] == [(0, 6, 32), (6, 9, 48), (9, 12, 40)]
    assert [phase["flops_per_image"] for phase in facts["phases"]] == [
        training_flops(model, torch.zeros(1, 3, size, size)) for size in (32, 48, 40)
    ]
    meter = Meter(10, lambda step: 1.0 if step < 5 else 4.0, peak_flops=8.0)
    for step in (3, 4, 5):
        meter.count(step, 0.0)
    pace = meter.read()
    assert pace.mfu / pace.images_per_s == pytest.approx((1 + 1 + 4) / 3 / 8)


@pytest.mark.parametrize(
    ("at", "duration", "step"),
    [
        ("30 steps", "10 epochs", 30),
        ("90 %", "10 epochs", 90),
        ("90 %", "77 steps", 70),  # 69.3: the first that begins after it
        ("301 samples", "10 epochs", 31),
        ("2.55 epochs", "10 epochs", 26),
        ("33.3 %", "1000 samples", 34),
    ],
)
def test_points(at: str, duration: str, step: int) -> None:
    """Every unit, with 100 samples an epoch and batches of 10, against the first batch that begins at or after the point, by hand."""
    phases = plan_phases(config_of([{"at": at, "data": {"flip": 0.0}}], duration), Lengths(100, 10))
    assert [phase.start for phase in phases] == [0, step]
    assert [phases.at(number).stretch.data.flip for number in (0, step - 1, step, step + 1, 10**6)] == [0.5, 0.5, 0, 0, 0]


def test_points_once_the_batch_size_has_changed() -> None:
    """After 20 steps of 10, batches of 25: step 20 begins at sample 200, so 90 % of 1,000 samples is step 48; step 30 stays step 30."""
    changes = [{"at": "30 steps", "data": {"flip": 0.0}}, {"at": "90 %", "data": {"flip": 1.0}}]
    phases = plan_phases(config_of(changes, batch=25), Lengths(100, 25).with_epoch(100, "10 epochs"), offset=200 - 20 * 25)
    assert [phase.start for phase in phases] == [0, 30, 48]


def test_each_change_goes_on_from_the_one_before() -> None:
    """What a change leaves out stays as it was; what two changes set is the later's."""
    changes = [
        {"at": "1 epochs", "data": {"image_size": 64}, "objective": {"mixup": 1}},
        {"at": "2 epochs", "data": {"scale": [0.5, 1]}},
        {"at": "3 epochs", "data": {"image_size": 96}, "objective": {"mixup": 0}},
    ]
    found = [(s.data.image_size, s.data.scale, s.mixes) for s in config_of(changes).stretches]
    assert found == [(224, (0.08, 1), False), (64, (0.08, 1), True), (64, (0.5, 1), True), (96, (0.5, 1), False)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([{"at": "1 epochs", "data": {"workers": 3}}], ["changes.0.data.workers: cannot change in mid-run", "image_size, scale"]),
        ([{"at": "1 epochs", "objective": {"mixupp": 3}}], ["changes.0.objective.mixupp: cannot change", "label_smoothing, mixup"]),
        ([{"at": "1 epochs", "run": {"seed": 3}}], ["changes.0.run: unknown setting"]),
        ([{"at": "1 epochs"}], ["changes.0.data={} and objective={}: change nothing"]),
        ([{"at": "half", "data": {"flip": 0}}], ["changes.0.at='half'", "30 epochs, 500 steps, 10 %"]),
        ([{"data": {"flip": 0}}], ["changes.0.at: required"]),
        ([{"at": "1 epochs", "data": {"image_size": "big", "flip": 3}}], ["changes.0.data.image_size='big'", "changes.0.data.flip=3"]),
        ([{"at": "1 epochs", "data": {"scale": [0.9, 0.1]}}], ["changes.0.data.scale=(0.9, 0.1)"]),
        ([{"at": "1 epochs", "objective": {"mix_prob": 0.5}}], ["changes.0.objective.mix_prob=0.5: nothing is mixed"]),
    ],
)
def test_mistakes_are_named(changes: list[dict[str, Any]], said: list[str]) -> None:
    """Each mistake, from the settings alone: its place, and what is allowed."""
    with pytest.raises(UserError) as caught:
        config_of(changes)
    assert all(part in str(caught.value) for part in said), caught.value


@pytest.mark.parametrize("points", [["0 steps"], ["100 %"], ["11 epochs"], ["50 %", "5 epochs"], ["6 epochs", "50 %"]])
def test_points_outside_the_run_or_out_of_order_are_refused(points: list[str]) -> None:
    """Points at or beyond the ends, equal or falling: named with the steps that are left."""
    with pytest.raises(UserError, match=r"changes\.\d\.at=.*must come .*inside the run, steps \d+ to 99"):
        plan_phases(config_of([{"at": at, "data": {"flip": 0.0}} for at in points]), Lengths(100, 10))


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_network_that_cannot_take_a_later_size_is_refused_first(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """A ViT of fixed size, for a change near the end: exit code 2, the setting and the remedy, and nothing is written."""
    model = {"model.name": "vit_tiny_patch16_224", "model.args": "{img_size: 32, patch_size: 8, depth: 1}"}
    changes = {"changes": "[{at: 90 %, data: {image_size: 48}}]"}
    assert main(["pretrain", *options(pool, tmp_path / "run", {**model, **changes}), *words]) == 2
    message = capsys.readouterr().err
    assert "changes.0.data.image_size=48: vit_tiny_patch16_224 does not take it" in message
    assert "dynamic_img_size: true" in message
    assert not (tmp_path / "run").exists()


def test_the_dry_run_shows_the_plan(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry-run`: a line per phase with steps, size, augmentation and operations; with `--changes` over a file's."""
    file = tmp_path / "run.yaml"
    file.write_text(f"changes: {CHANGES}\n")
    without = {name: value for name, value in SETTINGS.items() if name != "changes"}
    words = ["--config", str(file), "--dry-run"]
    assert main(["pretrain", *options(pool, tmp_path / "run", without), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test_vit: 101 images of 3 classes, 12 steps of 12")
    assert [line.split(",")[0].strip() for line in lines[1:]] == ["steps 0–5: 32 px", "steps 6–8: 48 px", "steps 9–11: 40 px"]
    assert "augment rand, mixup 0.5" in lines[2]
    assert main(["pretrain", *options(pool, tmp_path / "run", without), *words, "--changes", "[{at: 7 steps, data: {flip: 0}}]"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert not (tmp_path / "run").exists()


def test_other_changes_on_the_same_folder_are_refused(pool: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with checkpoints: old and new value of the change are named. A checkpoint from before the setting goes on without changes."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert main(["pretrain", *options(pool, folder, {**SETTINGS, "changes": CHANGES.replace("48", "56")})]) == 2
    assert "changes.0.data.image_size: was 48, is 56" in capsys.readouterr().err
    assert main(["pretrain", *options(pool, folder, {**SETTINGS, "changes": "[]"})]) == 2
    assert "changes.1.at: was '9 steps', is None" in capsys.readouterr().err


def test_settings_survive_writing(tmp_path: Path) -> None:
    """A run's config.yaml read back: equal settings, stretches included."""
    config = config_of([{"at": "90 %", "data": {"image_size": 288}, "objective": {"mixup": 0.0}}])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = load(PretrainSettings, tmp_path / "config.yaml", {})
    assert (dump(again), again.stretches) == (dump(config), config.stretches)


@pytest.mark.parametrize(
    ("name", "args", "compiled"),
    [("test_resnet", {}, [1, 1, 2, 2, 2]), ("test_vit", {"img_size": 32, "patch_size": 8, "dynamic_img_size": True}, [1, 1, 2, 2, 3])],
)
def test_a_new_size_is_compiled_once(name: str, args: dict[str, Any], compiled: list[int]) -> None:
    """How often a network has been compiled after batches of 32, 32, 48, 48 and 40 pixels, as dynamo counts: docs/recipes.md."""
    torch.compiler.reset()
    counter = CompileCounter()
    model = torch.compile(create_model(name, num_classes=3, **args), backend=counter)
    found = []
    for size in (32, 32, 48, 48, 40):
        model(torch.zeros(2, 3, size, size)).sum().backward()
        found.append(counter.frame_count)
    assert found == compiled
