"""The parts of the demo: its split, its pictures, its diary of stages, its comparison and the pieces of its report."""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bamboo.cli.errors import BambooError, DataError, UserError
from bamboo.cli.main import main
from bamboo.linear_probe.results import ResultRow, append_row
from bamboo.pretrain.demo_data import (
    DIGIT_SIDE,
    NUM_HELD_OUT,
    SEEN,
    SIDE,
    UNSEEN,
    Digits,
    View,
    draw,
    load_digits,
    split_digits,
    write_digits,
)
from bamboo.pretrain.demo_report import bar, data_uri, definitions, image, table_card
from bamboo.pretrain.demo_table import PIXELS, UNTRAINED, Table
from bamboo.pretrain.stages import Diary


@pytest.fixture(scope="module")
def digits() -> Digits:
    """scikit-learn's digits."""
    return load_digits()


def members(split: dict[int, list[int]]) -> set[int]:
    return {number for numbers in split.values() for number in numbers}


@pytest.mark.parametrize(("seed", "shots"), [(0, 20), (1, 5), (2, 100)])
def test_nothing_is_tested_on_what_it_was_trained_on(digits: Digits, seed: int, shots: int) -> None:
    """Pretraining and its validation against every test set, and each probe's training against its test, by number and by pixels."""
    split = split_digits(digits.labels, seed, shots)
    trained = [split["pretrain/train"], split["pretrain/val"]]
    pairs = [(part, split[test]) for part in trained for test in ("all/test", "unseen/test", "centred/test")]
    pairs += [(split[f"{name}/train"], split[f"{name}/test"]) for name in ("all", "unseen", "centred")] + [(trained[0], trained[1])]
    for first, second in pairs:
        assert not members(first) & members(second)
        pixels = [{digits.images[number].tobytes() for number in members(part)} for part in (first, second)]
        assert not pixels[0] & pixels[1]


def test_the_split_is_what_it_says(digits: Digits) -> None:
    """Classes, counts and labels of each part; another seed gives another split."""
    split = split_digits(digits.labels, 0, 20)
    assert set(split["pretrain/train"]) == set(split["pretrain/val"]) == set(SEEN)
    assert set(split["unseen/train"]) == set(split["unseen/test"]) == set(UNSEEN)
    assert all((digits.labels[numbers] == digit).all() for part in split.values() for digit, numbers in part.items())
    assert {len(numbers) for name in ("all/train", "unseen/train") for numbers in split[name].values()} == {20}
    assert {len(numbers) for numbers in split["all/test"].values()} == {NUM_HELD_OUT}
    assert sum(len(split[f"unseen/{side}"][digit]) for side in ("train", "test") for digit in UNSEEN) == (digits.labels >= 5).sum()
    assert split_digits(digits.labels, 1, 20) != split


def test_digits_lie_where_they_should(digits: Digits) -> None:
    """The drawn digit against Pillow's own enlargement, in the middle and at its place; all of the frame is used."""
    pixels = digits.images[0]
    margin = (SIDE - DIGIT_SIDE) // 2
    middle = np.asarray(draw(pixels, View("a", 0, 1, True), 0))
    enlarged = Image.fromarray(np.rot90(pixels).copy()).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)
    assert (middle[margin : margin + DIGIT_SIDE, margin : margin + DIGIT_SIDE] == np.asarray(enlarged)).all()
    solid = np.full((8, 8), 255, np.uint8)
    placed = [np.argwhere(np.asarray(draw(solid, View("a", number, 0, False), 0))) for number in range(500)]
    corners = np.array([found.min(0) for found in placed])
    assert {len(found) for found in placed} == {DIGIT_SIDE**2}
    assert corners.min(0).tolist() == [0, 0]
    assert corners.max(0).tolist() == [SIDE - DIGIT_SIDE] * 2


def test_files_are_written_by_class(digits: Digits, tmp_path: Path) -> None:
    """Folders and files of a small split; a half-written folder is made anew."""
    (tmp_path / "left over").mkdir(parents=True)
    write_digits(digits, {"pretrain/val": {3: [7, 9]}, "unseen/test": {5: [5]}}, 0, tmp_path)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    turned = [
        f"pretrain/val/3{turn}/{number}.png" for turn in ("", "-turned-180", "-turned-270", "-turned-90") for number in ("0007", "0009")
    ]
    assert found == sorted([*turned, "unseen/test/5/0005.png"])
    assert not (tmp_path / "left over").exists()


def test_without_scikit_learn_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An import that fails: exit code 2, one line, nothing written."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "bamboo demo: scikit-learn is not installed: pip install 'bamboo-vision[demo]'\n"
    assert not (tmp_path / "run").exists()


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    """Calls of the work over several diaries of one folder: again only without its proof; a failed stage is not noted."""
    calls: list[str] = []

    def work(diary: Diary) -> None:
        diary.call(["shards", "--help"])
        calls.append("x")
        (tmp_path / "run" / "proof").touch()

    def fails(diary: Diary) -> None:
        diary.call(["shards", "show", str(tmp_path / "nowhere")])

    for _ in range(2):
        diary = Diary(tmp_path / "run" / "demo.json", {"seed": 0}, 2)
        diary.stage("one", "first", tmp_path / "run" / "proof", work)
        with pytest.raises(BambooError, match="bamboo shards ended with exit code 2"):
            diary.stage("two", "second", tmp_path / "run" / "proof", fails)
        assert list(diary.stages) == ["one"]
        assert diary.stages["one"].commands == ("bamboo shards --help",)
    assert len(calls) == 1
    (tmp_path / "run" / "proof").unlink()
    diary.stage("one", "first", tmp_path / "run" / "proof", work)
    assert len(calls) == 2


def test_a_diary_keeps_to_its_own_folder(tmp_path: Path) -> None:
    """Folders of another seed, of somebody else, and with a damaged diary."""
    Diary(tmp_path / "mine" / "demo.json", {"seed": 0}, 1)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        Diary(tmp_path / "mine" / "demo.json", {"seed": 1}, 1)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "photo.jpg").touch()
    with pytest.raises(UserError, match="holds something else"):
        Diary(tmp_path / "theirs" / "demo.json", {"seed": 0}, 1)
    (tmp_path / "mine" / "demo.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Diary(tmp_path / "mine" / "demo.json", {"seed": 0}, 1)


def test_a_launch_passes_the_exit_code_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """torchrun of a module that does not exist: an explained error, with the command as a user types it."""
    diary = Diary(tmp_path / "demo.json", {}, 1)
    with pytest.raises(BambooError, match=r"bamboo\.nowhere ended with exit code 1"):
        diary.launch(1, "bamboo.nowhere", ["--run.duration", "2 epochs"])
    shown = "OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 1 -m bamboo.nowhere --run.duration '2 epochs'"
    assert f"$ {shown}\n" in capfd.readouterr().err


def result(model: str, value: float, folder: str = "x") -> ResultRow:
    """Returns a row as a probe on 796 images of five classes appends it."""
    interval: dict[str, Any] = {"value": value, "standard_error": 0.01, "interval": [value - 0.02, value + 0.02]}
    return ResultRow(
        model=model,
        checkpoint_hash=model,
        dataset="shards",
        data_hash="d",
        protocol="standard",
        protocol_hash="p",
        precision="bf16",
        preprocessing="r",
        seed=0,
        metric="top1",
        value=value,
        standard_error=0.01,
        scores={"top1": interval, "mean_per_class": interval},
        certificate={},
        seconds={},
        versions={},
        date="2026-01-01T00:00:00+00:00",
        details={"folder": folder, "num_train": 1100, "num_test": 796, "num_classes": 5},
    )


def probe(folder: Path, model: str, hits: list[int]) -> None:
    """Stores predictions with these hits, and their row."""
    name = model.replace(":", "-")
    (folder / name).mkdir(parents=True)
    np.savez(folder / name / "predictions.npz", predictions=np.array(hits), labels=np.ones(len(hits), np.int64))
    append_row(folder / "results.jsonl", result(model, sum(hits) / len(hits), name))


def test_leads_are_paired(tmp_path: Path) -> None:
    """Two hand-worked comparisons: differences 1, 1, 0, -1 have mean 1/4 and error √(11/16)/2; and 0, 0, 0, -1."""
    probe(tmp_path, "pretrained", [1, 1, 1, 0])
    probe(tmp_path, "untrained:net (seed 0)", [0, 0, 1, 1])
    with pytest.raises(DataError, match="no row of pixels"):
        Table(tmp_path)
    probe(tmp_path, "pixels:32", [1, 1, 1, 1])
    table = Table(tmp_path)
    assert table.lead(UNTRAINED).value == pytest.approx(0.25)
    assert table.lead(UNTRAINED).standard_error == pytest.approx((11 / 16) ** 0.5 / 2)
    assert str(table.lead(PIXELS)) == "-25.0 ± 21.7"
    assert not table.is_won


def test_a_tie_is_no_win(tmp_path: Path) -> None:
    """Equal accuracies."""
    for model in ("pretrained", "untrained:net", "pixels:32"):
        probe(tmp_path, model, [1, 0])
    assert not Table(tmp_path).is_won


def test_pictures_are_held_in_the_page() -> None:
    """A PNG through its `data:` URI and back; alternative text and caption are escaped."""
    buffer = io.BytesIO()
    Image.new("L", (3, 2), 7).save(buffer, "PNG")
    uri = data_uri(buffer.getvalue())
    assert uri.startswith("data:image/png;base64,")
    assert base64.b64decode(uri.partition(",")[2]) == buffer.getvalue()
    figure = image(buffer.getvalue(), 'a "<b>" & c', "<i>")
    assert 'alt="a &quot;&lt;b&gt;&quot; &amp; c"' in figure
    assert "<figcaption>&lt;i&gt;</figcaption>" in figure


def test_what_is_shown_is_escaped() -> None:
    """Names with markup in a table, a bar and a list of definitions."""
    shown = table_card("<script>", {"<b>": result("m", 0.5), "pixels": result("n", 0.25)})
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert shown.count('class="best"') == 1
    assert "1,100 training and 796 test images, 5 classes" in shown
    assert '50.0 <span class="error">± 1.0</span>' in shown
    assert 'aria-label="&quot;&gt;"' in bar(0.5, (0.4, 0.6), '">')
    assert definitions({"<k>": "<v>"}) == "<dl><dt>&lt;k&gt;</dt><dd>&lt;v&gt;</dd></dl>"


def test_bars_are_to_scale() -> None:
    """Half a bar with a whisker from 40 to 60 %, on a scale of 1000."""
    drawn = bar(0.5, (0.4, 0.6), "half")
    assert '<rect class="fill" width="500.0" height="20"/>' in drawn
    assert "M400.0 10H600.0" in drawn


def test_the_split_is_written_down(digits: Digits, tmp_path: Path) -> None:
    """split.json against the split."""
    split = {"unseen/test": {5: [5, 15]}}
    write_digits(digits, split, 0, tmp_path)
    assert json.loads((tmp_path / "split.json").read_bytes()) == {"unseen/test": {"5": [5, 15]}}
