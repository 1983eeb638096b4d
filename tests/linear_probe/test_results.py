"""results.jsonl: appending, torn lines, full disks and concurrent writers."""

import dataclasses
import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from bamboo.linear_probe.results import ResultRow, append_row, latest, read_rows

ROW = ResultRow(
    model="run",
    checkpoint_hash="c" * 64,
    dataset="cifar10",
    data_hash="d" * 64,
    protocol="standard",
    protocol_hash="p" * 64,
    precision="bf16",
    preprocessing="e" * 64,
    seed=0,
    metric="top1",
    value=0.5,
    standard_error=0.005,
    scores={},
    certificate={"relative_gap": 1e-7},
    seconds={},
    versions={},
    date="2026-01-01T00:00:00+00:00",
)


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    """Two rows appended, one with an infinite gap: read back equal, in order; the newer one of a cell is the latest."""
    path, second = tmp_path / "new" / "results.jsonl", dataclasses.replace(ROW, value=0.75, certificate={"relative_gap": float("inf")})
    append_row(path, ROW)
    append_row(path, second)
    assert read_rows(path).rows == (ROW, second)
    assert latest(read_rows(path).rows) == {("run", "cifar10", "standard", "100p"): second}
    assert read_rows(tmp_path / "none.jsonl").rows == ()


def test_a_torn_line_is_reported_and_closed(tmp_path: Path) -> None:
    """A line cut in the middle (a crash): reported by number; the next append starts on a line of its own."""
    path = tmp_path / "results.jsonl"
    append_row(path, ROW)
    with path.open("ab") as file:
        file.write(json.dumps(dataclasses.asdict(ROW)).encode()[:40])
    append_row(path, ROW)
    ledger = read_rows(path)
    assert ledger.rows == (ROW, ROW)
    assert len(ledger.damaged) == 1
    assert ledger.damaged[0].startswith(f"{path}:2: ")


def test_foreign_and_future_lines(tmp_path: Path) -> None:
    """A list, a row without fields, bytes that are no UTF-8: reported; a row with a field of tomorrow: kept in details."""
    path = tmp_path / "results.jsonl"
    future = {**dataclasses.asdict(ROW), "colour": "red"}
    path.write_bytes(b"[1]\n{}\n\xff\n\n" + json.dumps(future).encode() + b"\n")
    ledger = read_rows(path)
    assert [line.split(":")[-2] for line in ledger.damaged if line.startswith(str(path))] != []
    assert len(ledger.damaged) == 3
    assert ledger.rows[0].details == {"colour": "red"}


def test_rows_from_before_there_were_subsets(tmp_path: Path) -> None:
    """A row without `subset` and `selected_on` is one of all training rows, selected on validation; another subset is another cell."""
    path = tmp_path / "results.jsonl"
    old = {key: value for key, value in dataclasses.asdict(ROW).items() if key not in ("subset", "selected_on")}
    path.write_bytes(json.dumps(old).encode() + b"\n")
    few = dataclasses.replace(ROW, subset="10p")
    append_row(path, few)
    assert read_rows(path).rows == (ROW, few)
    assert (ROW.subset, ROW.selected_on) == ("100p", "validation")
    assert few.identity != ROW.identity
    assert list(latest([ROW, few])) == [("run", "cifar10", "standard", "100p"), ("run", "cifar10", "standard", "10p")]


def test_rows_from_before_validation_parts_counted(tmp_path: Path) -> None:
    """A row without `validation` has none, and the identity that it had; two parts of the same training rows make two identities."""
    path = tmp_path / "results.jsonl"
    path.write_bytes(json.dumps({key: value for key, value in dataclasses.asdict(ROW).items() if key != "validation"}).encode() + b"\n")
    (old,) = read_rows(path).rows
    assert old == ROW
    assert old.identity == ("c" * 64, "d" * 64, "p" * 64, "bf16", "e" * 64, 0, "top1", "100p")
    assert len({ROW.identity, *(dataclasses.replace(ROW, validation=digest).identity for digest in ("1" * 64, "2" * 64))}) == 3


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.write that takes half of the bytes: ENOSPC, and the file ends where it ended before."""
    path = tmp_path / "results.jsonl"
    append_row(path, ROW)
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
    with pytest.raises(OSError) as caught:
        append_row(path, ROW)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before


def _append_many(path: Path) -> None:
    for _ in range(20):
        append_row(path, ROW)


def test_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    """Four processes, 20 rows each: 80 whole rows."""
    path = tmp_path / "results.jsonl"
    processes = [multiprocessing.get_context("fork").Process(target=_append_many, args=(path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert read_rows(path).rows == (ROW,) * 80
