"""`bamboo sets list|check`: what is printed, and the exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.datasets.downstream.facts import SETS
from bamboo.datasets.downstream.sets import open_described, open_set
from tests.datasets.downstream import official
from tests.datasets.downstream.official import TINY


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official counts as the fixtures have them."""
    for name in ("flower", "caltech"):
        monkeypatch.setitem(SETS, name, TINY[name])


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """One row a set, with the numbers of the table of facts, in columns that line up."""
    assert main(["sets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *SETS]
    assert len({line.index(word) for line, word in ((lines[0], "metric"), (lines[1], "top-1"), (lines[4], "mean per class"))}) == 1
    pet = next(line for line in lines if line.startswith("pet "))
    words = ("Oxford-IIIT Pets", " 37 ", " 3,680 ", " 3,669 ", "mean per class", "torchvision")
    assert not [word for word in words if word not in pet]


def test_list_does_without_torch() -> None:
    """The table is printed by a process that never loads torch."""
    code = "import sys; from bamboo.cli.main import main; code = main(['sets', 'list']); sys.exit(code or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layout, counts, validation part, notes and hashes of both splits against the opened set."""
    official.flower(tmp_path)
    assert main(["sets", "check", "flower", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"Oxford Flowers-102: torchvision's flowers-102 in {tmp_path / 'flowers-102'}; metric mean per class" in said
    assert "6 images, 3 classes, 3 of them the official validation part" in said
    assert "training and validation parts together (3 + 3)" in said
    official.dtd(tmp_path)
    notes = open_described(TINY["dtd"], tmp_path, "train").notes
    assert notes == ("partition 1", "training and validation parts together (6 + 6)")
    for split in ("train", "test"):
        assert f"data {open_set('flower', tmp_path, 'train' if split == 'train' else 'test').data_hash}" in said
    official.caltech(tmp_path)
    assert main(["sets", "check", "caltech", str(tmp_path)]) == 0
    assert "background class included; 3 images per class drawn for training, the rest for the test, seed 0" in capsys.readouterr().out


def test_check_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--decode on sound images: 0; with a corrupt one in each split: 1, and both are named with the reason."""
    official.flower(tmp_path)
    assert main(["sets", "check", "flower", str(tmp_path), "--decode"]) == 0
    assert "16 of 16 images decode" in capsys.readouterr().out
    for number, content in ((2, b"no image"), (9, official.image(0)[:100])):
        (tmp_path / "flowers-102" / "jpg" / f"image_{number:05d}.jpg").write_bytes(content)
    assert main(["sets", "check", "flower", str(tmp_path), "--decode"]) == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}/flowers-102/jpg/image_00002.jpg: not an image of a known format" in said
    assert f"{tmp_path}/flowers-102/jpg/image_00009.jpg: damaged image" in said
    assert "14 of 16 images decode" in said


def test_check_of_shards_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--decode on shard folders, whose store has one read buffer: all decode."""
    official.class_folders(tmp_path / "images", TINY["cifar10"])
    for split in ("train", "test"):
        assert main(["shards", "pack", str(tmp_path / "images" / split), "--out", str(tmp_path / "wds" / split), "--processes", "1"]) == 0
    assert main(["sets", "check", "shards", str(tmp_path / "wds"), "--decode"]) == 0
    assert "70 of 70 images decode" in capsys.readouterr().out


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No command, an unknown one, an unknown set, a folder without it (2), a damaged one (1), and --any-counts."""
    assert main(["sets"]) == 2
    assert "usage: bamboo sets COMMAND" in capsys.readouterr().out
    assert main(["sets", "chek"]) == 2
    assert "did you mean 'check'" in capsys.readouterr().err
    assert main(["sets", "check", "flowers", str(tmp_path)]) == 2
    assert "dataset=flowers: no such set; did you mean 'flower'" in capsys.readouterr().err
    assert main(["sets", "check", "flower", str(tmp_path)]) == 2
    assert "bamboo sets download flower DIR" in capsys.readouterr().err
    official.class_folders(tmp_path, TINY["food"])
    assert main(["sets", "check", "food", str(tmp_path)]) == 1
    assert "3 classes, the official set has 101" in capsys.readouterr().err
    official.flower(tmp_path / "b", ids=official.FLOWER_IDS | {"tstid": [7, 8, 9]})
    assert main(["sets", "check", "flower", str(tmp_path / "b")]) == 1
    assert "3 images, the official test split has 10" in capsys.readouterr().err
    assert main(["sets", "check", "flower", str(tmp_path / "b"), "--any-counts"]) == 0
