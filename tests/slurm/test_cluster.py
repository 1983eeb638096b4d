"""Arrays on a real SLURM cluster on the loopback."""

from pathlib import Path

import pytest

from bamboo.slurm.array import TASK, is_running, render_array, submit, wait
from bamboo.slurm.settings import SlurmSettings
from tests.slurm.cluster import loopback_cluster


@pytest.mark.slow
def test_an_array_runs_every_task_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks 1, 2 and 4 under slurmctld and two slurmd: each writes its number, the log files bear job and task, the queue empties."""
    with loopback_cluster(tmp_path / "cluster") as config:
        monkeypatch.setenv("SLURM_CONF", str(config))
        logs = tmp_path / "logs of tests"
        logs.mkdir()
        settings = SlurmSettings(cpus=1, time="5", setup=(f"cd {tmp_path}",))
        script = tmp_path / "array.sh"
        script.write_text(render_array("numbers", [1, 2, 4], ["bash", "-c", 'echo "$1" > "$1.txt"', "-", TASK], tmp_path, logs, settings))
        array = submit(script)
        wait(array, poll_s=0.2)
        assert not is_running(array)
        assert {path.name: path.read_text().strip() for path in tmp_path.glob("*.txt")} == {"1.txt": "1", "2.txt": "2", "4.txt": "4"}
        assert {path.name for path in logs.iterdir()} == {f"{array.job}_{task}.log" for task in (1, 2, 4)}
