"""A pretraining job on one or more nodes: its batch script from the template, its submission, and how it ended."""

import dataclasses
import shlex
import string
import subprocess
import sys
from pathlib import Path

from ..cli.errors import EXIT_DONE, EXIT_FAILURE, UserError
from .array import submit, wait
from .directives import directives
from .job_settings import JobSettings, RenderSettings, SubmitSettings

TEMPLATE = Path(__file__).with_name("pretrain.sh")

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
_LAST_LINES = 20


class _Script(string.Template):
    delimiter = "@@"


def render_job(job: JobSettings, folder: Path) -> str:
    """Returns the batch script of a job that starts in `folder`, the same on all nodes."""
    logs = job.logs.absolute()
    options = {
        "job-name": job.name,
        "output": f"{str(logs).replace('%', '%%')}/%j.log",
        "open-mode": "append",
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        "signal": f"B:USR1@{job.notice_s}",
    }
    return _Script(TEMPLATE.read_text()).substitute(
        directives=directives(job, options) + ("\n#SBATCH --requeue" if job.requeue else "\n#SBATCH --no-requeue"),
        folder=shlex.quote(str(folder)),
        logs=shlex.quote(str(logs)),
        environment="\n".join(f"export {name}={shlex.quote(value)}" for name, value in _environment(job).items()),
        setup="\n".join(job.setup),
        nodes=str(job.nodes),
        srun=shlex.join([*_srun(job), *_pyxis(job, folder)]),
        command="\n  ".join([*_apptainer(job, folder), *_torchrun(job), *_lines(["-m", "bamboo.pretrain", *_arguments(job)])]),
        max_idle=str(job.max_idle),
        requeue="yes" if job.requeue else "no",
    )


def render(settings: RenderSettings) -> int:
    """Carries out `bamboo slurm render` and returns the exit code."""
    settings.out.write_text(render_job(settings, Path.cwd()))
    settings.logs.mkdir(parents=True, exist_ok=True)  # SLURM fails a job whose log it cannot open, without a word
    sys.stdout.write(f"wrote {settings.out}; submit it with: sbatch {shlex.quote(str(settings.out))}\n")
    return EXIT_DONE


def submit_job(settings: SubmitSettings) -> int:
    """Carries out `bamboo slurm submit` and returns the exit code; with `wait` that is the job's.

    Raises:
        UserError: when sbatch refuses, or is not there.
    """
    script = render_job(settings, Path.cwd())
    if settings.dry_run:
        sys.stdout.write(script)
        return EXIT_DONE
    if settings.check:
        _check(settings)
    settings.logs.mkdir(parents=True, exist_ok=True)
    path = settings.logs / f"{settings.name}.sh"
    path.write_text(script)
    job = submit(path)
    log = settings.logs / f"{job.job}.log"
    sys.stdout.write(f"submitted job {job.job}: {path}, log {log}\n")
    sys.stdout.flush()
    if not settings.wait:
        return EXIT_DONE
    wait(job)
    outcome = outcome_of(settings.logs, job.job)
    if outcome.code:
        last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []
        sys.stderr.write("".join(f"  {line}\n" for line in last))
    sys.stdout.write(f"job {job.job}: {outcome.reason}\n")
    return outcome.code


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    code: int
    reason: str


def outcome_of(logs: Path, job: str) -> Outcome:
    """Returns how a job that has left the queue ended: in its script's words, or, where that was killed, in SLURM's."""
    try:
        code, _, reason = (logs / job / "outcome").read_text().strip().partition("\n")
        return Outcome(int(code), reason)
    except (OSError, ValueError):
        return Outcome(EXIT_FAILURE, f"its script ended without a word; SLURM says: {_state(job)}")


def _state(job: str) -> str:
    """Returns what SLURM remembers of a job, for some minutes."""
    shown = subprocess.run(["scontrol", "show", "--oneliner", "job", job], capture_output=True, text=True, check=False)
    words = dict(word.partition("=")[::2] for word in shown.stdout.split())
    told = [f"{name}={words[name]}" for name in ("JobState", "Reason", "ExitCode") if name in words]
    return " ".join(told) or shown.stderr.strip() or "nothing"


def _check(settings: SubmitSettings) -> None:
    """Has `bamboo pretrain --dry-run` look at the arguments, in an interpreter of its own: this room knows nothing of pretraining."""
    command = [sys.executable, "-m", "bamboo.pretrain", *_arguments(settings), "--dry_run", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).removeprefix("bamboo pretrain: ")
        raise UserError(f"the arguments of bamboo pretrain do not work here: {said}\n(--check false submits all the same)")


def _arguments(job: JobSettings) -> list[str]:
    """Returns the arguments of `bamboo pretrain`, also where the verb was written before them."""
    words = list(job.arguments)
    for verb in ("bamboo", "pretrain"):
        if words and words[0] == verb:
            words.pop(0)
    return words


def _environment(job: JobSettings) -> dict[str, str]:
    interfaces = {"NCCL_SOCKET_IFNAME": job.interface, "GLOO_SOCKET_IFNAME": job.interface} if job.interface else {}
    return {"NCCL_DEBUG": "WARN", **interfaces, **job.env}


def _srun(job: JobSettings) -> list[str]:
    nodes = str(job.nodes)  # srun no longer takes cpus-per-task from sbatch
    return [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus}", "--wait=60", "--export=ALL"]


def _mounts(job: JobSettings, folder: Path) -> list[str]:
    ours = dict.fromkeys(str(path) for path in (folder, job.logs.absolute()))
    return [*(f"{path}:{path}" for path in ours), *job.mounts]


def _pyxis(job: JobSettings, folder: Path) -> list[str]:
    if job.image is None or job.runtime != "pyxis":
        return []
    mounts = ",".join(_mounts(job, folder))
    return [f"--container-image={job.image}", f"--container-mounts={mounts}", f"--container-workdir={folder}"]


def _apptainer(job: JobSettings, folder: Path) -> list[str]:
    if job.image is None or job.runtime != "apptainer":
        return []
    binds = [word for mount in _mounts(job, folder) for word in ("--bind", mount)]
    return _lines(["apptainer", "exec", *(["--nv"] if job.gpus else []), *binds, "--pwd", str(folder), job.image])


def _torchrun(job: JobSettings) -> list[str]:
    """Returns lines of shell words: torchrun with what only the script knows, the place of the rendezvous and the attempt."""
    python = job.python or (sys.executable if job.image is None else "python3")
    return [
        *_lines([python, "-m", "bamboo.pretrain.launch", f"--nnodes={job.nodes}", f"--nproc-per-node={job.ranks_per_node}"]),
        '--rdzv-backend=c10d --rdzv-endpoint="$host:$port" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"',
        *_lines([f"--max-restarts={job.max_restarts}", f"--signals-to-handle={_SIGNALS}", f"--shutdown-timeout={job.notice_s}"]),
        "--tee=3 --local-ranks-filter=0",  # every rank has log files of its own; the job's log takes the first of each node
    ]


def _lines(words: list[str]) -> list[str]:
    return [shlex.join(words)]
