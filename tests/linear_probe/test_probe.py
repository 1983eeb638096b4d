"""`bamboo probe` from images to a row, on pixels of easily told images."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bamboo.cli.main import main
from bamboo.linear_probe.results import read_rows


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns class folders of 16 × 16 images whose brightness is their class: 30 train and 10 test images each of 3."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for label, name in enumerate(("dark", "grey", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                array = random.normal(60 + 70 * label, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(array).save(root / split / name / f"{number}.png")
    return root


def probe(images: Path, folder: Path, *options: str, checkpoint: str = "pixels:16") -> int:
    place = ["--data-root", str(images), "--out", str(folder / "probe"), "--cache", str(folder / "cache")]
    common = ["--dataset", "folder", "--workers", "0", "--precision", "fp32", "--device", "cpu"]
    return main(["probe", "--checkpoint", checkpoint, *place, *common, *options])


def test_a_probe_from_images_to_a_row(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Raw pixels of separable classes: all right, a certified row, the cell's folder; a second call prints the row it has."""
    assert probe(images, tmp_path, "--dry-run") == 0
    assert "would evaluate pixels:16 on folder (90 train and 30 test images, 3 classes)" in capsys.readouterr().out
    assert not (tmp_path / "probe").exists()
    assert probe(images, tmp_path) == 0
    assert "top-1 100.00 ± 0.00 %" in capsys.readouterr().out
    (row,) = read_rows(tmp_path / "probe" / "results.jsonl").rows
    assert (row.value, row.metric, row.protocol, row.details["num_train"], row.details["num_test"]) == (1.0, "top1", "standard", 90, 30)
    assert row.certificate["relative_gap"] <= 1e-6
    assert row.scores["mean_per_class"]["value"] == 1.0
    assert set(row.seconds) == {"features", "prepare", "sweep", "refit", "test"}
    folder = tmp_path / "probe" / row.details["folder"]
    assert sorted(file.name for file in folder.iterdir()) == ["curve.json", "curve.png", "predictions.npz", "split.npz"]
    with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
        assert (stored["predictions"] == stored["labels"]).all()
    assert len(json.loads((folder / "curve.json").read_text())) == row.details["grid_visited"]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")

    assert probe(images, tmp_path) == 0
    assert "--force evaluates again" in capsys.readouterr().out
    assert probe(images, tmp_path, "--seed", "1") == 0
    assert probe(images, tmp_path, "--force") == 0
    rows = read_rows(tmp_path / "probe" / "results.jsonl").rows
    assert [other.seed for other in rows] == [0, 1, 0]
    assert rows[2].value == row.value
    assert rows[2].certificate == row.certificate


def test_mistakes_of_the_user(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown set, a missing root, a missing checkpoint, a wrong key: exit code 2 and the setting's name; nothing is written."""
    for options, said in (
        (("--dataset", "cifar100"), "dataset='cifar100'"),
        (("--data-root", str(tmp_path / "none")), "none: no such folder"),
        (("--checkpoint", "runs/none"), "checkpoint=runs/none"),
        (("--data-rot", "x"), "did you mean 'data_root'"),
        (("--batch-size", "0"), "batch_size=0"),
    ):
        assert probe(images, tmp_path, *options) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_stops_the_probe(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged training image: exit code 1, its name in the message, no row."""
    root = tmp_path / "images"
    for path in images.rglob("*.png"):
        target = root / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (root / "train" / "grey" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert probe(root, tmp_path) == 1
    assert "7.png" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()
