"""The batch script of a pretraining job, or of a sweep of them, from the template."""

import re
import shlex
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import UserError
from .array import array_option, log_pattern
from .directives import directives, setup_lines
from .job_settings import JobSettings
from .sweep import Cell

TEMPLATE = Path(__file__).with_name("pretrain.sh")

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

_CELL = """\
case $SLURM_ARRAY_TASK_ID in
{cases}
  *) finish 1 "the sweep has no cell $SLURM_ARRAY_TASK_ID" ;;
esac
state=$logs/$cell
mkdir -p "$state" || finish 1 "the folder of logs cannot be written"
ln -sfn "../$job.log" "$state/log"
echo "$job" > "$state/job"
if grep -qs '"reason": "finished"' "$state/ended.json"; then finish 0 "finished before"; fi"""


class _Script(string.Template):
    delimiter = "@@"


def render_job(job: JobSettings, folder: Path, cells: Sequence[Cell] = ()) -> str:
    """Returns the batch script of a job that starts in `folder`, the same on all nodes; with `cells`, of an array with a task for each.

    Raises:
        UserError: for a folder that the container's runtime cannot mount.
    """
    logs = job.logs_folder.absolute()
    options = {
        "job-name": job.name,
        "array": array_option([cell.number for cell in cells], job.max_running) if cells else None,
        "output": log_pattern(logs, "%A_%a" if cells else "%j"),
        "open-mode": "append",
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "signal": f"B:USR1@{job.notice_s}",
        "requeue" if job.requeue else "no-requeue": "",
    }
    return _Script(TEMPLATE.read_text()).substitute(
        directives=directives(job, options),
        folder=shlex.quote(str(folder)),
        logs=shlex.quote(str(logs)),
        state=_cases(job, cells) if cells else 'state=$logs/$job\nmkdir -p "$state" || finish 1 "the folder of logs cannot be written"',
        setup=setup_lines(job.setup),
        environment="\n".join(f"export {name}={value}" for name, value in _environment(job).items()),
        interpreter=_interpreter_check(job),
        nodes=str(job.nodes),
        srun=shlex.join([*_srun(job), *_pyxis(job, folder), *job.srun]),
        command="\n  ".join([*_apptainer(job, folder), *_torchrun(job), *_pretrain(job, cells)]),
        max_idle=str(job.max_idle),
        requeue="yes" if job.requeue else "no",
    )


def arguments_of(job: JobSettings, cell: Cell | None = None) -> list[str]:
    """Returns the arguments of `bamboo pretrain`, also where the verb was written before them; of a cell, with its own at the end."""
    words = list(job.arguments)
    for verb in ("bamboo", "pretrain"):
        if words and words[0] == verb:
            words.pop(0)
    return words if cell is None else [*words, *cell.overrides, f"--run.folder={run_folder(job, cell)}"]


def run_folder(job: JobSettings, cell: Cell) -> Path:
    """Returns the run folder of a cell."""
    assert job.runs is not None, "a sweep has a folder of runs"
    return job.runs.absolute() / cell.name


def _cases(job: JobSettings, cells: Sequence[Cell]) -> str:
    """Returns shell lines that set, by the number of the task, the cell's name, its own arguments and its folder of logs."""
    first = len(arguments_of(job))
    lines = [
        f"  {cell.number}) cell={shlex.quote(cell.name)} own=({shlex.join(arguments_of(job, cell)[first:])}) ;;"  # as many as there are
        for cell in cells
    ]
    return _CELL.format(cases="\n".join(lines))


def _environment(job: JobSettings) -> dict[str, str]:
    """Returns the variables as the shell sets them: what the user exported already holds against our default, and his settings most."""
    interfaces = {"NCCL_SOCKET_IFNAME": job.interface, "GLOO_SOCKET_IFNAME": job.interface} if job.interface else {}
    given = {name: shlex.quote(value) for name, value in {**interfaces, **job.env}.items()}
    return {"NCCL_DEBUG": "${NCCL_DEBUG:-WARN}", **given}


def _interpreter_check(job: JobSettings) -> str:
    """Returns a line that ends the job where the interpreter is not there; what a container holds is not seen from outside."""
    if job.image is not None:
        return ""
    python = shlex.quote(_python(job))
    return f'command -v {python} > /dev/null || fail "no interpreter "{python}" on ${{SLURMD_NODENAME:-this node}}; see --python"'


def _python(job: JobSettings) -> str:
    return job.python or (sys.executable if job.image is None else "python3")


def _srun(job: JobSettings) -> list[str]:
    """Returns srun's options: one launcher per node, which ends when all have, a minute after the first at the latest."""
    nodes = str(job.nodes)  # srun no longer takes cpus-per-task from sbatch
    place = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus}"]
    return [*place, "--kill-on-bad-exit=0", "--wait=60", "--export=ALL", "--mpi=none"]


def _mounts(job: JobSettings, folder: Path) -> list[str]:
    logs = job.logs_folder.absolute()
    ours = dict.fromkeys(str(path) for path in (folder, logs, *([] if job.runs is None else [job.runs.absolute()])))
    odd = [path for path in ours if re.search("[,:]", path)]
    if odd:
        raise UserError(f"{odd[0]}: a folder with a comma or a colon cannot be mounted into a container; start from another")
    return [*(f"{path}:{path}" for path in ours), *job.mounts]


def _pyxis(job: JobSettings, folder: Path) -> list[str]:
    if job.image is None or job.runtime != "pyxis":
        return []
    mounts = ",".join(_mounts(job, folder))
    names = ",".join(_environment(job))  # else the image's own values win
    return [f"--container-image={job.image}", f"--container-mounts={mounts}", f"--container-workdir={folder}", f"--container-env={names}"]


def _apptainer(job: JobSettings, folder: Path) -> list[str]:
    if job.image is None or job.runtime != "apptainer":
        return []
    binds = [word for mount in _mounts(job, folder) for word in ("--bind", mount)]
    return [shlex.join(["apptainer", "exec", *(["--nv"] if job.gpus else []), *binds, "--pwd", str(folder), job.image])]


def _torchrun(job: JobSettings) -> list[str]:
    """Returns lines of shell words: torchrun with what only the script knows, the place of the rendezvous and the attempt."""
    return [
        shlex.join([_python(job), "-m", "bamboo.pretrain.launch", f"--nnodes={job.nodes}", f"--nproc-per-node={job.ranks_per_node}"]),
        '--rdzv-backend=c10d --rdzv-endpoint="$host:$port" --rdzv-id="$SLURM_JOB_ID.$restarts"',
        shlex.join([f"--max-restarts={job.max_restarts}", f"--signals-to-handle={_SIGNALS}", f"--shutdown-timeout={job.notice_s}"]),
        "--tee=3 --local-ranks-filter=0",  # every rank has log files of its own; the job's log takes the first of each node
    ]


def _pretrain(job: JobSettings, cells: Sequence[Cell]) -> list[str]:
    return [shlex.join(["-m", "bamboo.pretrain", *arguments_of(job)]), *(['"${own[@]}"'] if cells else [])]
