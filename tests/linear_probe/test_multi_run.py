"""`multi_run` on three models and four sets: kills, failures, workers, the plan before it starts, and SLURM."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.cli.config import load
from bamboo.cli.main import main
from bamboo.linear_probe.failures import read_failures
from bamboo.linear_probe.matrix.tasks import read_state, split_label, tasks_of, write_state
from bamboo.linear_probe.multi_run import MultiRunSettings
from bamboo.linear_probe.results import read_rows
from tests.slurm.cluster import loopback_cluster

MODELS = ("pixels:4", "pixels:6", "net=untrained:test_resnet")
SETS = ("folder:a", "folder:b", "folder:c", "folder:d")
START_LIMIT_S = 120.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the four sets: three classes, 12 training and 6 test images each."""
    root = tmp_path_factory.mktemp("data")
    for at, name in enumerate(SETS):
        random = np.random.default_rng(at)
        for split, count in (("train", 12), ("test", 6)):
            for label, shade in enumerate((60, 120, 180)):
                folder = root / name.removeprefix("folder:") / split / f"class{label}"
                folder.mkdir(parents=True)
                for number in range(count):
                    noisy = random.normal(shade, 50, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                    Image.fromarray(noisy).save(folder / f"{number}.png")
    return root


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    given = ["--models", *MODELS, "--datasets", *SETS, "--data-root", str(data), "--out", str(out), "--cache", str(out / "features")]
    return [*given, "--precision", "fp32", "--workers", "0", *more]


def start(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bamboo.linear_probe.multi_run", *arguments(data, out, *more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def cells(out: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    """Returns every row's cell with what a second evaluation must give again; a cell that has two rows fails."""
    rows = read_rows(out / "results.jsonl").rows
    found = {row.cell: {"value": row.value, "scores": row.scores, "chosen": row.details["chosen"]} for row in rows}
    assert len(found) == len(rows)
    return found


def table(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("| ")]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Returns the folder and the table of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed")
    finished = start(data, out)
    output, errors = finished.communicate(timeout=START_LIMIT_S)
    assert finished.returncode == 0, errors
    assert "[12/12]" in errors
    return out, table(output)


def test_the_table_has_every_cell(undisturbed: tuple[Path, list[str]]) -> None:
    """Twelve rows for 3 × 4 cells, one line a model, each set's accuracy as the row says, in a table without gaps."""
    out, lines = undisturbed
    found = cells(out)
    assert len(found) == len(MODELS) * len(SETS)
    body = {line.split(" | ")[0].strip("| "): line for line in lines[2:]}
    assert {"pixels:4", "pixels:6", "net"} <= set(body)
    for (model, *_), row in found.items():
        assert f"{100 * row['value']:.2f}" in body[model]
    assert not [line for line in lines if "–" in line.replace("---", "")]


def test_kill_9_in_the_middle(data: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]]) -> None:
    """Killed at three moments, each time after some more cells: finished cells keep their folders to the byte and the nanosecond, and
    the table in the end is that of the run that nothing disturbed."""
    for wanted in (2, 5, 9):
        process = start(data, tmp_path)
        deadline = time.monotonic() + START_LIMIT_S
        while len(read_rows(tmp_path / "results.jsonl").rows) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        before = stamps(tmp_path)
    process = start(data, tmp_path)
    output, errors = process.communicate(timeout=START_LIMIT_S)
    assert process.returncode == 0, errors
    assert errors.count("(recorded before)") >= 9
    after = stamps(tmp_path)
    assert {path: after[path] for path in before} == before
    assert table(output) == undisturbed[1]
    assert cells(tmp_path) == cells(undisturbed[0])


def stamps(out: Path) -> dict[str, tuple[int, bytes]]:
    """Returns change time and content of every file in the folders of cells that have their row."""
    rows = read_rows(out / "results.jsonl").rows
    files = [file for row in rows for file in (out / row.details["folder"]).iterdir()]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_cells_that_cannot_work(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing run, a set that is not there and a damaged image: the other cells finish, exit code 1, each reason in the table and the
    journal; mended, the same command evaluates what was missing and nothing else."""
    broken = tmp_path / "data"
    for name in ("a", "b"):
        shutil.copytree(data / name, broken / name)
    good = (broken / "b" / "test" / "class0" / "0.png").read_bytes()
    (broken / "b" / "test" / "class0" / "0.png").write_bytes(good[:40])
    out = tmp_path / "out"
    words = ["multi_run", "--models", "pixels:4", "runs/none", "--datasets", *SETS[:3], "--data-root", str(broken), "--out", str(out)]
    words += ["--cache", str(tmp_path / "features"), "--precision", "fp32", "--workers", "0", "--device", "cpu"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert len(cells(out)) == 1
    for reason in ("checkpoint=runs/none", "0.png", "folder:c"):
        assert reason in said.err
        assert reason in said.out
    assert "5 cells failed" in said.err
    assert len(read_failures(out)) == 5
    (broken / "b" / "test" / "class0" / "0.png").write_bytes(good)
    shutil.copytree(data / "c", broken / "c")
    words.remove("runs/none")
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err.count("(recorded before)") == 1
    assert len(cells(out)) == 3
    assert [line for line in table(said.out) if "failed" in line and not line.startswith("| runs/none")] == []


def test_a_defect_in_one_cell_is_tried_again_and_noted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MemoryError in one of two cells, twice: two attempts, a traceback for each, the other cell finishes; a single one is survived."""
    from bamboo.linear_probe.matrix import worker

    calls: list[str] = []
    run = worker.run

    def failing(cell: Any, *rest: Any, **named: Any) -> Any:
        calls.append(cell.dataset)
        if cell.dataset == "folder:a" and calls.count("folder:a") <= broken:
            raise MemoryError("no room")
        return run(cell, *rest, **named)

    monkeypatch.setattr(worker, "run", failing)
    words = ["multi_run", "--models", "pixels:4", "--datasets", *SETS[:2], "--data-root", str(data), "--workers", "0", "--device", "cpu"]
    for broken, code, counts in ((2, 1, (2, 1)), (1, 0, (2, 1))):
        calls.clear()
        out = tmp_path / str(broken)
        assert main([*words, "--out", str(out), "--cache", str(tmp_path / "features")]) == code
        assert (calls.count("folder:a"), calls.count("folder:b")) == counts
        errors = capsys.readouterr().err
        assert errors.count("MemoryError: no room\n") >= broken
        assert len(cells(out)) == 2 - code


def test_a_dry_run_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbered tasks with their cells, and for SLURM the script; exit code 1 and the reason where a set cannot be opened."""
    assert main(["multi_run", *arguments(data, tmp_path, "--dry-run", "--protocol", "standard", "knn", "--launcher", "slurm")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("standard 100p, knn 100p") == 12
    assert "#SBATCH --array=0-11\n" in shown
    assert main(["multi_run", *arguments(data, tmp_path, "--dry-run", "--roots", "{folder:b: nowhere}")]) == 1
    assert "data_root=nowhere" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--datasets", "fod"], "did you mean 'food'"),
        (["--protocol", "standart"], "did you mean 'standard'"),
        (["--subset", "200p"], "subset"),
        (["--models", "a", "a"], "'a' is given 2 times"),
        (["--models", "x=runs/1", "x=runs/2"], "LABEL=CHECKPOINT"),
        (["--tasks", "12"], "tasks=12"),
        (["--roots", "{pat: /data}"], "did you mean 'pet'"),
        (["--slurm.partion", "gpu"], "did you mean"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    options: list[str], said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown names, names given twice, numbers out of range: exit code 2 with the remedy, and nothing is written."""
    given = arguments(data, tmp_path)
    if options[0] in given:
        at = given.index(options[0])
        end = next(i for i in range(at + 1, len(given)) if given[i].startswith("--"))
        del given[at:end]
    assert main(["multi_run", *given, *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tasks_are_numbered_alike_everywhere(tmp_path: Path) -> None:
    """Model by model, set by set; a set in the folder of its name, elsewhere, or in torchvision's common root; labels."""
    (tmp_path / "pet").mkdir()
    tasks = tasks_of(["m", "n=runs/n"], ["pet", "dtd", "car"], ["knn"], ["100p", "10p"], tmp_path, {"car": Path("/cars")})
    facts = [(task.number, task.model, task.checkpoint, task.dataset) for task in tasks]
    assert facts[2:4] == [(2, "m", "m", "car"), (3, "n", "runs/n", "pet")]
    assert [task.root for task in tasks[:3]] == [tmp_path / "pet", tmp_path, Path("/cars")]
    assert tasks[0].cells == (("knn", "100p"), ("knn", "10p"))
    assert split_label("runs/a=b") == (None, "runs/a=b")


def test_a_state_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    """A torn file, one of something else and a missing one are no state; a whole one comes back as it was."""
    path = tmp_path / "state.json"
    for content in ("", "{", "[]", '{"model": "m"}'):
        path.write_text(content)
        assert read_state(path) is None
    assert read_state(tmp_path / "none.json") is None
    (task,) = tasks_of(["m"], ["pet"], ["knn"], ["100p"], tmp_path, {})
    write_state(path, task.waiting)
    assert read_state(path) == task.waiting


def test_a_finished_cell_outlives_a_mistyped_root(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Done, then tried with a wrong root, then again with the right one: the number stands in every table."""
    words = ["multi_run", "--models", "pixels:4", "--datasets", "folder:a", "--data-root", str(data), "--workers", "0", "--device", "cpu"]
    words += ["--out", str(tmp_path), "--cache", str(tmp_path / "features")]
    tables = []
    for more, code in (((), 0), (("--roots", "{folder:a: nowhere}"), 1), ((), 0)):
        assert main([*words, *more]) == code
        tables.append(table(capsys.readouterr().out))
    assert tables[0] == tables[1] == tables[2]
    assert main([*words, "--dry-run"]) == 0
    assert "standard 100p [row of 20" in capsys.readouterr().out


def test_a_journal_that_cannot_be_written(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """failures.jsonl is a folder: the failure is told on standard error, and the other cell is evaluated."""
    (tmp_path / "failures.jsonl").mkdir()
    words = ["multi_run", "--models", "runs/none", "pixels:4", "--datasets", "folder:a", "--data-root", str(data), "--out", str(tmp_path)]
    assert main([*words, "--cache", str(tmp_path / "features"), "--workers", "0", "--device", "cpu"]) == 1
    errors = capsys.readouterr().err
    assert "not in the journal" in errors
    assert "1 cells failed" in errors
    assert len(cells(tmp_path)) == 1


def test_workers_are_not_started_for_a_device_that_is_not_there(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--device cuda where there is none: the mistake is told at once, exit code 2, not once a task."""
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert main(["multi_run", *arguments(data, tmp_path, "--processes", "2", "--device", "cuda")]) == 2
    assert "device=cuda" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_script_of_the_original(data: Path, tmp_path: Path) -> None:
    """linear_probe/multi_run.sh with commas between models, and options after `--`, against the tasks of the command it stands for."""
    script = Path(__file__).resolve().parents[2] / "linear_probe" / "multi_run.sh"
    more = ["--datasets", "folder:a", "--out", str(tmp_path), "--dry-run"]
    command = ["bash", str(script), str(data), "pixels:4,", "net=untrained:test_resnet", "--", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert [line.split(" (")[0].strip() for line in done.stdout.splitlines()] == ["0  pixels:4 on folder:a", "1  net on folder:a"]
    assert subprocess.run(["bash", str(script), str(data)], capture_output=True, check=False).returncode == 2


def test_the_matrix_files_of_the_project_load() -> None:
    """Every file in configs/linear_probe/ is a matrix; 100p.yaml names the ten sets and all images."""
    folder = Path(__file__).resolve().parents[2] / "configs" / "linear_probe"
    read = {file.name: load(MultiRunSettings, file, {"models": ["m"]}) for file in folder.glob("*.yaml")}
    assert set(read) >= {"100p.yaml", "cifar10.yaml"}
    assert len(read["100p.yaml"].datasets) == 10
    assert read["100p.yaml"].subset == ("100p",)


@pytest.mark.slow
def test_local_workers_and_one_that_dies(data: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]]) -> None:
    """Two worker processes give the undisturbed table; of a worker that is killed the task is started again."""
    process = start(data, tmp_path, "--processes", "2")
    victim = None
    deadline = time.monotonic() + START_LIMIT_S
    while victim is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        has_begun = any(tmp_path.glob("starts/*/0*.json"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if has_begun else []
        victim = int(children[0]) if children else None
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert table(output) == undisturbed[1]
    assert cells(tmp_path) == cells(undisturbed[0])


@pytest.mark.slow
def test_two_starts_at_once(data: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]]) -> None:
    """The same matrix started twice in one folder, and a smaller one with other numbers beside: no failure, no cell evaluated twice."""
    starts = [start(data, tmp_path, "--processes", "2", "--retries", "0") for _ in range(2)]
    words = arguments(data, tmp_path, "--processes", "2", "--retries", "0")
    at = words.index("--models")
    words[at + 1 : at + 4] = [MODELS[2], MODELS[0]]
    other = [sys.executable, "-m", "bamboo.linear_probe.multi_run", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    starts.append(subprocess.Popen(other, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    for process in starts:
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
    assert cells(tmp_path) == cells(undisturbed[0])
    assert not read_failures(tmp_path)


@pytest.mark.slow
def test_sigterm_ends_the_workers_too(data: Path, tmp_path: Path) -> None:
    """SIGTERM to the parent: it is gone within seconds, and so are its workers; the same command goes on."""
    process = start(data, tmp_path, "--processes", "2")
    deadline = time.monotonic() + START_LIMIT_S
    children: list[str] = []
    while len(children) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


@pytest.mark.slow
def test_a_matrix_on_slurm(data: Path, tmp_path: Path, undisturbed: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of tasks under slurmctld and two slurmd gives the undisturbed table; a set that is not there fails alone."""
    with loopback_cluster(tmp_path / "cluster") as config:
        monkeypatch.setenv("SLURM_CONF", str(config))
        out = tmp_path / "out"
        process = start(data, out, "--launcher", "slurm", "--slurm.cpus", "1", "--roots", "{folder:d: nowhere}")
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 1, errors
        assert "3 cells failed" in errors
        assert "data_root=nowhere" in output
        process = start(data, out, "--launcher", "slurm", "--slurm.cpus", "1")
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        assert errors.count("(recorded before)") == 9
        assert table(output) == undisturbed[1]
