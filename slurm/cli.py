"""`bamboo slurm submit|render|status`: pretraining as a job of a SLURM cluster that saves before it is stopped, and resumes.

bamboo slurm submit --nodes 2 --gpus 8 --time 8:00:00 -- --config run.yaml
"""

from collections.abc import Sequence

from ..cli.commands import Command, run_command, settings_of
from .job_settings import RenderSettings, StatusSettings, SubmitSettings

COMMANDS = {
    "submit": Command(
        settings=SubmitSettings,
        run="bamboo.slurm.job.submit_job",
        line="write the batch script of a pretraining run, or of a sweep of them, and submit it",
        positional=("arguments",),
    ),
    "render": Command(
        settings=RenderSettings,
        run="bamboo.slurm.job.render",
        line="write the batch script only, for editing by hand",
        positional=("arguments",),
    ),
    "status": Command(
        settings=StatusSettings,
        run="bamboo.slurm.status.show_status",
        line="show how jobs, or the cells of a sweep, stand: state, step, why they ended",
        positional=("folder",),
    ),
}
SETTINGS = settings_of(COMMANDS)


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code."""
    return run_command("slurm", COMMANDS, argv, start="bamboo slurm submit --dry-run --nodes 2 --gpus 8 -- --config run.yaml")
