"""The listener for signals, and the launcher that keeps exit code 75, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed import run
from torch.distributed.launcher import api

from bamboo.cli.errors import EXIT_RESUMABLE
from bamboo.pretrain import launch
from bamboo.pretrain.stopping.signals import SIGNALS, StopSignals

WAITING = """
import ctypes, sys, time
from bamboo.pretrain.stopping import signals
signals._ECHO_S = 0.2
with signals.StopSignals() as heard:
    heard.is_saved = {saved}
    sys.stdout.write("up\\n"); sys.stdout.flush()
    while True:
        {wait}
"""
BLOCKED = "mutex = ctypes.create_string_buffer(64); [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]"  # never returns
ASLEEP = "time.sleep(1)"


def waiting(wait: str, saved: bool = False) -> "subprocess.Popen[str]":
    code = WAITING.format(wait=wait, saved=saved)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("wait", [ASLEEP, BLOCKED])
def test_echoes_are_one_request_and_a_later_signal_is_another(wait: str) -> None:
    """Three signals at once leave the process alive, also inside a C call that never returns; one more, later, ends it by its number."""
    process = waiting(wait)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.count("stopping at the next boundary") == 1
    assert "a second signal, SIGTERM: ended at once" in said


def test_when_all_is_saved_a_signal_ends_the_process_as_resumable() -> None:
    """The launcher's SIGTERM to the ranks that are slower to end: 75, as theirs was."""
    process = waiting(ASLEEP, saved=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == EXIT_RESUMABLE


def test_the_handlers_of_before_are_put_back() -> None:
    """Handlers and wake-up descriptor after the block against those before it; inside it a signal is noted."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals() as heard:
        assert heard.number == 0
        signal.raise_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not heard.number and time.monotonic() < deadline:
            time.sleep(0.001)
        assert heard.number == signal.SIGUSR1
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_launcher_gives_ranks_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun's own parser makes of the launcher's defaults, and of options that say otherwise."""
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if not name.startswith("PET_")})
    monkeypatch.setattr(api, "LocalElasticAgent", api.LocalElasticAgent)
    parsed = []
    monkeypatch.setattr(run, "main", lambda argv: parsed.append(run.parse_args(argv)))
    for options in ([], ["--shutdown-timeout", "7", "--signals-to-handle", "SIGTERM"]):
        assert launch.main([*options, "-m", "module"]) == 0
    assert [args.shutdown_timeout for args in parsed] == [240, 7]
    assert ["SIGUSR1" in args.signals_to_handle for args in parsed] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "code"), [("exit 75", 75), ("exit 0", 0), ("exit $((75 - 72 * LOCAL_RANK))", 1), ("exit $((75 - 75 * LOCAL_RANK))", 75)]
)
def test_the_launcher_passes_75_on(ends: str, code: int) -> None:
    """Two ranks that are shells: 75 where both end with it, 0, and 1 as torchrun has it where one ends with something else."""
    words = ["--standalone", "--nproc-per-node", "2", "--no-python", "bash", "-c", f"{ends}"]
    done = subprocess.run([sys.executable, "-m", "bamboo.pretrain.launch", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
