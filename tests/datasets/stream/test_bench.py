"""`bamboo shards bench` on the test pool: figures that add up, and a verdict that follows from them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.main import main
from bamboo.datasets import shards
from bamboo.datasets.images import decode_rgb
from bamboo.datasets.stream.bench import Measured, table

DECODE_US = 3000


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Runs the command in this process."""
    capsys.readouterr()
    code = main(["shards", "bench", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def slow_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that takes DECODE_US longer, in forked workers, too: more than any load makes of the stages beside it."""

    def decode(*arguments: Any) -> torch.Tensor:
        time.sleep(DECODE_US / 1e6)
        return decode_rgb(*arguments)

    monkeypatch.setattr(shards, "decode_rgb", decode)


@pytest.mark.usefixtures("slow_decoder")
@pytest.mark.parametrize(("workers", "kind"), [(0, "processes"), (2, "processes"), (2, "threads")])
def test_figures_add_up(pool: Path, capsys: pytest.CaptureFixture[str], workers: int, kind: str) -> None:
    """Shares of the stages sum to one, time per image follows from the rates, and the time of a slow decoder is found in its stage."""
    arguments = ("--workers", workers, "--kind", kind, "--images", 200, "--batch-size", 16, "--image-size", 32, "--json", "true")
    code, output, _ = bench(capsys, pool / "train", *arguments)
    assert code == 0
    summary = json.loads(output)
    stages = summary["stages"]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1)
    assert set(stages) == {"plan", "read", "decode", "crop", "collate", "wait"}
    for name, stage in stages.items():
        if name != "wait":
            assert stage["images_per_s"] * stage["us"] == pytest.approx(max(workers, 1) * 1e6)
    assert summary["images"] >= 200
    assert stages["decode"]["us"] >= DECODE_US
    assert all(stages["decode"]["us"] > stage["us"] for name, stage in stages.items() if name not in ("decode", "wait"))
    assert summary["images_per_s"] <= max(workers, 1) * 1e6 / DECODE_US
    assert summary["settings"]["kind"] == kind


def test_the_table_names_the_slowest_stage(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text of a real run: a line for each stage, and the advice for the one with the largest share."""
    code, output, errors = bench(capsys, pool / "train", "--workers", 1, "--seconds", 0.2, "--batch-size", 16)
    assert code == 0
    lines = output.splitlines()
    shares = {line.split()[0]: float(line.split()[-1].rstrip("%")) for line in lines[2:8]}
    assert f"slowest: {max(shares, key=lambda name: shares[name])};" in lines[-1]
    assert "bench of" in errors


def measured(**spent_s: float) -> dict[str, Any]:
    """Returns the summary of two workers' 1,000 images in a second."""
    return Measured(1000, 1.0, 2, spent_s, 0.5, 0.0001).summary()


def test_the_verdict_follows_the_shares() -> None:
    """Hand-made readings: rates, shares, transfer beside the wall clock, and the advice for whoever is slowest."""
    summary = measured(read=0.2, decode=1.5, wait=0.3)
    assert summary["stages"]["read"] == {"images_per_s": 10_000, "us": pytest.approx(200), "share": pytest.approx(0.1)}
    assert summary["stages"]["wait"]["images_per_s"] is None
    assert summary["stages"]["transfer"] == {"images_per_s": pytest.approx(10_000), "us": 100, "share": pytest.approx(0.1)}
    assert summary["slowest"] == "decode"
    assert "--resize" in summary["remedy"]
    assert "cache" in measured(read=1.5, decode=0.2)["remedy"]
    assert "fewer of them" in measured(wait=1.5, decode=0.2)["remedy"]
    assert any("slowest: decode" in line for line in table("shards", summary))


def test_a_link_is_the_limit_only_where_it_is_busier_than_the_workers() -> None:
    """Transfer for 60 % of the wall clock: workers that are never idle are the limit all the same; beside idle ones, the link is."""

    def slowest(**spent_s: float) -> Any:
        return Measured(1000, 1.0, 2, spent_s, 0.5, 0.0006).summary()["slowest"]

    assert slowest(read=0.9, decode=1.1) == "decode"
    assert slowest(read=0.4, decode=0.5, wait=1.1) == "transfer"
    assert slowest(read=0.5, decode=0.8, wait=0.7) == "decode"


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is none, a device that is not there: exit code 2 and a word on it."""
    code, _, errors = bench(capsys, tmp_path / "nothing")
    assert code == 2
    assert "nothing" in errors
