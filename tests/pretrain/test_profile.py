"""The profile: where time goes, against made-up traces, a slow twin and a run without it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bamboo.cli.main import main
from bamboo.pretrain.log import read_log
from bamboo.pretrain.profiling.time_shares import OTHER, Span, read_trace, sweep, time_shares
from tests.pretrain.launch import options, train

_SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3), st.sampled_from("abc")), max_size=12)


@given(_SPANS)
def test_every_instant_is_put_down_once(drawn: list[tuple[int, int, int, str]]) -> None:
    """The sweep against a twin that asks each microsecond of the window for its lowest span."""
    spans = [Span(min(a, b), max(a, b), rank, name) for a, b, rank, name in drawn]
    expected: dict[str, int] = {}
    for instant in range(5, 35):
        claims = [(span.rank, span.name) for span in spans if span.start <= instant < span.end]
        holder = min(claims)[1] if claims else OTHER
        expected[holder] = expected.get(holder, 0) + 1
    assert {name: round(seconds * 1e6) for name, seconds in sweep(spans, 5, 35).items()} == expected


def event(category: str, name: str, start: float, end: float, correlation: int | None = None) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start, "args": {"correlation": correlation}}


def test_a_device_is_read_by_what_launched_its_work() -> None:
    """A step of 100 µs by hand: the host runs ahead of the device, waits for data, and NCCL is half hidden by the backward pass."""
    annotation = "user_annotation"
    events = [
        event(annotation, "ProfilerStep#3", 0, 100),
        event(annotation, "bamboo.data", 0, 20),
        event(annotation, "bamboo.forward", 20, 30),
        event(annotation, "bamboo.transfer", 21, 22),  # inside of another: the outermost counts
        event(annotation, "bamboo.backward", 30, 40),
        event(annotation, "bamboo.optimizer", 40, 45),
        event("cuda_runtime", "cudaMemcpyAsync", 21, 21.5, 1),
        event("cuda_runtime", "cudaLaunchKernel", 25, 26, 2),
        event("cuda_runtime", "cudaLaunchKernel", 35, 36, 3),
        event("cuda_runtime", "cudaLaunchKernel", 36, 37, 4),
        event("cuda_driver", "cuLaunchKernel", 44, 44.5, 5),
        event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 22, 26, 1),
        event("kernel", "gemm", 26, 50, 2),
        event("kernel", "gemm", 50, 70, 3),
        event("kernel", "ncclDevKernel_AllReduce", 60, 80, 4),
        event("kernel", "multi_tensor_apply", 80, 95, 5),
        event("cpu_op", "aten::mm", 24, 27),  # of no matter where there is a device
    ]
    shares = {share.name: share for share in time_shares(events)}
    microseconds = {name: round(share.seconds * 1e6, 6) for name, share in shares.items()}
    expected = {"data": 20, "transfer": 4, "forward": 2 + 24, "backward": 20, "exchange": 10, "optimizer": 15, "other": 5}
    assert microseconds == expected
    assert sum(share.share for share in shares.values()) == pytest.approx(1)
    assert (shares["forward"].host_s, shares["forward"].device_s) == pytest.approx((10e-6, 24e-6))
    assert shares["exchange"].device_s == pytest.approx(20e-6)


def test_without_a_device_the_operators_are_read() -> None:
    """A step of 100 µs on a CPU by hand: waiting for gloo counts where nothing computes, and a vote that runs beside the work does not."""
    annotation = "user_annotation"
    events = [
        event(annotation, "ProfilerStep#3", 0, 100),
        event(annotation, "bamboo.data", 0, 30),
        event(annotation, "bamboo.backward", 30, 90),
        event("cpu_op", "aten::mm", 30, 60),
        event("cpu_op", "gloo:all_reduce", 0, 30),
        event("cpu_op", "gloo:all_reduce", 50, 80),
    ]
    microseconds = {share.name: round(share.seconds * 1e6, 6) for share in time_shares(events)}
    assert microseconds == {"data": 30, "backward": 30 + 10, "exchange": 20, "other": 10}


def figures(folder: Path) -> list[tuple[Any, ...]]:
    return [(row["step"], row["loss"], row["grad_norm"], row["stream"]) for row in read_log(folder, "train")]


def test_a_profile_changes_no_number(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with `--profile` against one without: every row equal; the shares add up to 1, and every operation of a step is there."""
    settings = {"run.duration": "7 steps", "run.ema_decay": "0.9", "data.workers": "0"}
    assert main(["pretrain", *options(pool, tmp_path / "plain", settings)]) == 0
    short = ["--profiling.warmup", "2", "--profiling.steps", "3"]
    assert main(["pretrain", *options(pool, tmp_path / "profiled", settings), "--profile", *short]) == 0
    assert figures(tmp_path / "profiled") == figures(tmp_path / "plain")
    folder = tmp_path / "profiled" / "profile"
    report = json.loads((folder / "rank-0.json").read_bytes())
    assert report["num_steps"] == 3
    assert sum(share["share"] for share in report["shares"]) == pytest.approx(1)
    seconds = {share["name"]: share["seconds"] for share in report["shares"]}
    assert {"data", "transfer", "forward", "backward", "optimizer", "average", "logging"} <= seconds.keys()
    assert all(seconds[name] > 0 for name in ("data", "forward", "backward", "optimizer", "average", "logging"))
    assert report["whole"]["evaluation"]["count"] == 1
    assert report["whole"]["forward"]["count"] == 7
    assert report["operators"]
    assert "# 3 steps of" in capsys.readouterr().err
    assert {"forward", "backward"} <= {event["name"].removeprefix("bamboo.") for event in read_trace(folder / "rank-0.trace.json.gz")}


def test_a_profile_cut_short_is_written(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ends inside of the profile, and one that ends before it: the steps there were, and the host's clock alone, with why."""
    for name, duration, num_steps in (("inside", "4 steps", 2), ("before", "1 steps", None)):
        arguments = options(pool, tmp_path / name, {"run.duration": duration, "profiling.warmup": "2", "profiling.steps": "9"})
        assert main(["pretrain", *arguments, "--profile"]) == 0
        report = json.loads((tmp_path / name / "profile" / "rank-0.json").read_bytes())
        assert report.get("num_steps") == num_steps
        assert report["whole"]["forward"]["count"] == int(duration.split()[0])
        assert ("no step came after profiling.warmup=2" in capsys.readouterr().err) == (num_steps is None)


def test_what_is_profiled_needs_a_profile(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A section that nobody reads: exit code 2, setting and remedy named."""
    assert main(["pretrain", *options(pool, tmp_path / "run", {"profiling.steps": "3"})]) == 2
    assert "profiling.steps=3: nothing is profiled; add --profile" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("engine", [{}, {"engine__kind": "fsdp"}, {"engine__kind": "deepspeed", "engine__zero_stage": "3"}])
def test_ranks_have_a_table_each(pool: Path, tmp_path: Path, engine: dict[str, str]) -> None:
    """Two ranks over gloo, both profiled, under each engine: tables that add up, with time in the exchange of gradients."""
    settings = {"run__duration": "12 steps", "profiling__all_ranks": "true", "profile": "true", "profiling__steps": "5"}
    train(pool, tmp_path, 2, **settings, **engine)
    exchanged = []
    for rank in (0, 1):
        shares = json.loads((tmp_path / "profile" / f"rank-{rank}.json").read_bytes())["shares"]
        assert np.isclose(sum(share["share"] for share in shares), 1)
        exchanged += [share["seconds"] for share in shares if share["name"] == "exchange"]
    assert len(exchanged) == 2
    assert max(exchanged) > 0
