"""What a figure needs beside it to be believed: command, machine, versions, date, revision; and how rounds are compared.

benchmarks/results/NAME.json  everything, with every round
benchmarks/results/NAME.md    the table, with the same provenance
"""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median over rounds, with the least and the greatest."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.least:.3f} – {self.greatest:.3f})"


def spread(values: Sequence[float]) -> Spread:
    """Returns the spread of one figure over rounds."""
    return Spread(statistics.median(values), min(values), max(values))


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1, unit: str = "CPU s") -> dict[str, list[float]]:
    """Returns name → CPU seconds of each round, or what `unit` says, as the contenders tell them.

    A round runs every contender once, in turn, so that a busy machine slows all alike; every other round runs in reverse order.
    The first `warmup` rounds are thrown away.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            used = contenders[name]()
            sys.stderr.write(f"{'warm-up' if number < 0 else f'round {number + 1}/{rounds}'} {name}: {used:.3f} {unit}\n")
            if number >= 0:
                seconds[name].append(used)
    return seconds


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Returns the spread of the ratios within rounds."""
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])


def best_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Returns the ratio of the best rounds: what other work on the machine disturbs least, since it can only add to a time."""
    return min(numerators) / min(denominators)


def provenance(packages: Iterable[str]) -> dict[str, Any]:
    """Returns command, machine, versions, date and git revision of this run."""
    return {
        "command": " ".join(["python", *_command()]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "revision": _revision(),
        "machine": {"cpu": _cpu_model(), "cpus": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def write_results(name: str, title: str, made: Mapping[str, Any], table: Sequence[Sequence[str]], notes: str, rounds: Any) -> None:
    """Prints a table, and writes it with its provenance as `results/NAME.md` and, with every round, as `results/NAME.json`.

    Args:
        name: file name without suffix; title: the heading.
        made: what `provenance` returned before the measurement.
        table: rows of cells, the first the header.
        notes: what was measured and how, in Markdown.
        rounds: every figure, as JSON.
    """
    body = _markdown(table)
    machine = made["machine"]
    versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
    facts = [
        f"`{made['command']}`, {made['date']}, revision {made['revision']}",
        ", ".join([f"{machine['cpus']} × {machine['cpu']}, load {machine['load_before']} before", *machine.get("gpus", [])]),
        versions,
    ]
    RESULTS.mkdir(exist_ok=True)
    text = "\n\n".join([f"# {title}", body, notes.strip(), "\n".join(f"- {fact}" for fact in facts)])
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    tree = {"title": title, **made, "table": table, "rounds": rounds}
    (RESULTS / f"{name}.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    print(body)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    header, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([header, f"|{' --- |' * len(table[0])}", *rows])


def _command() -> list[str]:
    script = Path(sys.argv[0]).resolve()
    return [str(script.relative_to(_ROOT) if script.is_relative_to(_ROOT) else script.name), *sys.argv[1:]]


def _revision() -> str:
    git = ["git", "-c", f"safe.directory={_ROOT}", "-C", str(_ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "--", "*.py"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with uncommitted changes" if changed.strip() else head


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
