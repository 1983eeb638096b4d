"""What a run leaves for whoever may start it again: a marker that says how it ended, and exit code 75 where it was stopped.

torchrun reports exit code 75 of its ranks as 1, and where it may restart it starts them again. The marker, written by rank 0 when all
else is written, is what a batch script looks at, and what ranks that were restarted all the same find.
"""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cli.errors import EXIT_RESUMABLE, BambooError
from ...datasets.atomic import write_json

if TYPE_CHECKING:
    from ...datasets.ranks import Ranks

MARKER_NAME = "ended.json"
MARKER_VARIABLE = "BAMBOO_ENDED_FILE"
FINISHED = "finished"


class Stopped(BambooError):  # noqa: N818  # it is reported like an error, and is none
    """The run has ended early, as it was asked to, with its state saved."""

    exit_code = EXIT_RESUMABLE

    def __init__(self, step: int, samples: int, number: int) -> None:
        self.step, self.samples, self.signal = step, samples, signal.Signals(number).name if number else "an earlier signal"
        super().__init__(f"stopped on {self.signal} after step {step}, which is saved; the same command goes on from there")


@dataclasses.dataclass(frozen=True)
class Marker:
    """The file that says how the run in `folder` ended: after which step, why (a signal, or finished), and under which launch."""

    folder: Path

    @property
    def path(self) -> Path:
        """Where it lies: as BAMBOO_ENDED_FILE says, or in the run folder."""
        given = os.environ.get(MARKER_VARIABLE)
        return Path(given) if given else self.folder / MARKER_NAME

    def write(self, step: int, reason: str) -> None:
        """Writes it, atomically."""
        write_json(self.path, {"step": step, "reason": reason, "time": round(time.time(), 3), "launch": _launch()})

    def is_of_this_launch(self, ranks: "Ranks") -> bool:
        """Whether the launcher started these ranks again although they stopped on request; if not, the marker is removed.

        The launcher's count of restarts goes up only where it saw the failure, so the ranks' are added up.
        """
        import torch  # seconds: the launcher, which only asks for the file, does without

        restarts = ranks.sum(torch.tensor(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")), device=ranks.device))
        read = read_marker(self.path) if ranks.is_first else {}
        found = ranks.from_first("" if read.get("reason") == FINISHED else str(read.get("launch", "")))
        again = bool(found) and found == _launch() and int(restarts) > 0
        if ranks.is_first and not again:
            self.path.unlink(missing_ok=True)
        return again


def read_marker(path: Path) -> dict[str, Any]:
    """Returns what a marker says: step, reason, time and launch; nothing where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _launch() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "") or "none"
