"""The time line of docs/slurm.md: made from a real job's log and its run's, put between two marks, read back."""

import re
import time
from pathlib import Path

from bamboo.pretrain.log import read_log
from tests.doc_blocks import offer_block, read_block

_DOC, _NAME = "slurm.md", "time line"
_LINE = re.compile(r"\d\d:\d\d:\d\d  (script|run): (.+)")
_COURSE = (
    r"script: job \d+, attempt 0: 2 nodes \(node\[1-2\]\)",
    r"run: start, step 0",
    r"run: train, step 1",
    r"script: USR1: the ranks are to save and stop",
    r"run: stop, step (?P<stopped>\d+)",
    r"script: stopped after step (?P<saved>\d+); back into the queue",
    r"script: job \d+, attempt 1: 2 nodes \(node\[1-2\]\)",
    r"run: start, step (?P<resumed>\d+)",
    r"run: train, step (?P<last>\d+)",
    r"script: finished",
)


def time_line(folder: Path, log: str, last: int) -> str:
    """Returns the batch script's own lines and some rows of the run's log, by time.

    Args:
        folder: the run folder.
        log: text of the job's log.
        last: the run's last step; of its training steps this one and the first are shown.
    """
    events = []
    for kind in ("start", "train", "stop"):
        rows = [row for row in read_log(folder, kind) if kind != "train" or row["step"] in (1, last)]
        events += [(time.strftime("%F %T", time.localtime(row["time"])), f"run: {kind}, step {row['step']}") for row in rows]
    for moment, said in re.findall(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)$", log, re.MULTILINE):
        events.append((moment, "script: " + said.partition(", rendezvous")[0]))
    return "".join(f"{moment.split()[1]}  {what}\n" for moment, what in sorted(events, key=_place))


def _place(event: tuple[str, str]) -> tuple[str, int]:
    """Returns what events are sorted by: the time and, within the second that the script's clock tells, the course they must take."""
    return event[0], next((at for at, words in enumerate(_COURSE) if re.fullmatch(words, event[1])), len(_COURSE))


def refuse(text: str) -> str:
    """Returns what is wrong with a time line; "" where it tells of a job that was stopped once, resumed where it stopped, and finished."""
    lines = text.splitlines()
    if not all(map(_LINE.fullmatch, lines)):
        return f"not lines of TIME  script|run: WORDS:\n{text}"
    found: dict[str, str] = {}
    told = iter(line.partition("  ")[2] for line in lines)
    for event in _COURSE:
        match = next((match for words in told if (match := re.fullmatch(event, words))), None)
        if match is None:
            return f"no {event!r} after what comes before it:\n{text}"
        found |= match.groupdict()
    return "" if found["stopped"] == found["saved"] == found["resumed"] else f"stopped, saved and resumed at different steps: {found}"


def read_doc() -> str:
    """Returns the time line that the doc shows."""
    return read_block(_DOC, _NAME).removeprefix("```\n").removesuffix("```")


def offer_doc(text: str) -> None:
    """Puts a time line into the doc, if the docs are to be written."""
    offer_block(_DOC, _NAME, f"```\n{text}```")
