"""Checkpoints that are damaged: passed over, never counted among those to keep, and never a reason to begin anew."""

import shutil
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder
from tests.pretrain.launch import options
from tests.pretrain.saving import save

WEIGHTS = "model-00001-of-00001.safetensors"


def test_a_later_damaged_one_is_not_the_one_to_keep(tmp_path: Path) -> None:
    """Keep 1; the run went back from a damaged step 5, and is stopped after step 3: that checkpoint stays, and is the newest."""
    folder = CheckpointFolder(tmp_path, keep=1, every=2)
    save(folder, 1)
    (save(folder, 5) / WEIGHTS).write_bytes(b"")
    path = save(folder, 3)
    assert folder.newest() == path
    assert (tmp_path / "checkpoints" / "latest").read_text() == f"{path.name}\n"


def test_folders_of_other_names_are_nobodys_business(tmp_path: Path) -> None:
    """A user's copy beside the checkpoints is neither read nor dropped, and stops no save."""
    folder = CheckpointFolder(tmp_path, keep=1, every=2)
    path = save(folder, 1)
    copy = path.with_name(f"{path.name}-copy")
    shutil.copytree(path, copy)
    newest = save(folder, 3)
    assert folder.newest() == newest
    assert copy.exists()


def test_a_run_does_not_begin_anew_over_damaged_checkpoints(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The only checkpoint of a run is damaged: exit code 1 that says what to do, and log and checkpoint stay as they are."""
    arguments = options(pool, tmp_path, {"run.duration": "2 steps"})
    assert main(["pretrain", *arguments]) == 0
    log = (tmp_path / "log.jsonl").read_bytes()
    (damaged,) = (tmp_path / "checkpoints").glob("step-*")
    (damaged / WEIGHTS).write_bytes(b"")
    assert main(["pretrain", *arguments]) == 1
    message = capsys.readouterr().err
    assert f"{WEIGHTS} is not as it was written" in message
    assert "none of its 1 checkpoints is whole" in message
    assert (tmp_path / "log.jsonl").read_bytes() == log
    shutil.rmtree(tmp_path / "checkpoints")
    assert main(["pretrain", *arguments]) == 0
