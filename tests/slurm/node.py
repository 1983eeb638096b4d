"""A job's first node without SLURM: the batch script under bash, with SLURM's commands played by programs of a few words."""

import os
import subprocess
from pathlib import Path

from bamboo.cli.config import build
from bamboo.slurm.job_settings import SubmitSettings
from bamboo.slurm.script import render_job
from bamboo.slurm.sweep import Cell


def put_programs(folder: Path, programs: dict[str, str]) -> str:
    """Writes programs, bash by name, into `folder`/bin and returns a PATH that begins with it."""
    for name, words in programs.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{words}\n")
        path.chmod(0o755)
    return f"{folder}/bin:/usr/bin:/bin"


def script(folder: Path, *arguments: str, cells: tuple[Cell, ...] = (), **settings: object) -> str:
    """Returns the batch script of a job that starts in `folder` and has its logs in `folder`/logs."""
    given = {"arguments": list(arguments or ("--config", "run.yaml")), "logs": str(folder / "logs"), **settings}
    return render_job(build(SubmitSettings, given, "test"), folder, cells)


class Node:
    """Runs batch scripts of job 7. What scontrol is asked for is kept."""

    def __init__(self, folder: Path, srun: str, *, state: str = "RUNNING", scontrol: str = "true", sinfo: str = "") -> None:
        self.folder, self.state = folder, folder / "logs" / "7"
        asked = f'echo "$*" >> {folder}/asked; {scontrol}'
        # pauses between tries are not what is tested
        programs = {"srun": srun, "squeue": f"echo {state}", "scontrol": asked, "sinfo": f"echo -n {sinfo}", "sleep": "/bin/sleep 0.05"}
        self.path = put_programs(folder, programs)

    def start(self, text: str, **environment: str) -> "subprocess.Popen[str]":
        """Starts a script; `environment`: what SLURM says besides the usual."""
        usual = {
            "PATH": self.path,
            "HOME": os.environ.get("HOME", "/"),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NODEID": "0",
            "BAMBOO_RDZV_HOST": "127.0.0.1",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", "-c", text], env=usual | environment, **pipes)  # type: ignore[call-overload]  # from a table

    def run(self, text: str, **environment: str) -> tuple[int, str]:
        """Runs a script to its end and returns (exit code, output)."""
        process = self.start(text, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    @property
    def asked(self) -> list[str]:
        """What scontrol was asked for, call by call."""
        found = self.folder / "asked"
        return found.read_text().splitlines() if found.exists() else []
