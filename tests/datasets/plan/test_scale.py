"""The plan at 100 million samples, in processes of their own: time to the first slice, time a sample, memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS = 100_000_000
DISK_BYTES = 8 << 30


@pytest.mark.slow
def test_a_hundred_million_rows(tmp_path: Path) -> None:
    """100 million rows: the first slice within 2 CPU s of the start, 2 µs a sample, 300 MB with all look-ups; the middle like the start."""
    if shutil.disk_usage(tmp_path).free < DISK_BYTES:
        pytest.skip("needs 8 GB of free disk for the synthetic index")
    command = [sys.executable, "benchmarks/plan.py", "--json", "--rows", str(ROWS), "--folder", str(tmp_path / "pool")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "pool", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == {f"{kind}, {where}" for kind in ("uniform", "weighted") for where in ("start", "middle")}
    for name, row in figures.items():
        assert row["cold_s"] < 2, (name, row)
        assert row["sample_us"] < 2, (name, row)
        assert row["peak_mb"] < 300, (name, row)
        assert row["own_mb"] < 100, (name, row)
    for kind in ("uniform", "weighted"):
        assert figures[f"{kind}, middle"]["cold_s"] < 1.5 * figures[f"{kind}, start"]["cold_s"] + 0.1
