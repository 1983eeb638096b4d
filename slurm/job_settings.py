"""The settings of `bamboo slurm submit` and `bamboo slurm render`."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..cli.config import settings
from .settings import JobResources

DEFAULT_LOGS = "slurm-logs"
DEFAULT_SWEEP_LOGS = "slurm"


@settings
class JobSettings(JobResources):
    """What both have in common: a job that pretrains on one or more nodes."""

    arguments: tuple[str, ...]
    """Arguments of bamboo pretrain, behind `--`."""
    name: str = "pretrain"
    """Name of the job."""
    sweep: Path | None = None
    """One run per cell of this file: settings to lists of values (every combination), or a list of settings to values."""
    runs: Path | None = None
    """With sweep: folder of the cells' run folders, each named after its settings."""
    max_running: Annotated[int, Field(ge=1)] | None = None
    """With sweep: cells that may run at once."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes; gpus, cpus and memory are each node's."""
    ranks: Annotated[int, Field(ge=0)] = 0
    """Processes per node; 0: one per GPU, or one."""
    python: str | None = None
    """Interpreter that has Bamboo on the nodes, VENV/bin/python; none: the one this command runs in, or python3 in a container."""
    image: str | None = None
    """Container image: a name of the registry or a .sqsh file (pyxis), or a .sif file (apptainer)."""
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What runs the image: srun's --container-image (enroot and pyxis), or apptainer exec."""
    mounts: tuple[str, ...] = ()
    """Folders that the container sees besides this one and the logs: OUTSIDE:INSIDE."""
    interface: str | None = None
    """Network interface of NCCL and gloo (ib0, hsn0); none: they choose."""
    env: dict[str, str] = Field(default_factory=dict)
    """Further environment variables, set after setup: {NCCL_DEBUG: INFO}."""
    srun: tuple[str, ...] = ()
    """Further options of srun: `--container-writable`."""
    notice_s: Annotated[int, Field(ge=1, le=65535)] = 120
    """Seconds before the time limit at which the run is told to save and stop; SLURM may do so a minute earlier."""
    requeue: bool = True
    """A run that was stopped goes back into the queue and resumes."""
    max_idle: Annotated[int, Field(ge=0)] = 2
    """Requeues in a row without a step of progress; one more, and the job ends."""
    max_restarts: Annotated[int, Field(ge=0)] = 2
    """How often torchrun starts all ranks again, from the last checkpoint, after one of them died."""
    logs: Path | None = None
    """Folder, seen from every node, of the jobs' logs and scripts; none: slurm-logs, or with sweep RUNS/slurm."""

    @property
    def ranks_per_node(self) -> int:
        """Processes per node."""
        return self.ranks or self.gpus or 1

    @property
    def logs_folder(self) -> Path:
        """Folder of the jobs' logs."""
        return self.logs or (Path(DEFAULT_LOGS) if self.runs is None else self.runs / DEFAULT_SWEEP_LOGS)

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = super().problems() + self._sweep_problems()
        if not re.fullmatch(r"[^\s/\x00-\x1f][^/\x00-\x1f]*", self.name):
            found.append(f"name={self.name!r}: it also names files: no /, no line break, no blank at its begin")
        found += [f"srun={option!r}: must be an option of srun, --NAME=VALUE" for option in self.srun if not option.startswith("--")]
        found += [f"env: {name!r} is no name of a variable" for name in self.env if not re.fullmatch(r"[A-Za-z_]\w*", name)]
        if not self.arguments:
            found.append("arguments: what is to be trained? give the arguments of bamboo pretrain behind --")
        if self.mounts and self.image is None:
            found.append(f"mounts={' '.join(self.mounts)}: without an image nothing is mounted; give image, or leave mounts out")
        limit_s = _seconds(self.time)
        if limit_s is not None and limit_s < self.notice_s + 60:
            found.append(f"notice_s={self.notice_s}: with time={self.time} nothing is left to train in; SLURM may signal a minute earlier")
        if self.gpus and self.ranks > self.gpus:
            found.append(f"ranks={self.ranks}: more than gpus={self.gpus} per node; lower it, or leave it out")
        found += [
            f"{name}={path}: must not contain a line break"
            for name, path in (("logs", self.logs), ("runs", self.runs))
            if "\n" in str(path)
        ]
        return found

    def _sweep_problems(self) -> list[str]:
        if self.sweep is None:
            given = {"runs": self.runs, "max_running": self.max_running}
            return [
                f"{name}={value}: only a sweep has it; give sweep, or leave it out" for name, value in given.items() if value is not None
            ]
        if self.runs is None:
            return [f"sweep={self.sweep}: where are its runs to lie? give runs, a folder that every node sees"]
        folders = [word for word in self.arguments if re.match(r"--run[.]folder(=|$)", word)]
        return [f"arguments: {word}: with a sweep each cell has its own below runs={self.runs}; leave it out" for word in folders]


def _seconds(time: str | None) -> int | None:
    """Returns a time limit in seconds: MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, or DAYS-HOURS and so on; None for other words."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time or "")
    if found is None:
        return None
    days, first, second, third = (int(part or 0) for part in found.groups())
    if found[1] is not None or found[4] is not None:
        return ((days * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second


@settings
class SubmitSettings(JobSettings):
    """Writes the batch script of a pretraining run and submits it; stopped by SLURM, it saves, is queued again and resumes.

    bamboo slurm submit --nodes 2 --gpus 8 --cpus 64 --time 8:00:00 --partition gpu -- --config run.yaml
    bamboo slurm submit --sweep sweep.yaml --runs /shared/runs/lr --max-running 4 --gpus 8 --time 8:00:00 -- --config run.yaml
    """

    check: bool = True
    """First try the arguments, of every cell, here with bamboo pretrain --dry-run: a mistake shows now, not once the job runs."""
    wait: bool = False
    """Stay until the job has ended, tell how, and exit with its code; of a sweep, 1 where a cell failed, else 75 where one was stopped."""
    dry_run: bool = False
    """Print the script (and, on standard error, the command of each cell) and submit nothing."""


@settings
class RenderSettings(JobSettings):
    """Writes the batch script of a pretraining run, to be edited by hand and submitted with sbatch.

    bamboo slurm render --out job.sh --nodes 2 --gpus 8 --time 8:00:00 -- --config run.yaml
    """

    out: Path = Path("pretrain.sh")
    """The script."""


@settings
class StatusSettings:
    """Shows the jobs of a folder of logs, or the cells of a sweep: state, step reached, attempts, and why it ended.

    bamboo slurm status              # the jobs of slurm-logs
    bamboo slurm status runs/sweep   # the cells below --runs
    """

    folder: Path = Path(DEFAULT_LOGS)
    """Folder of logs, or of a sweep's runs."""
