"""`bamboo probe` from images to a row, on pixels of easily told images."""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bamboo.linear_probe.protocols.registry as protocol_module
from bamboo.linear_probe.probe import Cell, Extraction, cell_features, look_up, open_cell, open_splits, run
from bamboo.linear_probe.protocols.neighbours import Knn
from bamboo.linear_probe.protocols.outcome import Outcome
from bamboo.linear_probe.results import FILE_NAME, ResultRow, read_rows
from bamboo.model_zoo.backbone import open_backbone
from tests.linear_probe.pictures import arguments, draw, probe
from tests.pretrain.launch import ENVIRONMENT

FILES = ["classes.json", "curve.json", "curve.png", "predictions.npz", "row.json", "split.npz"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"))


def rows_in(folder: Path) -> tuple[ResultRow, ...]:
    return read_rows(folder / "probe" / FILE_NAME).rows


def test_a_probe_from_images_to_a_row(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Raw pixels of separable classes: all right, a certified row, the cell's folder; a second call prints the row it has."""
    assert probe(images, tmp_path, "--dry-run") == 0
    assert "would evaluate pixels:16 on folder (90 train and 30 test images, 3 classes)" in capsys.readouterr().out
    assert not (tmp_path / "probe").exists()
    assert probe(images, tmp_path) == 0
    said = capsys.readouterr().out
    assert "pixels:16 on folder (standard): top-1 100.00 ± 0.00 %" in said
    assert "penalty = " in said
    assert "relative gap ≤ " in said
    (row,) = rows_in(tmp_path)
    assert (row.value, row.metric, row.protocol, row.details["num_train"], row.details["num_test"]) == (1.0, "top1", "standard", 90, 30)
    assert (row.subset, row.selected_on, row.details["num_val"]) == ("100p", "validation", 18)
    assert row.certificate["relative_gap"] <= 1e-6
    assert row.scores["mean_per_class"]["value"] == 1.0
    assert set(row.seconds) == {"features", "prepare", "sweep", "refit", "test"}
    assert probe(images, tmp_path) == 0
    assert "--force evaluates again" in capsys.readouterr().out
    assert probe(images, tmp_path, "--seed", "1") == 0
    assert probe(images, tmp_path, "--force") == 0
    rows = rows_in(tmp_path)
    assert [other.seed for other in rows] == [0, 1, 0]
    assert rows[2].value == row.value
    assert rows[2].certificate == row.certificate


def test_the_folder_of_a_cell(images: Path, tmp_path: Path) -> None:
    """Its files against the row: predictions, rows in use, split, class names, the curve in its format, and the row itself."""
    assert probe(images, tmp_path, "--subset", "50p") == 0
    (row,) = rows_in(tmp_path)
    folder = tmp_path / "probe" / row.details["folder"]
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert "_50p-" in folder.name
    with np.load(folder / "predictions.npz", allow_pickle=False) as stored:
        assert (stored["predictions"] == stored["labels"]).all()
    with np.load(folder / "split.npz", allow_pickle=False) as stored:
        assert sorted([*stored["train"], *stored["val"]]) == stored["rows"].tolist()
        assert [(stored["rows"] // 30 == label).sum() for label in range(3)] == [15, 15, 15]
        assert str(stored["digest"]) == row.details["split_sha256"]
        assert str(stored["rows_digest"]) == row.details["rows_sha256"]
    assert json.loads((folder / "classes.json").read_text()) == ["dark", "grey", "light"]
    curve = json.loads((folder / "curve.json").read_text())
    assert set(curve) == {"x", "log", "chosen", "points"}
    assert set(curve["points"][0]) == {"x", "val_score", "train_score"}
    assert len(curve["points"]) == row.details["grid_visited"]
    assert curve["points"][curve["chosen"]]["x"] == pytest.approx(row.details["chosen"]["relative_ridge"])
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "row.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(row)))


def test_every_protocol_makes_a_row(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five (SGD and L-BFGS shortened) on a tenth of the rows: one row each, of a folder of its own; `bamboo-2022` needs one a class."""
    short: dict[str, dict[str, Any]] = {
        "dino-linear": {"num_steps": 30, "batch_size": 32},
        "bamboo-2022": {"penalties": (1e-3, 1.0), "num_steps": 10, "scored_every": 5},
    }
    for name, changes in short.items():
        changed = dataclasses.replace(protocol_module.PROTOCOLS[name], **changes)
        monkeypatch.setitem(protocol_module.PROTOCOLS, name, changed)
    for name in protocol_module.PROTOCOLS:
        assert probe(images, tmp_path, "--protocol", name, "--subset", "10p") == 0
    rows = rows_in(tmp_path)
    assert [row.protocol for row in rows] == ["standard", "clip", "bamboo-2022", "knn", "dino-linear"]
    assert [row.selected_on for row in rows] == ["validation", "validation", "test", "validation", "validation"]
    assert [row.details["num_train"] for row in rows] == [9] * 5
    assert all(row.value > 0.5 for row in rows)
    assert len({row.details["folder"] for row in rows}) == 5
    assert set(rows[3].details["variants"]) == {"k=10", "k=20", "k=100", "k=200"}
    assert (rows[2].details["split_sha256"], rows[2].details["val_score"], rows[2].certificate) == (None, None, {})
    assert probe(images, tmp_path, "--protocol", "bamboo-2022", "--subset", "1shot") == 0


def test_warnings_are_printed(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """k above the number of keys: said on the terminal, when it is computed and when it is looked up."""
    for _ in range(2):
        assert probe(images, tmp_path, "--protocol", "knn", "--subset", "5shot") == 0
        said = capsys.readouterr().out
        assert "pixels:16 on folder (knn, 5shot)" in said
        assert "warning: k = 20, 100, 200 exceeds the keys there are: capped at 12 to choose and at 15 to test" in said


def test_a_crash_between_folder_and_row(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line lost, the folder finished: the row is added again (not by --dry-run); no marker in it either: computed anew."""
    assert probe(images, tmp_path) == 0
    results = tmp_path / "probe" / FILE_NAME
    (row,) = rows_in(tmp_path)
    results.unlink()
    assert probe(images, tmp_path, "--dry-run") == 0
    assert "--force evaluates again" in capsys.readouterr().out
    assert not results.exists()
    assert probe(images, tmp_path) == 0
    assert rows_in(tmp_path) == (row,)
    results.unlink()
    (tmp_path / "probe" / row.details["folder"] / "row.json").write_text('{"model": "pix')
    assert probe(images, tmp_path) == 0
    (again,) = rows_in(tmp_path)
    assert again.seconds != row.seconds
    assert again.certificate == row.certificate


def test_a_crash_inside_the_folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while the folder is written anew: its marker is gone, and no line was added."""
    assert probe(images, tmp_path) == 0
    folder = tmp_path / "probe" / rows_in(tmp_path)[0].details["folder"]

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bamboo.linear_probe.cell_folder.write_split", fail)
    assert probe(images, tmp_path, "--force") == 130
    assert not (folder / "row.json").exists()
    assert len(rows_in(tmp_path)) == 1


def test_another_name_for_the_same_weights(images: Path, tmp_path: Path) -> None:
    """--model-name: a row under that name, copied from the one there is, its features and folder shared."""
    assert probe(images, tmp_path) == 0
    assert probe(images, tmp_path, "--model-name", "raw pixels") == 0
    assert probe(images, tmp_path, "--model-name", "raw pixels") == 0
    first, second = rows_in(tmp_path)
    assert (first.model, second.model) == ("pixels:16", "raw pixels")
    assert dataclasses.replace(second, model=first.model) == first
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_name_for_the_same_set(images: Path, tmp_path: Path) -> None:
    """The same folder under two names: a row of each, the second copied from the first; neither is added twice."""
    (tmp_path / "sets").mkdir()
    for name in ("a", "b", "a", "b"):
        if not (tmp_path / "sets" / name).exists():
            (tmp_path / "sets" / name).symlink_to(images)
        assert probe(tmp_path / "sets", tmp_path, "--dataset", f"folder:{name}") == 0
    first, second = rows_in(tmp_path)
    assert (first.dataset, second.dataset) == ("folder:a", "folder:b")
    assert dataclasses.replace(second, dataset=first.dataset) == first


def opened(images: Path, protocol: str, subset: str = "100p", validation_rows: list[int] | None = None) -> Cell:
    """Returns the cell of pixels on the images, of whose training rows some may be an official validation part."""
    splits = open_splits("folder", images, any_counts=False)
    if validation_rows is not None:
        splits = dataclasses.replace(splits, train=dataclasses.replace(splits.train, validation_rows=np.array(validation_rows)))
    protocols = protocol_module.PROTOCOLS
    return open_cell(open_backbone("pixels:8"), "folder", splits, protocols[protocol], precision="fp32", seed=0, subset=subset)


def extraction(folder: Path) -> Extraction:
    return Extraction(cache=folder / "cache", batch_size=16, workers=0, device=torch.device("cpu"))


def test_another_validation_part_is_another_evaluation(images: Path, tmp_path: Path) -> None:
    """The row of one official part is found for that part alone; a subset, and what selects on nothing of it, know no part."""
    parts = None, [0, 30, 60], [1, 31, 61]
    row = run(opened(images, "knn", validation_rows=parts[1]), extraction(tmp_path), tmp_path)
    found = [look_up(opened(images, "knn", validation_rows=part), tmp_path)[0] for part in parts]
    assert [other and other.seconds for other in found] == [None, row.seconds, None]
    assert row.identity == opened(images, "knn", validation_rows=parts[1]).identity
    for protocol, subset in (("knn", "50p"), ("bamboo-2022", "100p")):
        assert len({opened(images, protocol, subset, validation_rows=part).identity for part in parts}) == 1


def test_two_processes_with_the_same_cell(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once: one evaluates, the other waits and takes its row; with force both evaluate, one after the other."""
    cell, spans, evaluate = opened(images, "knn"), list[tuple[float, float]](), Knn.evaluate

    def slow(*arguments: Any, **named: Any) -> Outcome:
        started = time.monotonic()
        time.sleep(0.3)
        outcome = evaluate(*arguments, **named)
        spans.append((started, time.monotonic()))
        return outcome

    monkeypatch.setattr(Knn, "evaluate", slow)
    cell_features(cell, extraction(tmp_path))
    for force in (False, True):
        spans.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            coming = [pool.submit(run, cell, extraction(tmp_path), tmp_path, force=force) for _ in range(2)]
            seconds = [future.result().seconds for future in coming]
        assert len(spans) == 1 + force
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
        assert force or seconds[0] == seconds[1]
    assert len(read_rows(tmp_path / FILE_NAME).rows) == 3


def test_mistakes_of_the_user(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown set, subset or protocol, a missing root or checkpoint, a wrong key: exit code 2 and its name; nothing written."""
    for options, said in (
        (("--dataset", "cifar11"), "did you mean 'cifar10'"),
        (("--data-root", str(tmp_path / "none")), "none: no such folder"),
        (("--checkpoint", "runs/none"), "checkpoint=runs/none"),
        (("--data-rot", "x"), "did you mean 'data_root'"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--subset", "10"), "subset='10'"),
        (("--subset", "31shot"), "every class needs 31 rows, but dark has 30, grey has 30, light has 30"),
        (("--protocol", "ridge"), "protocol='ridge'"),
    ):
        assert probe(images, tmp_path, *options) == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert probe(images, tmp_path, "--subset", "1shot") == 2
    assert "no class has two rows" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "probe").iterdir()] == ["locks"]


def test_an_unreadable_image_stops_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged training image: exit code 1, its name in the message, no row."""
    root = draw(tmp_path / "images", 5, 2)
    (root / "train" / "grey" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert probe(root, tmp_path) == 1
    assert "3.png" in capsys.readouterr().err
    assert not (tmp_path / "probe").exists()


@pytest.mark.slow
def test_many_processes_make_the_row_of_one(images: Path, tmp_path: Path) -> None:
    """`torchrun -m bamboo.cli probe` on two ranks: exit code 0, one row, as one process makes it; again: it is looked up."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bamboo.cli"]
    command = [*launcher, *arguments(images, tmp_path / "two")]
    for said in ("row in ", "--force evaluates again"):
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=True, capture_output=True, timeout=240, text=True)
        assert done.stdout.count(said) == 1
    assert probe(images, tmp_path / "one") == 0
    (one,), (two,) = rows_in(tmp_path / "one"), rows_in(tmp_path / "two")
    assert (two.value, two.identity) == (one.value, one.identity)
    assert two.certificate["value"] == pytest.approx(one.certificate["value"], rel=1e-5)
