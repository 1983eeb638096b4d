"""Arrays and odd words on a real SLURM cluster on the loopback."""

from pathlib import Path

import pytest

from bamboo.slurm.array import TASK, render_array
from bamboo.slurm.queue import is_running, submit, wait
from bamboo.slurm.settings import SlurmSettings


@pytest.mark.slow
def test_an_array_runs_every_task_it_was_asked_for(tmp_path: Path, cluster: Path) -> None:
    """Tasks 1, 2 and 4 under slurmctld and two slurmd: each writes its number, the log files bear job and task, the queue empties.

    The folder of logs has every sign in its name that sbatch reads as its own.
    """
    logs = tmp_path / 'logs of "tests" #1 %j it\'s'
    logs.mkdir()
    settings = SlurmSettings(cpus=1, time="5", setup=(f"cd {tmp_path}",))
    script = tmp_path / "array.sh"
    command = ["bash", "-c", 'echo "$1" > "$1.txt"', "-", TASK]
    script.write_text(render_array("some 'odd' #name", [1, 2, 4], command, tmp_path, logs, settings))
    array = submit(script)
    wait(array, poll_s=0.2)
    assert not is_running(array)
    assert {path.name: path.read_text().strip() for path in tmp_path.glob("*.txt")} == {"1.txt": "1", "2.txt": "2", "4.txt": "4"}
    assert {path.name for path in logs.iterdir()} == {f"{array.job}_{task}.log" for task in (1, 2, 4)}
