"""Jobs as the command line takes them: settings that cannot work, what is written and printed, and how a job ended."""

import subprocess
from pathlib import Path

import pytest

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.slurm.job_settings import SubmitSettings
from bamboo.slurm.status import Outcome, outcome_of
from tests.slurm.node import put_programs


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arguments": []}, "behind --"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": "a\nb"}, "name='a.*no line break"),
        ({"gpu_type": "h100"}, "give gpus"),
        ({"srun": ["mpi=pmix"]}, "srun='mpi=pmix'"),
        ({"runs": "runs"}, "only a sweep has it"),
        ({"max_running": 2}, "only a sweep has it"),
        ({"sweep": "sweep.yaml"}, "where are its runs to lie"),
        ({"sweep": "s.yaml", "runs": "r", "arguments": ["--run.folder=x"]}, "each cell has its own"),
        ({"logs": "a\nb"}, "logs=a"),
        ({"env": {"a b": "1"}}, "no name of a variable"),
        ({"mounts": ["/a:/a"]}, "without an image"),
        ({"gpus": 2, "ranks": 3}, "more than gpus=2"),
        ({"partition": "two words"}, "must be one word"),
        ({"time": "2:30", "notice_s": 120}, "nothing is left to train in"),
        ({"time": "0-0:02:30", "notice_s": 120}, "nothing is left to train in"),
        ({"time": "0:02:30", "notice_s": 120}, "nothing is left to train in"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], said: str) -> None:
    """What cannot work is an error that names the setting."""
    with pytest.raises(UserError, match=said):
        build(SubmitSettings, {"arguments": ["--config", "x"], **settings}, "test")


@pytest.mark.parametrize("time_limit", ["4", "3:01", "1:00:00", "1-0", "1-00:00", "UNLIMITED", None])
def test_time_limits_with_room_for_training(time_limit: str | None) -> None:
    """Every spelling of sbatch that leaves more than three minutes passes."""
    assert build(SubmitSettings, {"arguments": ["x"], "time": time_limit, "notice_s": 120}, "test").time == time_limit


def test_render_and_dry_run_write_the_same_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bamboo slurm render` against what `submit --dry-run` prints; neither calls sbatch, and bash finds no fault in it."""
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "submit", "--dry-run", "--nodes", "2", "--", "--config", "run.yaml"]) == 0
    printed = capsys.readouterr().out
    assert main(["slurm", "render", "--out", "job.sh", "--nodes", "2", "--", "--config", "run.yaml"]) == 0
    assert (tmp_path / "job.sh").read_text() == printed
    subprocess.run(["bash", "-n", "job.sh"], check=True)


def test_what_a_job_leaves_that_died_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No outcome: what scontrol says of the job, by a program in its place."""
    monkeypatch.setenv("PATH", put_programs(tmp_path, {"scontrol": "echo JobId=7 JobState=NODE_FAIL Reason=NodeDown ExitCode=0:1 Other=x"}))
    said = "its script ended without a word; SLURM says: JobState=NODE_FAIL Reason=NodeDown ExitCode=0:1"
    assert outcome_of(tmp_path, "7") == Outcome(1, said)


def test_a_script_of_each_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two jobs of one name: the script of each lies beside its log; a refused one leaves nothing; --wait tells how it ended."""
    sbatch = f"echo x >> {tmp_path}/count; echo $((40 + $(wc -l < {tmp_path}/count)))"
    monkeypatch.setenv("PATH", put_programs(tmp_path, {"sbatch": sbatch, "squeue": "true", "scontrol": "echo JobState=TIMEOUT"}))
    monkeypatch.chdir(tmp_path)
    for seed in ("0", "1"):
        assert main(["slurm", "submit", "--check", "false", "--", "--run.seed", seed]) == 0
    assert "submitted job 42: slurm-logs/42.sh, log slurm-logs/42.log" in capsys.readouterr().out
    assert ["--run.seed 1" in (tmp_path / "slurm-logs" / f"{job}.sh").read_text() for job in (41, 42)] == [False, True]
    assert main(["slurm", "submit", "--check", "false", "--wait", "--", "x"]) == 1
    assert "job 43: its script ended without a word; SLURM says: JobState=TIMEOUT" in capsys.readouterr().out
    put_programs(tmp_path, {"sbatch": "exit 1"})
    assert main(["slurm", "submit", "--check", "false", "--", "x"]) == 2
    assert sorted(path.name for path in (tmp_path / "slurm-logs").iterdir()) == ["41.sh", "42.sh", "43.sh"]
