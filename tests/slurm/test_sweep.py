"""Sweeps: cells against itertools and by hand, their script under bash, and what a second submission leaves out."""

import itertools
import json
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.slurm.sweep import Cell, read_sweep
from tests.slurm.node import Node, put_programs, script


def read(folder: Path, text: str) -> tuple[Cell, ...]:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return read_sweep(file)


def test_a_grid_has_every_combination(tmp_path: Path) -> None:
    """Names and options of a grid by hand; `1e-3` is a number, a list and a mapping are JSON, which YAML reads."""
    cells = read(tmp_path, "optimizer.lr: [1e-3, 3e-4]\nrun.seed: [0, 1]\n")
    assert [cell.name for cell in cells] == [f"optimizer.lr={lr},run.seed={seed}" for lr in ("0.001", "0.0003") for seed in (0, 1)]
    assert cells[2] == Cell(2, "optimizer.lr=0.0003,run.seed=0", ("--optimizer.lr=0.0003", "--run.seed=0"))
    (cell,) = read(tmp_path, "model.args: [{img_size: 64}]\nmodel.compile: [true]\n")
    assert cell.overrides == ('--model.args={"img_size": 64}', "--model.compile=true")


@given(
    st.dictionaries(st.sampled_from(["a.x", "a.y", "b.z"]), st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True), min_size=1)
)
def test_grids_against_itertools(tmp_path_factory: pytest.TempPathFactory, axes: dict[str, list[int]]) -> None:
    """Options of all cells, in order, against itertools.product; all names differ."""
    cells = read(tmp_path_factory.getbasetemp(), yaml.safe_dump(axes, sort_keys=False))
    expected = [tuple(f"--{key}={value}" for key, value in zip(axes, row, strict=True)) for row in itertools.product(*axes.values())]
    assert [cell.overrides for cell in cells] == expected
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_list_has_a_cell_for_each(tmp_path: Path) -> None:
    """Names and options by hand."""
    cells = read(tmp_path, "- {run.seed: 0, model.name: resnet50}\n- {optimizer.name: lamb}\n")
    assert [cell.name for cell in cells] == ["model.name=resnet50,run.seed=0", "optimizer.name=lamb"]
    assert cells[0].overrides == ("--run.seed=0", "--model.name=resnet50")


def test_a_sweep_that_grows_keeps_its_runs(tmp_path: Path) -> None:
    """Cells of another setting with the same last word, and settings in another order: the names of before."""
    first = "- {model.name: resnet50, run.seed: 0}\n"
    (before,) = read(tmp_path, first)
    assert [cell.name for cell in read(tmp_path, f"{first}- {{optimizer.name: lamb}}\n")] == [before.name, "optimizer.name=lamb"]
    assert read(tmp_path, "- {run.seed: 0, model.name: resnet50}\n")[0].name == before.name
    grid, turned = (read(tmp_path, text) for text in ("a.x: [1, 2]\nb.x: [3]\n", "b.x: [3]\na.x: [2, 1]\n"))
    assert {cell.name for cell in grid} == {cell.name for cell in turned}


def test_names_are_plain_and_tell_cells_apart(tmp_path: Path) -> None:
    """Values that make no folder's name are written without their signs and with a hash; long ones are cut. A cell's name is its own."""
    cells = read(tmp_path, "data.train: [/data/a, 'data a', [x]]\n")
    assert [cell.name.rpartition(",")[0] for cell in cells] == ["data.train=-data-a", "data.train=data-a", "data.train=-x"]
    assert len({cell.name for cell in cells}) == 3
    assert read(tmp_path, "data.train: ['data a']\n")[0].name == cells[1].name
    (long,) = read(tmp_path, f"model.name: [{'x' * 300}]\n")
    assert len(long.name) < 140


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", "must hold a mapping"),
        ("[]", "must hold a mapping"),
        ("[1]", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("optimizer.lr: 1e-3", r"optimizer.lr=0.001: must be a list of values; one value is \[0.001\]"),
        ("optimizer: {lr: [1, 2]}", "spell a setting of a section as optimizer.NAME"),
        ("optimizer.lr: []", "must be a list"),
        ("run.folder: [a, b]", "run.folder is given by --runs"),
        ("dry_run: [true]", "no setting to sweep over"),
        ("run.seed: [0, 0]", "holds run.seed=0 2 times"),
        ("- {run.seed: 0, model.name: a}\n- {model.name: a, run.seed: 0}\n", "holds model.name=a,run.seed=0 2 times"),
        ("run.seed: [0", "not readable as YAML"),
    ],
)
def test_what_is_no_sweep(tmp_path: Path, text: str, said: str) -> None:
    """Each is an error that names the file and the setting."""
    with pytest.raises(UserError, match=said):
        read(tmp_path, text)


def test_each_task_runs_its_own_cell(tmp_path: Path) -> None:
    """The script under bash as two tasks of array 9: each gets the arguments of its cell behind the common ones, and a state of its own.

    To scontrol a task is 9_1: its own job id may be the array's, which means all of it.
    """
    cells = read(tmp_path, '- {run.seed: 0}\n- {data.train: it\'s "a" $b}\n')
    text = script(tmp_path, "--config", "run.yaml", cells=cells, sweep="sweep.yaml", runs=str(tmp_path / "all runs"), max_running=1)
    assert "#SBATCH --array=0-1%1\n" in text
    assert f"#SBATCH --output={tmp_path}/logs/%A_%a.log\n" in text
    stopped = """echo '{"step": 12, "reason": "SIGUSR1"}' > "$BAMBOO_ENDED_FILE"; exit 75"""
    node = Node(tmp_path, 'printf "%s\\n" "$@"; ' + stopped)
    for cell in cells:
        code, output = node.run(text, SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID=str(cell.number))
        assert code == 75
        lines = output.splitlines()
        assert lines[lines.index("bamboo.pretrain") + 1 :][:4] == [
            *("--config", "run.yaml", *cell.overrides),
            f"--run.folder={tmp_path}/all runs/{cell.name}",
        ]
        assert (tmp_path / "logs" / cell.name / "job").read_text() == f"9_{cell.number}\n"
        assert (tmp_path / "logs" / cell.name / "log").readlink() == Path(f"../9_{cell.number}.log")
    assert node.asked == ["requeue 9_0", "requeue 9_1"]
    (tmp_path / "logs" / cells[0].name / "ended.json").write_text('{"step": 80, "reason": "finished"}')
    code, output = node.run(text, SLURM_ARRAY_JOB_ID="10", SLURM_ARRAY_TASK_ID="0")
    assert (code, "bamboo.pretrain" in output) == (0, False)


def test_a_second_submission_leaves_out_what_is_done_or_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four cells one is finished, one is in the queue, one failed and one is new: an array of the last two; then all are done."""
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("run.seed: [0, 1, 2, 3]\n")
    states = [Path(f"runs/slurm/run.seed={seed}") for seed in range(4)]
    for seed, state in enumerate(states[:3]):
        state.mkdir(parents=True)
        (state / "job").write_text(f"9_{seed}\n")
    (states[0] / "ended.json").write_text('{"step": 80, "reason": "finished"}')
    (states[2] / "outcome").write_text("1\nfailed with exit code 1: a reason\n")
    monkeypatch.setenv("PATH", put_programs(tmp_path, {"sbatch": "echo 12", "squeue": "echo 9_1 PENDING"}))
    submit = ["slurm", "submit", "--check", "false", "--sweep", "sweep.yaml", "--runs", "runs", "--", "--config", "run.yaml"]
    assert main(submit) == 0
    assert "submitted 2 cells as job 12: runs/slurm/12.sh" in capsys.readouterr().out
    assert "#SBATCH --array=2-3\n" in Path("runs/slurm/12.sh").read_text()
    assert [(state / "job").read_text() for state in states] == ["9_0\n", "9_1\n", "12_2\n", "12_3\n"]
    for state in states[1:]:
        (state / "ended.json").write_text('{"step": 80, "reason": "finished"}')
    assert main(submit) == 0
    assert "nothing to submit: 4 of 4 cells are finished" in capsys.readouterr().out
    assert main([*submit[:3], "--logs", "runs/slurm", "--check", "false", "--sweep", "sweep.yaml", "--runs", "others", "--", "x"]) == 2
    assert "holds the logs of another sweep" in capsys.readouterr().err
    another = ["--out", "job.sh", "--logs", "runs/slurm", "--sweep", "sweep.yaml", "--runs", "others", "--", "x"]
    assert main(["slurm", "render", *another]) == 2
    assert "holds the logs of another sweep" in capsys.readouterr().err
    assert not Path("job.sh").exists()


def test_a_refused_submission_leaves_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """sbatch refuses a sweep of which one cell has failed: why it failed is still told."""
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("run.seed: [0, 1]\n")
    state = Path("runs/slurm/run.seed=0")
    state.mkdir(parents=True)
    (state / "job").write_text("9_0\n")
    (state / "outcome").write_text("1\nfailed with exit code 1: a reason\n")
    monkeypatch.setenv("PATH", put_programs(tmp_path, {"sbatch": "echo QOSMaxSubmitJobPerUserLimit >&2; exit 1", "squeue": "true"}))
    assert main(["slurm", "submit", "--check", "false", "--sweep", "sweep.yaml", "--runs", "runs", "--", "--config", "run.yaml"]) == 2
    assert "QOSMaxSubmitJobPerUserLimit" in capsys.readouterr().err
    assert main(["slurm", "status", "runs"]) == 0
    assert "failed" in (line := capsys.readouterr().out.splitlines()[1])
    assert "a reason" in line


def test_dry_run_lists_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of each cell on standard error, ready for a shell; on standard output the script that render writes."""
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("run.seed: [0, 1]\n")
    how = ["--sweep", "sweep.yaml", "--runs", "runs", "--", "--config", "a file.yaml"]
    assert main(["slurm", "submit", "--dry-run", *how]) == 0
    found = capsys.readouterr()
    folder = f"--run.folder={tmp_path}/runs/run.seed=1"
    assert shlex.split(found.err.splitlines()[1]) == ["1", "bamboo", "pretrain", "--config", "a file.yaml", "--run.seed=1", folder]
    assert not Path("runs").exists()
    assert main(["slurm", "render", "--out", "job.sh", *how]) == 0
    assert Path("job.sh").read_text() == found.out
    assert json.loads(Path("runs/slurm/sweep.json").read_text())["cells"] == ["run.seed=0", "run.seed=1"]


def test_the_arguments_of_every_cell_are_tried(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of three cells cannot work: both are named with pretrain's own words, and nothing is submitted."""
    monkeypatch.chdir(tmp_path)
    Path("sweep.yaml").write_text("- {run.seed: 0}\n- {optimizer.lr: -1}\n- {optimizer.lrr: 1}\n")
    arguments = ["--model.name", "test_vit", "--data.train", str(pool / "train")]
    monkeypatch.setenv("PATH", put_programs(tmp_path, {"sbatch": f"touch {tmp_path}/submitted; echo 7"}))
    assert main(["slurm", "submit", "--sweep", "sweep.yaml", "--runs", "runs", "--", *arguments]) == 2
    said = capsys.readouterr().err
    assert "optimizer.lr=-1: settings is not valid:\n  optimizer.lr=-1" in said
    assert "optimizer.lrr=1: unknown option --optimizer.lrr; did you mean 'optimizer.lr'?" in said
    assert "run.seed=0:" not in said
    assert not (tmp_path / "submitted").exists()
