"""The batch script of a pretraining job: its words read back by bash, and every way it can end, with SLURM's commands played by others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.slurm.job import Outcome, outcome_of, render_job
from bamboo.slurm.job_settings import SubmitSettings

MARKER = 'echo \'{"step": 12, "reason": "SIGUSR1"}\' > "$BAMBOO_ENDED_FILE"'


def script(tmp_path: Path, *arguments: str, **settings: object) -> str:
    given = {"arguments": list(arguments or ("--config", "run.yaml")), "logs": str(tmp_path / "logs"), **settings}
    return render_job(build(SubmitSettings, given, "test"), tmp_path)


class Node:
    """Runs the script under bash; srun, squeue and scontrol are programs of a few words, and scontrol's arguments are kept."""

    def __init__(self, folder: Path, srun: str, state: str = "RUNNING") -> None:
        self.folder, self.state = folder, folder / "logs" / "7"
        programs = {"srun": srun, "squeue": f"echo {state}", "scontrol": f'echo "$*" >> {folder}/asked'}
        (folder / "bin").mkdir(exist_ok=True)
        for name, words in programs.items():
            (folder / "bin" / name).write_text(f"#!/bin/bash\n{words}\n")
            (folder / "bin" / name).chmod(0o755)

    def start(self, text: str) -> "subprocess.Popen[str]":
        path = f"{self.folder}/bin:/usr/bin:/bin"
        environment = {
            "PATH": path,
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NODEID": "0",
            "BAMBOO_RDZV_HOST": "127.0.0.1",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", "-c", text], env=environment, **pipes)  # type: ignore[call-overload]  # keywords from a table

    def run(self, text: str) -> tuple[int, str]:
        process = self.start(text)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    @property
    def asked(self) -> list[str]:
        found = self.folder / "asked"
        return found.read_text().splitlines() if found.exists() else []


def test_every_word_arrives(tmp_path: Path) -> None:
    """Hostile words behind `--`, with and without the verb, as the ranks' launcher gets them; torchrun's options stand before."""
    words = ["--run.folder", "two words", "$HOME", "it's", '"', "`id`"]
    node = Node(tmp_path, 'while [[ $1 != bash ]]; do shift; done; printf "%s\\n" "${@:5}"')
    for arguments in (words, ["bamboo", "pretrain", *words]):
        code, output = node.run(script(tmp_path, *arguments, nodes=2, gpus=4))
        lines = output.splitlines()
        at = lines.index("bamboo.pretrain")
        assert code == 0
        assert lines[at + 1 : at + 1 + len(words)] == words
        assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=7.0", "--max-restarts=2"} <= set(lines[:at])
        assert lines[lines.index("-m") - 1] == sys.executable
    assert outcome_of(tmp_path / "logs", "7") == Outcome(0, "finished")


def test_directives(tmp_path: Path) -> None:
    """What the settings ask for, as sbatch's options; the signal goes to the script alone."""
    text = script(tmp_path, nodes=2, gpus=8, cpus=64, memory="400G", time="8:00:00", partition="gpu", constraint="h100", notice_s=300)
    directives = {line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--gpus-per-node=8", "--cpus-per-task=64", "--mem=400G", "--time=8:00:00", "--partition=gpu"} <= directives
    assert {"--signal=B:USR1@300", "--requeue", "--constraint=h100", "--ntasks-per-node=1", "--open-mode=append"} <= directives
    assert "#SBATCH --no-requeue" in script(tmp_path, requeue=False)
    assert "export NCCL_SOCKET_IFNAME=ib0" in script(tmp_path, interface="ib0")


def test_containers(tmp_path: Path) -> None:
    """The image as srun's option with pyxis, and before the interpreter with apptainer; the folder and the logs are mounted."""
    pyxis = script(tmp_path, image="nvcr.io/pytorch:26.01", mounts=["/data:/data"])
    mounts = f"{tmp_path}:{tmp_path},{tmp_path}/logs:{tmp_path}/logs,/data:/data"
    assert f"--container-image=nvcr.io/pytorch:26.01 --container-mounts={mounts} --container-workdir={tmp_path}" in pyxis
    assert "\n  python3 -m bamboo.pretrain.launch" in pyxis
    apptainer = script(tmp_path, image="image.sif", runtime="apptainer", gpus=1)
    assert (
        f"apptainer exec --nv --bind {tmp_path}:{tmp_path} --bind {tmp_path}/logs:{tmp_path}/logs --pwd {tmp_path} image.sif\n" in apptainer
    )
    assert "--container-image" not in apptainer


def test_stopped_and_saved_it_goes_back_into_the_queue(tmp_path: Path) -> None:
    """The marker and exit code 75: requeued. Thrice without a step of progress: not any more, and said so. With progress: again."""
    node = Node(tmp_path, f"{MARKER}; exit 75")
    text = script(tmp_path)
    for _ in range(3):
        assert node.run(text)[0] == 75
    assert node.asked == ["requeue 7"] * 3
    code, output = node.run(text)
    assert (code, len(node.asked)) == (75, 3)
    assert "stopped after step 12, for the 3. time in a row without progress; not queued again" in output
    assert outcome_of(tmp_path / "logs", "7").code == 75
    assert Node(tmp_path, f"{MARKER.replace('12', '13')}; exit 75").run(text)[0] == 75
    assert len(node.asked) == 4


def test_a_run_that_finished_though_it_was_asked_to_stop(tmp_path: Path) -> None:
    """The marker says finished, the launcher was ended by the signal: the job is done, and not requeued."""
    node = Node(tmp_path, f"{MARKER.replace('SIGUSR1', 'finished')}; exit 138")
    assert node.run(script(tmp_path))[0] == 0
    assert node.asked == []


def test_a_marker_of_an_earlier_attempt_requeues_nothing(tmp_path: Path) -> None:
    """A marker that lies there already, and a step that fails by itself: a failure."""
    node = Node(tmp_path, "exit 1")
    node.state.mkdir(parents=True)
    (node.state / "ended.json").write_text('{"step": 12}')
    assert node.run(script(tmp_path))[0] == 1
    assert node.asked == []


@pytest.mark.parametrize(("settings", "state", "said"), [({"requeue": False}, "RUNNING", "submit the same"), ({}, "COMPLETING", "decides")])
def test_no_requeue_when_nobody_wants_it(tmp_path: Path, settings: dict[str, object], state: str, said: str) -> None:
    """requeue=false, and a job that SLURM is ending (scancel): stopped and saved, and it stays where it is."""
    node = Node(tmp_path, f"{MARKER}; exit 75", state)
    code, output = node.run(script(tmp_path, **settings))
    assert (code, node.asked) == (75, [])
    assert "stopped after step 12" in output
    assert said in output


def test_a_failure_is_told_in_the_ranks_words(tmp_path: Path) -> None:
    """A rank's last words are in its own log only: they become the job's reason, and its code the job's."""
    log = '"$PET_LOG_DIR/node-1/7.0_x/attempt_0/3"'
    words = "Traceback (most recent call last):\\nbamboo pretrain: data.train=/nowhere: no such folder\\n"
    node = Node(tmp_path, f"mkdir -p {log}; printf '{words}' > {log}/stderr.log; exit 1")
    assert node.run(script(tmp_path))[0] == 1
    assert outcome_of(tmp_path / "logs", "7") == Outcome(1, "failed with exit code 1: bamboo pretrain: data.train=/nowhere: no such folder")


def test_the_signal_reaches_the_step_and_the_script_waits(tmp_path: Path) -> None:
    """USR1 to the script: srun gets it once, its trap takes its time to save, the script waits for its end and requeues."""
    saving = "save() { sleep 0.5; " + MARKER + "; exit 75; }; trap save USR1"
    node = Node(tmp_path, f"{saving}; touch {tmp_path}/up; while :; do sleep 0.05; done")
    process = node.start(script(tmp_path))
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "USR1: the ranks are to save and stop" in output
    assert node.asked == ["requeue 7"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arguments": []}, "behind --"),
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
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho JobId=7 JobState=NODE_FAIL Reason=NodeDown ExitCode=0:1 Other=x\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert outcome_of(tmp_path, "7") == Outcome(
        1, "its script ended without a word; SLURM says: JobState=NODE_FAIL Reason=NodeDown ExitCode=0:1"
    )
