"""A real SLURM cluster on this machine: slurmctld, two slurmd and munge on the loopback, all state below one folder.

Two partitions on the same nodes: jobs of `urgent` pre-empt those of `main`, which get SIGTERM, ten seconds, and their place in the queue
back. Where device nodes can be made, each node has two GPUs that are none.

Needs root and Debian's slurmctld, slurmd, slurm-client and munge (`make slurm`); tests skip without them.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged")
_START_LIMIT_S = 60.0
_NODES = ("node1", "node2")

# cred_expire: by default a job that is queued again waits two minutes for its old credential to expire
_CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
StateSaveLocation={root}/ctld
SlurmdSpoolDir={root}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=60
SlurmdTimeout=10
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000{gres} State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000{gres} State=UNKNOWN
PartitionName=main Nodes=node[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=10 State=UP
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE PriorityTier=10 State=UP
"""
_NVIDIA = 195  # the device's major number: SLURM looks no further


@contextlib.contextmanager
def loopback_cluster(root: Path) -> Iterator[Path]:
    """Starts the cluster below `root` and yields its slurm.conf, to be exported as SLURM_CONF; stops it in the end."""
    missing = [program for program in _PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"no SLURM cluster here: {'not installed: ' + ', '.join(missing) if missing else 'it takes root'} (make slurm)")
    host = socket.gethostname().split(".")[0]
    for folder in ("ctld", "log", *(f"spool-{node}" for node in _NODES)):
        (root / folder).mkdir(parents=True)
    config = root / "slurm.conf"
    gres = _fake_gpus(root)
    config.write_text(_CONFIG.format(host=host, root=root, ports=_free_ports(3), gres=gres) + ("GresTypes=gpu\n" if gres else ""))
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    _start_munge()
    try:
        _call(["slurmctld", "-f", str(config)], environment)
        for node in _NODES:
            _call(["slurmd", "-f", str(config), "-N", node], environment)
        _await_idle(environment, root)
        yield config
    finally:
        for file in root.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def _fake_gpus(root: Path) -> str:
    """Makes the device nodes of two GPUs and gres.conf, and returns what a node's line says of them; "" where it is not permitted."""
    (root / "dev").mkdir()
    try:
        for number in range(2):
            os.mknod(root / "dev" / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(_NVIDIA, number))
    except OSError:
        return ""
    (root / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={root}/dev/nvidia[0-1] Flags=nvidia_gpu_env\n")
    return " Gres=gpu:2"


def _start_munge() -> None:
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
        subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "-m", "755", "/run/munge"], check=True)
        subprocess.run(["runuser", "-u", "munge", "--", "/usr/sbin/munged"], check=True)


def _await_idle(environment: dict[str, str], root: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    states = ""
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["sinfo", "-h", "-N", "-p", "main", "-o", "%t"], capture_output=True, text=True, env=environment, check=False
        )
        states = found.stdout + found.stderr
        if found.stdout.split() == ["idle"] * len(_NODES):
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted((root / "log").glob("*.log")))
    raise AssertionError(f"the cluster is not up after {_START_LIMIT_S:.0f} s: {states}\n{logs}")


def _call(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
