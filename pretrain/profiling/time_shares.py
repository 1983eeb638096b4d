"""Where the time of profiled steps goes: every instant is put down to one operation, from the profiler's trace.

An instant belongs to what the device computes then, by the operation that launched it; where it computes nothing, to the exchange
between ranks; then to copies; and where the device is idle, to what the host does meanwhile. So the shares add up to 1, "data" is the
time in which nothing runs because no batch is there, and "exchange" what communication adds to the computation that hides it. On a CPU
the operators of all threads take the place of the device's kernels.
"""

import bisect
import dataclasses
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .operations import BACKWARD, FORWARD, OPTIMIZER, TRANSFER

MARK = "bamboo."
"""What the marks of operations begin with in a trace."""
EXCHANGE = "exchange"
"""Ranks exchange gradients or weights."""
OTHER = "other"
"""Outside all marks."""

_COMPUTES, _EXCHANGES, _COPIES, _HOST = range(4)  # who takes an instant that several claim
_DEVICE = {"kernel": _COMPUTES, "gpu_memset": _COMPUTES, "gpu_memcpy": _COPIES}
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_EXCHANGING = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel", "c10d::", "record_param_comms")


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of time, in µs, that an operation claims; where several do, the lowest rank has it."""

    start: float
    end: float
    rank: int
    name: str


@dataclasses.dataclass(frozen=True)
class Share:
    """What one operation took of the profiled steps."""

    name: str
    share: float
    """Part of the elapsed time, in [0, 1]."""
    seconds: float
    """The same in seconds."""
    host_s: float
    """How long the host was in it."""
    device_s: float
    """How long the device was busy with what it launched, overlaps counted twice; 0 on a CPU."""


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Returns the events with a duration of a gzipped Chrome trace."""
    with gzip.open(path, "rb") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X" and "dur" in event]


def time_shares(events: Sequence[dict[str, Any]]) -> list[Share]:
    """Returns the share of each operation, the greatest first, over the steps that the profiler marked.

    Raises:
        ValueError: when the trace has no such step.
    """
    steps = [_span(event) for event in events if event["name"].startswith("ProfilerStep#") and event["cat"] == "user_annotation"]
    if not steps:
        raise ValueError("the trace holds no step")
    window = (min(start for start, _ in steps), max(end for _, end in steps))
    host = _Host(events)
    device = list(_device_spans(events, host))
    spans = [*host.spans, *(device or _operator_spans(events, host))]
    seconds = sweep(spans, *window)
    total = sum(seconds.values())
    names = {*seconds, *(span.name for span in spans)} - ({OTHER} - seconds.keys())
    shares = []
    for name in names:
        taken = seconds.get(name, 0.0)
        shares.append(Share(name, taken / total, taken, _length(host.spans, name, window), _length(device, name, window)))
    return sorted(shares, key=lambda share: (-share.seconds, share.name))


def sweep(spans: Iterable[Span], start: float, end: float) -> dict[str, float]:
    """Returns name → seconds of the window [start, end] in µs, each instant put down to the span of the lowest rank, or to "other"."""
    edges = []
    for span in spans:
        low, high = max(span.start, start), min(span.end, end)
        if low < high:
            edges += [(low, 1, span.rank, span.name), (high, -1, span.rank, span.name)]
    edges.sort()
    active: dict[tuple[int, str], int] = {}
    seconds: dict[str, float] = {}
    now = start
    for at, change, rank, name in [*edges, (end, 0, math.inf, "")]:
        if at > now:
            holder = min(active)[1] if active else OTHER
            seconds[holder] = seconds.get(holder, 0.0) + (at - now) / 1e6
            now = at
        if change:
            count = active.get((int(rank), name), 0) + change
            if count:
                active[int(rank), name] = count
            else:
                del active[int(rank), name]
    return seconds


class _Host:
    """What the training thread is in, by the outermost marks."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        marks = [event for event in events if event["cat"] == "user_annotation" and event["name"].startswith(MARK)]
        self.spans: list[Span] = []
        for event in sorted(marks, key=lambda event: (event["ts"], -event["dur"])):
            start, end = _span(event)
            if not self.spans or start >= self.spans[-1].end:
                self.spans.append(Span(start, end, _HOST, event["name"].removeprefix(MARK)))
        self._starts = [span.start for span in self.spans]

    def at(self, instant: float) -> str:
        """Returns the operation that the host was in then."""
        index = bisect.bisect_right(self._starts, instant) - 1
        return self.spans[index].name if index >= 0 and instant <= self.spans[index].end else OTHER


def _device_spans(events: Sequence[dict[str, Any]], host: _Host) -> Iterable[Span]:
    """Yields what ran on a GPU, named by the operation in which the host launched it."""
    launched = {event["args"].get("correlation"): event["ts"] for event in events if event["cat"] in _LAUNCHES}
    for event in events:
        if event["cat"] not in _DEVICE:
            continue
        name = host.at(launched.get(event.get("args", {}).get("correlation"), event["ts"]))
        rank = _DEVICE[event["cat"]]
        if _exchanges(event):
            rank, name = _EXCHANGES, EXCHANGE
        elif rank == _COPIES and "HtoD" in event["name"]:
            name = TRANSFER
        yield Span(*_span(event), rank, name)


def _operator_spans(events: Sequence[dict[str, Any]], host: _Host) -> Iterable[Span]:
    """Yields what ran on a CPU inside the marks of a step's own work; elsewhere, what the host is in is all that counts."""
    for event in events:
        if event["cat"] not in ("cpu_op", "user_annotation") or event["name"].startswith((MARK, "ProfilerStep#")):
            continue
        start, end = _span(event)
        if _exchanges(event):
            for span in host.spans:
                if span.name in (FORWARD, BACKWARD, OPTIMIZER) and span.start < end and start < span.end:
                    yield Span(max(start, span.start), min(end, span.end), _EXCHANGES, EXCHANGE)
        elif event["cat"] == "cpu_op":
            yield Span(start, end, _COMPUTES, host.at(start))


def _exchanges(event: dict[str, Any]) -> bool:
    return str(event["name"]).startswith(_EXCHANGING)


def _span(event: dict[str, Any]) -> tuple[float, float]:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def _length(spans: Iterable[Span], name: str, window: tuple[float, float]) -> float:
    return sum(max(min(span.end, window[1]) - max(span.start, window[0]), 0.0) for span in spans if span.name == name) / 1e6
