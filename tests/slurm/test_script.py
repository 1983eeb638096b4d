"""The batch script of a pretraining job: its words read back by bash, and every way it can end, with SLURM's commands played by others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bamboo.cli.errors import UserError
from bamboo.slurm.status import Outcome, outcome_of
from tests.slurm.node import Node, put_programs, script

MARKER = 'echo \'{"step": 12, "reason": "SIGUSR1"}\' > "$BAMBOO_ENDED_FILE"'
ON_NODE = 'while [[ $1 != bash ]]; do shift; done; "$@"'


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


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
    assert outcome_of(node.state, "7") == Outcome(0, "finished")


def test_folders_with_odd_names(tmp_path: Path) -> None:
    """A working folder, and so a folder of logs, with blanks, quotes, a dollar and a #: the job runs there and leaves its words there."""
    folder = tmp_path / 'it\'s a "b" $HOME #1'
    folder.mkdir()
    text = script(folder)
    node = Node(tmp_path, "pwd")
    code, output = node.run(text)
    assert (code, output.splitlines()[1]) == (0, str(folder))
    assert (folder / "logs" / "7" / "outcome").read_text() == "0\nfinished\n"


def test_directives(tmp_path: Path) -> None:
    """What the settings ask for, as sbatch's options; the signal goes to the script alone; the user's own options come last, and win."""
    asked = {"memory": "400G", "time": "8:00:00", "partition": "gpu", "constraint": "h100", "extra": ["--signal=USR1@9", "--exclude n7"]}
    found = directives(script(tmp_path, nodes=2, gpus=8, cpus=64, notice_s=300, **asked))
    assert {"--nodes=2", "--gpus-per-node=8", "--cpus-per-task=64", "--mem=400G", "--time=8:00:00", "--partition=gpu"} <= set(found)
    assert {"--signal=B:USR1@300", "--requeue", "--constraint=h100", "--ntasks-per-node=1", "--open-mode=append"} <= set(found)
    assert found[-2:] == ["--signal=USR1@9", "--exclude n7"]
    assert "--no-requeue" in directives(script(tmp_path, requeue=False))
    assert "--gpus-per-node=h100:4" in directives(script(tmp_path, gpus=4, gpu_type="h100"))
    assert '--comment="it\'s \\"x\\" #1"' in directives(script(tmp_path, extra=['--comment=it\'s "x" #1']))


def test_what_the_launcher_finds_on_a_node(tmp_path: Path) -> None:
    """The step's own shell, run: limits raised, a node's own name, the first node alone holds the rendezvous, the user's variables win."""
    launcher = tmp_path / "bin" / "launcher"
    put_programs(tmp_path, {"launcher": 'env; echo "files $(ulimit -Sn) of $(ulimit -Hn)"'})
    for node_id, is_host in (("0", 1), ("1", 0)):
        node = Node(tmp_path, f"export SLURM_NODEID={node_id} SLURMD_NODENAME=localhost; {ON_NODE}")
        text = script(
            tmp_path, python=str(launcher), env={"NCCL_IB_HCA": "mlx5 $x"}, interface="ib0", setup=["export NCCL_IB_HCA=of_a_module"]
        )
        code, output = node.run(f"ulimit -Sn 100\n{text}", NCCL_DEBUG="INFO")
        assert code == 0, output
        wanted = {"NCCL_DEBUG=INFO", "NCCL_IB_HCA=mlx5 $x", "NCCL_SOCKET_IFNAME=ib0", "GLOO_SOCKET_IFNAME=ib0", "PET_LOCAL_ADDR=localhost"}
        assert wanted | {f"PET_RDZV_CONF=is_host={is_host},read_timeout=300"} <= set(output.splitlines())
        soft, hard = next(line for line in output.splitlines() if line.startswith("files ")).removeprefix("files ").split(" of ")
        assert soft == hard
        assert f"/node-{node_id}\n" in output
    unknown = Node(tmp_path, f"export SLURMD_NODENAME=no-such-node.invalid; {ON_NODE}").run(text)[1]
    assert f"PET_LOCAL_ADDR={os.uname().nodename}" in unknown.splitlines()


def test_containers(tmp_path: Path) -> None:
    """The image as srun's option with pyxis, and before the interpreter with apptainer; the folder and the logs are mounted."""
    pyxis = script(tmp_path, image="nvcr.io/pytorch:26.01", mounts=["/data:/data"], env={"A": "1"}, srun=["--container-writable"])
    mounts = f"{tmp_path}:{tmp_path},{tmp_path}/logs:{tmp_path}/logs,/data:/data"
    assert f"--container-image=nvcr.io/pytorch:26.01 --container-mounts={mounts} --container-workdir={tmp_path}" in pyxis
    assert "--container-env=NCCL_DEBUG,A --container-writable bash -c" in pyxis
    assert "\n  python3 -m bamboo.pretrain.launch" in pyxis
    apptainer = script(tmp_path, image="image.sif", runtime="apptainer", gpus=1)
    assert (
        f"apptainer exec --nv --bind {tmp_path}:{tmp_path} --bind {tmp_path}/logs:{tmp_path}/logs --pwd {tmp_path} image.sif\n" in apptainer
    )
    assert "--container-image" not in apptainer
    with pytest.raises(UserError, match="a,b: a folder with a comma"):
        script(tmp_path / "a,b", image="image.sif")


def test_setup(tmp_path: Path) -> None:
    """Lines that read variables that are not set, as conda's do, pass; one that fails ends the job by its name, before any step."""
    node = Node(tmp_path, "echo the step")
    assert node.run(script(tmp_path, setup=['test -z "$not_set"', "cd /"]))[0] == 0
    code, output = node.run(script(tmp_path, setup=["true", "(exit 9)"]))
    assert code == 9
    assert "the step" not in output
    assert outcome_of(node.state, "7") == Outcome(9, "setup failed: (exit 9)")


def test_an_interpreter_that_is_not_there(tmp_path: Path) -> None:
    """Said before any step is started."""
    node = Node(tmp_path, "echo the step")
    assert node.run(script(tmp_path, python="/nowhere/bin/python"))[0] == 1
    assert "no interpreter /nowhere/bin/python on " in outcome_of(node.state, "7").reason


def test_stopped_and_saved_it_goes_back_into_the_queue(tmp_path: Path) -> None:
    """The marker and exit code 75: requeued. Thrice without a step of progress: not any more, and said so. With progress: again."""
    node = Node(tmp_path, f"{MARKER}; exit 75")
    text = script(tmp_path)
    for restarts in range(3):
        assert node.run(text, SLURM_RESTART_COUNT=str(restarts))[0] == 75
    assert node.asked == ["requeue 7"] * 3
    code, output = node.run(text, SLURM_RESTART_COUNT="3")
    assert (code, len(node.asked)) == (75, 3)
    assert "stopped after step 12, for the 3. time in a row without progress; not queued again" in output
    assert outcome_of(node.state, "7").code == 75
    assert Node(tmp_path, f"{MARKER.replace('12', '13')}; exit 75").run(text, SLURM_RESTART_COUNT="4")[0] == 75
    assert len(node.asked) == 4
    assert sorted(path.name for path in node.state.glob("attempt-*")) == [f"attempt-{number}" for number in range(5)]


def test_a_controller_that_does_not_answer_at_once(tmp_path: Path) -> None:
    """scontrol fails twice, then does it; and one that never does: the job ends with 75, and its outcome says so."""
    twice = f"(($(wc -l < {tmp_path}/asked) > 2))"
    node = Node(tmp_path, f"{MARKER}; exit 75", scontrol=twice)
    assert node.run(script(tmp_path))[0] == 75
    assert node.asked == ["requeue 7"] * 3
    assert not (node.state / "outcome").exists()
    node = Node(tmp_path, f"{MARKER}; exit 75", scontrol="false")
    assert node.run(script(tmp_path))[0] == 75
    assert outcome_of(node.state, "7") == Outcome(75, "stopped after step 12; SLURM does not queue it again")


def test_a_node_that_does_not_answer(tmp_path: Path) -> None:
    """A step that fails while SLURM misses one of the nodes: no failure of the run, back into the queue."""
    node = Node(tmp_path, "exit 1", sinfo="n2")
    code, output = node.run(script(tmp_path))
    assert (code, node.asked) == (75, ["requeue 7"])
    assert "as n2 does not answer; back into the queue" in output


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
    node = Node(tmp_path, f"{MARKER}; exit 75", state=state)
    code, output = node.run(script(tmp_path, **settings))
    assert (code, node.asked) == (75, [])
    assert "stopped after step 12" in output
    assert said in output


def test_a_failure_is_told_in_the_words_of_the_rank_that_ended_first(tmp_path: Path) -> None:
    """The last words of rank 3 are older than what the others say of its end: they become the job's reason, and its code the job's."""
    logs = '"$PET_LOG_DIR/node-1/7.0_x/attempt_0"'
    cause = "Traceback (most recent call last):\\nRuntimeError: CUDA error\\n"
    effect = "AConnectionError: closed by a peer\\nRuntimeError: CUDA error\\n"
    srun = f"""mkdir -p {logs}/3 {logs}/4
        printf '{effect}' > {logs}/4/stderr.log
        printf '{cause}' > {logs}/3/stderr.log; touch -d '1 minute ago' {logs}/3/stderr.log
        exit 1"""
    node = Node(tmp_path, srun)
    code, output = node.run(script(tmp_path))
    assert code == 1
    assert outcome_of(node.state, "7") == Outcome(1, "failed with exit code 1: RuntimeError: CUDA error")
    assert output.count("RuntimeError: CUDA error\nAConnectionError: closed by a peer\n") == 1


def test_a_rank_that_ran_out_of_memory(tmp_path: Path) -> None:
    """It says nothing, SLURM does, in the job's log: this attempt's words count, not an earlier one's."""
    log = tmp_path / "logs" / "7.log"
    said = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.{}. Some of the step tasks have been OOM Killed."
    node = Node(tmp_path, f"echo '{said.format(1)}' >> {log}; exit 137")
    log.parent.mkdir()
    log.write_text(said.format(0) + "\n")
    assert node.run(script(tmp_path))[0] == 137
    assert outcome_of(node.state, "7") == Outcome(137, f"failed with exit code 137: {said.format(1)}")


def test_the_signal_reaches_the_step_and_the_script_waits(tmp_path: Path) -> None:
    """USR1 to the script: srun gets it once, its trap takes its time to save, the script waits for its end and requeues."""
    saving = "save() { /bin/sleep 0.5; " + MARKER + "; exit 75; }; trap save USR1"
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


def test_a_signal_before_there_is_a_step(tmp_path: Path) -> None:
    """USR1 during the setup: no step is started, and the job goes back into the queue."""
    node = Node(tmp_path, "echo the step")
    process = node.start(script(tmp_path, setup=[f"touch {tmp_path}/up", "/bin/sleep 1"]))
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, node.asked) == (75, ["requeue 7"]), output
    assert "the step" not in output.splitlines()


def test_bash_of_old_clusters_reads_it(tmp_path: Path) -> None:
    """bash finds no fault in it."""
    subprocess.run(["bash", "-n", "-c", script(tmp_path)], check=True)
