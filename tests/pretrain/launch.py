"""Starts `bamboo pretrain` as its users do: one process, or ranks under torchrun."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bamboo.pretrain.log import read_log

DEFAULTS = {
    "model.name": "test_vit",
    "data.image_size": "32",
    "data.workers": "0",
    "model.args": "{img_size: 32, patch_size: 8}",
    "data.window": "2",
    "run.duration": "60 steps",
    "run.global_batch_size": "12",
    "run.log_every": "1 steps",
    "run.checkpoint_every": "7 steps",
    "run.eval_every": "1000 steps",
    "run.precision": "fp32",
    "run.threads": "1",
    "run.device": "cpu",
}

TORCHRUN = "torch.distributed.run"

# Restarted or short-lived jobs on one host must not share a store: pytorch issues 135712, 167288.
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def options(pool: Path, folder: Path, settings: Mapping[str, str]) -> list[str]:
    """Returns the arguments of `bamboo pretrain` for a run in `folder` on the test pool."""
    chosen = {"data.train": str(pool / "train"), "data.val": str(pool / "val"), "run.folder": str(folder), **DEFAULTS, **settings}
    return [part for name, value in chosen.items() for part in (f"--{name}", value)]


def start(num_ranks: int, arguments: list[str], how: Sequence[str] = (), launcher: str = TORCHRUN) -> "subprocess.Popen[bytes]":
    """Starts a run in a process group of its own; 0 ranks: without torchrun; `how`: further options of torchrun."""
    torchrun = ["-m", launcher, "--standalone", "--nproc-per-node", str(num_ranks), *how] if num_ranks else []
    command = [sys.executable, *torchrun, "-m", "bamboo.pretrain", *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: "subprocess.Popen[bytes]", timeout_s: float = 240) -> tuple[int, str]:
    """Waits for the end; returns (exit code, output)."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output.decode(errors="replace")


def train(pool: Path, folder: Path, num_ranks: int = 0, **settings: str) -> str:
    """Runs to the end and returns the output; settings are spelled with `__` for the dot."""
    process = start(num_ranks, options(pool, folder, {name.replace("__", "."): value for name, value in settings.items()}))
    code, output = finish(process)
    assert code == 0, output
    return output


def wait_for_step(process: "subprocess.Popen[bytes]", folder: Path, step: int, timeout_s: float = 180) -> None:
    """Returns as soon as the log holds `step`; fails when the run ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (folder / "log.jsonl").exists() and any(row["step"] >= step for row in read_log(folder, "train")[-1:]):
            return
        assert process.poll() is None, f"ended before step {step}:\n{finish(process)[1]}"
        time.sleep(0.005)
    raise AssertionError(f"step {step} not reached in {timeout_s} s")


def rank_processes(process: "subprocess.Popen[bytes]") -> list[int]:
    """Returns the process ids of torchrun's ranks, in the order they were started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"bamboo.pretrain" in Path(f"/proc/{child}/cmdline").read_bytes()]


def kill_group(process: "subprocess.Popen[bytes]", ranks: list[int]) -> None:
    """Kills launcher and ranks with SIGKILL; torchrun puts each rank in a session of its own."""
    for victim in (*ranks, process.pid):
        os.kill(victim, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
