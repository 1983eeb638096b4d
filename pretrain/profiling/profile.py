"""A profile of some steps of a run: a trace for chrome://tracing or Perfetto, and a table of where the time goes."""

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ...datasets.atomic import write_json, write_text
from ...datasets.ranks import Ranks
from ..settings.loggers import ProfileSettings
from ..settings.pretrain import PretrainSettings
from .operations import Operations
from .time_shares import MARK, Share, read_trace, time_shares

FOLDER = "profile"
_MOST_OPERATORS = 15


class Profile:
    """Profiles the steps after a warm-up, then keeps only the host's clock; it changes no number of the run.

    In the run folder: `profile/rank-R.trace.json.gz`, `profile/rank-R.md` and the same figures as `profile/rank-R.json`.
    """

    def __init__(self, folder: Path, settings: ProfileSettings, ranks: Ranks) -> None:
        self._name, self._settings, self._ranks = folder / FOLDER / f"rank-{ranks.rank}", settings, ranks
        self._profiler: profile | None = None
        self._first: int | None = None
        self._began, self._depth = time.perf_counter(), 0
        self._clock: dict[str, tuple[int, float]] = {}
        self._report: dict[str, Any] = {}
        self._text = ""

    def step(self, number: int) -> None:
        """Begins and ends the profile where its steps do."""
        if self._first is None:
            self._first, self._began = number, time.perf_counter()
        at = number - self._first - self._settings.warmup
        if at == -1:  # the profiler's own start takes long, so it has a step of the warm-up
            with self.during("profiling"):
                self._profiler = self._start()
        elif self._profiler is not None and at in (0, self._settings.steps):
            with self.during("profiling"):
                if self._ranks.device.type == "cuda":
                    torch.cuda.synchronize()  # what was launched before does not run into the profile, nor out of it
                self._profiler.step()
                if at:
                    self._end()
        elif self._profiler is not None:
            self._profiler.step()

    @contextlib.contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Marks the block in the trace, and puts it on the clock unless it lies inside of another."""
        began = time.perf_counter()
        self._depth += 1
        try:
            with record_function(MARK + name) if self._profiler is not None else contextlib.nullcontext():
                yield
        finally:
            self._depth -= 1
            if not self._depth:
                count, seconds = self._clock.get(name, (0, 0.0))
                self._clock[name] = (count + 1, seconds + time.perf_counter() - began)

    def close(self) -> None:
        """Ends a profile that was cut short, and adds the table of the whole training."""
        self._end()
        elapsed_s = time.perf_counter() - self._began
        if self._ranks.is_first and "num_steps" not in self._report:
            warmup = self._settings.warmup
            sys.stderr.write(
                f"bamboo: --profile: no step came after profiling.warmup={warmup}, so there is no trace; lower it, or train on\n"
            )
        self._report["whole"] = {name: {"count": count, "seconds": seconds} for name, (count, seconds) in self._clock.items()}
        write_json(self._name.with_suffix(".json"), self._report)
        write_text(self._name.with_suffix(".md"), f"{self._text}{_whole_table(self._clock, elapsed_s)}")

    def _start(self) -> profile:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._ranks.device.type == "cuda" else [])]
        steps = schedule(wait=0, warmup=1, active=self._settings.steps, repeat=1)
        profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._take)
        profiler.start()
        return profiler

    def _end(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()  # calls _take, unless that was done
            self._profiler = None

    def _take(self, profiler: profile) -> None:
        """Writes trace and tables."""
        trace = self._name.with_suffix(".trace.json.gz")
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
        events = read_trace(trace)
        num_steps = sum(event["name"].startswith("ProfilerStep#") and event["cat"] == "user_annotation" for event in events)
        if not num_steps:
            return
        shares, operators = time_shares(events), _operators(profiler, self._ranks.device)
        memory = _peak_memory(self._ranks.device)
        self._report = {"num_steps": num_steps, "shares": [dataclasses.asdict(share) for share in shares], "operators": operators, **memory}
        self._text = _text(shares, num_steps, operators, memory)
        write_text(self._name.with_suffix(".md"), self._text)
        if self._ranks.is_first:
            sys.stderr.write(f"{self._text}{trace.parent}\n")


@contextlib.contextmanager
def profiled(config: PretrainSettings, ranks: Ranks) -> Iterator[list[Operations]]:
    """Yields the profile that the settings ask for, if any; it is written when the block ends, however it does."""
    if not config.profile or not (ranks.is_first or config.profiling.all_ranks):
        yield []
        return
    profiling = Profile(config.run.folder, config.profiling, ranks)
    try:
        yield [profiling]
    finally:
        profiling.close()


def _operators(profiler: profile, device: torch.device) -> list[dict[str, Any]]:
    """Returns the operators that take most of the device's time, or of the CPU's where there is no other device."""
    rows = [
        {"name": row.key, "calls": row.count, "cpu_s": row.self_cpu_time_total / 1e6, "device_s": row.self_device_time_total / 1e6}
        for row in profiler.key_averages()
        if not row.key.startswith((MARK, "ProfilerStep"))
    ]
    by = "device_s" if device.type == "cuda" else "cpu_s"
    return sorted(rows, key=lambda row: -row[by])[:_MOST_OPERATORS]


def _peak_memory(device: torch.device) -> dict[str, int]:
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type != "cuda":
        return {"peak_host_bytes": host}
    return {"peak_host_bytes": host, "peak_device_bytes": torch.cuda.max_memory_allocated(device)}


def _text(shares: list[Share], num_steps: int, operators: list[dict[str, Any]], memory: dict[str, int]) -> str:
    step_ms = 1000 * sum(share.seconds for share in shares) / num_steps
    peaks = ", ".join(f"{name.split('_')[1]} {size / 2**30:.2f} GiB" for name, size in memory.items())
    gist = ", ".join(f"{share.name} {share.share:.0%}" for share in shares if share.share >= 0.005)
    table = [["operation", "share", "ms a step", "host ms", "device ms"]]
    for share in shares:
        in_ms = (f"{1000 * seconds / num_steps:.2f}" for seconds in (share.seconds, share.host_s, share.device_s))
        table.append([share.name, f"{share.share:.1%}", *in_ms])
    top = [["operator", "calls", "CPU ms a step", "device ms a step"]]
    for row in operators:
        in_ms = (f"{1000 * row[name] / num_steps:.2f}" for name in ("cpu_s", "device_s"))
        top.append([f"`{row['name'].replace('|', '/')}`", f"{row['calls'] / num_steps:.1f}", *in_ms])
    return (
        f"# {num_steps} steps of {step_ms:.1f} ms\n\n{gist}. Peak memory: {peaks}.\n\n{_markdown(table)}\n\n"
        f"An instant counts for what the device computes, else for exchange, copies, and what the host does; docs/logging.md has more.\n\n"
        f"## Operators\n\n{_markdown(top)}\n\n"
    )


def _whole_table(clock: dict[str, tuple[int, float]], elapsed_s: float) -> str:
    table = [["operation", "times", "seconds", "share"]]
    for name, (count, seconds) in sorted(clock.items(), key=lambda item: -item[1][1]):
        table.append([name, str(count), f"{seconds:.2f}", f"{seconds / elapsed_s:.1%}"])
    return f"## The whole training, {elapsed_s:.1f} s by the host's clock\n\n{_markdown(table)}\n"


def _markdown(table: list[list[str]]) -> str:
    header, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([header, f"|{' --- |' * len(table[0])}", *rows])
