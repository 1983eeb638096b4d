"""What is said when ranks have died: which, how, where their words are, what became of the others, and what happens next."""

import dataclasses
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from ...cli.arguments import parse
from ...cli.errors import EXIT_RESUMABLE, UserError
from ..settings.pretrain import PretrainSettings

MODULE = "bamboo.pretrain"


@dataclasses.dataclass(frozen=True)
class Death:
    """A rank that has ended otherwise than by finishing."""

    rank: int
    local_rank: int
    pid: int
    exit_code: int
    """Negative: the signal that ended it."""
    log: str = ""
    """Where its standard error went; "": to the launcher's."""

    def describe(self, out_of_memory: bool) -> str:
        """Returns a sentence."""
        return (
            f"rank {self.rank} (node {socket.gethostname()}, local rank {self.local_rank}, process {self.pid}) {self._how(out_of_memory)}"
        )

    def _how(self, out_of_memory: bool) -> str:
        if self.exit_code == -signal.SIGKILL:
            if out_of_memory:
                return "was killed by the kernel (signal 9, SIGKILL): this job's memory ran out"
            return "was killed (signal 9, SIGKILL): by the kernel if memory ran out, as `dmesg` would say, by the scheduler, or by a person"
        if self.exit_code < 0:
            return f"was ended by signal {-self.exit_code}, {_name(-self.exit_code)}"
        if self.exit_code > 128:
            return f"ended with exit code {self.exit_code}: told to stop twice, by {_name(self.exit_code - 128)}"
        return f"ended with exit code {self.exit_code}, of an error"


def first_to_die(deaths: Sequence[Death]) -> list[Death]:
    """Returns those that nobody else's death explains: those ended by a signal, else all.

    Ranks whose peer was killed fail in their next collective, and may do so before the launcher looks; its own signal is SIGTERM.
    """
    signalled = [death for death in deaths if death.exit_code < 0 and death.exit_code != -signal.SIGTERM]
    return signalled or list(deaths)


def is_stop(deaths: Sequence[Death]) -> bool:
    """Whether the ranks have stopped as they were asked to, with their state saved; the launcher ends those that are slower to end."""
    codes = {death.exit_code for death in deaths}
    return EXIT_RESUMABLE in codes and codes <= {EXIT_RESUMABLE, -signal.SIGTERM}


def tell(deaths: Sequence[Death], *, restart: int, max_restarts: int, step: int | None, out_of_memory: bool = False) -> str:
    """Returns the paragraph.

    Args:
        restart: number of the restart that follows, from 1; 0: none does.
        step: of the newest checkpoint; None: there is none, or it is not known where it would be.
        out_of_memory: whether the kernel has killed a process of this job for memory.
    """
    first = first_to_die(deaths)
    lines = [death.describe(out_of_memory) for death in first]
    logs = [death.log for death in first if death.log]
    lines.append(f"its last words: {', '.join(logs)}" if logs else "its last words, if any, stand above")
    others = sorted(death.rank for death in deaths if death not in first)
    failed = f"; rank{'s' * (len(others) > 1)} {', '.join(map(str, others))} had failed already, as it was gone" if others else ""
    lines.append(f"the other ranks of this node were ended because of it{failed}")
    since = "from the start, as nothing is saved yet" if step is None else f"from the checkpoint after step {step}"
    if restart:
        lines.append(f"all ranks start again, restart {restart} of {max_restarts}, {since}")
    else:
        tried = f"all {max_restarts} restarts are used up" if max_restarts else "no restarts were asked for (--max-restarts)"
        lines.append(f"the job ends: {tried}; the same command goes on {since}")
    return "bamboo pretrain: " + ";\n  ".join(lines) + "\n"


def run_folder(argv: Sequence[str]) -> Path | None:
    """Returns the folder of the run that torchrun's arguments describe; None: they are of none, or wrong, as the ranks will say."""
    words = list(argv)
    if MODULE not in words or {"-h", "--help"} & set(words):
        return None
    try:
        return parse(PretrainSettings, words[words.index(MODULE) + 1 :], prog="launch", doc="").run.folder
    except (UserError, OSError, ValueError, SystemExit):
        return None


def newest_step(argv: Sequence[str]) -> int | None:
    """Returns the step of the newest checkpoint of the run that torchrun's arguments describe; None: none, or not to be known."""
    folder = run_folder(argv)
    try:
        return None if folder is None else int((folder / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except (OSError, ValueError):
        return None


def memory_kills(cgroup: Path | None = None) -> int:
    """Returns how many processes the kernel has killed for memory in this process's control group; 0 where it does not say."""
    try:
        place = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].split(":", 2)[2].lstrip("/")
        file = (cgroup or Path("/sys/fs/cgroup") / place) / "memory.events"
        return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
    except (OSError, IndexError, ValueError, StopIteration):
        return 0


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "which has no name"
