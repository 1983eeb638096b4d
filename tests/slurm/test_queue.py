"""What SLURM's commands answer, each played by a program of a few words."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.errors import BambooError, UserError
from bamboo.slurm import queue
from bamboo.slurm.queue import Array, is_running, queued, remembered, submit, wait
from tests.slurm.node import put_programs


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Returns a function that puts a program of that name first on the PATH."""
    return lambda name, words: monkeypatch.setenv("PATH", put_programs(tmp_path, {name: words}))


def test_what_sbatch_and_squeue_answer(use: Callable[[str, str], None]) -> None:
    """A job id with a cluster's name behind it; a refusal in sbatch's own words; the queue with and without the job."""
    use("sbatch", 'test "$2" = ok.sh && echo "42;cluster" || { echo "invalid partition" >&2; exit 1; }')
    assert submit(Path("ok.sh")) == Array("42")
    with pytest.raises(UserError, match=f"{shlex.quote('bad.sh')}: exit 1: invalid partition"):
        submit(Path("bad.sh"))
    use("squeue", "echo 41; echo 42")
    assert is_running(Array("42"))
    assert not is_running(Array("4"))


def test_a_queue_that_does_not_answer_for_a_while(tmp_path: Path, use: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue fails twice, answers once with the job and then without it: `wait` looks on; silent for too long, it names the job."""
    count = tmp_path / "count"
    script = f'echo x >> {count}; case $(wc -l < {count}) in 1|2) echo "Socket timed out" >&2; exit 1;; 3) echo 42;; esac'
    use("squeue", script)
    looks: list[int] = []
    wait(Array("42"), lambda: looks.append(1), poll_s=0.01)
    assert len(looks) == 3
    use("squeue", "exit 1")
    monkeypatch.setattr(queue, "_SILENCE_LIMIT_S", 0.05)
    with pytest.raises(BambooError, match="job 42 goes on"):
        wait(Array("42"), poll_s=0.01)


def test_a_machine_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sbatch on the PATH: the message says what to do instead."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        submit(Path("x.sh"))


def test_a_site_whose_sbatch_says_more(use: Callable[[str, str], None]) -> None:
    """Lines of a wrapper around the number; and an answer without one, which is no success."""
    use("sbatch", "echo 'welcome to cluster 9'; echo 42; echo 'you have used 7 hours'")
    assert submit(Path("x.sh")) == Array("42")
    use("sbatch", "echo done")
    with pytest.raises(UserError, match=r"under which number it took x[.]sh: 'done'"):
        submit(Path("x.sh"))


def test_submitted_from_inside_a_job(use: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SLURM told the job that we are in, options to sbatch and srun by the same names, is left out; outside of one nothing is."""
    use("sbatch", f"env > {tmp_path}/env; echo 42")
    for name, value in {"SLURM_MEM_PER_CPU": "1G", "SLURM_CONF": "/etc/x", "SBATCH_ACCOUNT": "us"}.items():
        monkeypatch.setenv(name, value)
    submit(Path("x.sh"))
    assert "SLURM_MEM_PER_CPU=1G\n" in (tmp_path / "env").read_text()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    submit(Path("x.sh"))
    found = [line for line in (tmp_path / "env").read_text().splitlines() if line.startswith(("SLURM", "SBATCH"))]
    assert sorted(found) == ["SBATCH_ACCOUNT=us", "SLURM_CONF=/etc/x"]


def test_the_queue_by_job(use: Callable[[str, str], None]) -> None:
    """A job and the tasks of an array, of which one is still waiting."""
    use("squeue", "printf '41 RUNNING\\n42_0 COMPLETING\\n42_1 PENDING\\n'")
    assert queued() == {"41": "RUNNING", "42_0": "COMPLETING", "42_1": "PENDING"}
    use("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert remembered("9") == "slurm_load_jobs error: Invalid job id specified"
