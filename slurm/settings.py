"""What a SLURM job asks for, as settings of the verbs that submit jobs."""

from typing import Annotated

from pydantic import Field

from ..cli.config import settings


@settings
class JobResources:
    """What one job asks for, on each of its nodes."""

    partition: str | None = None
    """Partition; none: the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    time: str | None = None
    """Time limit as sbatch spells it: 90, 4:00:00, 1-12:00."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs."""
    gpu_type: str | None = None
    """Kind of GPU as the cluster names it, where it has several: h100."""
    cpus: Annotated[int, Field(ge=1)] = 4
    """CPU cores."""
    memory: str | None = None
    """Memory as sbatch spells it: 32G."""
    constraint: str | None = None
    """Features that a node must have."""
    setup: tuple[str, ...] = ()
    """Shell lines before the command, each complete; one that fails ends the job: `module load cuda`, `source venv/bin/activate`."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch: `--exclude=node7`."""

    def problems(self) -> list[str]:
        """Returns what is wrong with single values that would reach the script."""
        plain = {name: getattr(self, name) for name in ("partition", "account", "qos", "time", "memory", "constraint", "gpu_type")}
        wrong = [
            f"{name}={value!r}: must be one word, as sbatch takes it"
            for name, value in plain.items()
            if value is not None and (not value or any(letter.isspace() for letter in value))
        ]
        wrong += [f"extra={option!r}: must be an option of sbatch, --NAME=VALUE" for option in self.extra if not option.startswith("--")]
        if self.gpu_type and not self.gpus:
            wrong.append(f"gpu_type={self.gpu_type}: of which none is asked for; give gpus, or leave it out")
        lines = {"setup": self.setup, "extra": self.extra}
        wrong += [f"{name}: {line!r} must not contain a line break" for name in lines for line in lines[name] if "\n" in line]
        return wrong


@settings
class SlurmSettings(JobResources):
    """Resources of each task of an array."""

    max_running: Annotated[int, Field(ge=1)] | None = None
    """Tasks of an array that may run at once."""
