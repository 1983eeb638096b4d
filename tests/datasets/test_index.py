"""The labels of the index: what is a memory map and what is made, against plain loops."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bamboo.datasets import index as indexes
from bamboo.datasets.index import Row, read_index, to_table, write_index


def index_of(path: Path, labels: Sequence[Sequence[int]]) -> indexes.Index:
    """Writes an index whose samples have these labels, and opens it."""
    write_index(path, [to_table([Row(0, 0, 1, 1, 1, each, None, 0) for each in labels])])
    return read_index(path)


CASES: list[tuple[str, list[list[int]]]] = [
    ("one each", [[number % 5] for number in range(10)]),
    ("none", []),
    ("some without", [[1], [], [3], [4], []]),
    ("some with two", [[1], [2, 0], [3]]),
    ("as many labels as samples, not one each", [[1], [2, 0], [], [4]]),
]


@pytest.mark.parametrize("stretch", [3, 1 << 20])
@pytest.mark.parametrize("labels", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_labels_against_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[list[int]], stretch: int) -> None:
    """Single labels, their kinds and counts, in stretches of three rows and in one: the first label of each sample, or -1."""
    monkeypatch.setattr(indexes, "_STRETCH_ROWS", stretch)
    index = index_of(tmp_path / "index.arrow", labels)
    assert index.single_labels().tolist() == [each[0] if each else -1 for each in labels]
    assert index.single_labels().dtype == np.int32
    assert index.is_multi_label == any(len(each) > 1 for each in labels)
    assert index.num_unlabelled == sum(not each for each in labels)


def test_a_large_index_costs_no_memory(tmp_path: Path) -> None:
    """Two million rows: opening and taking the labels allocates under a megabyte in Arrow, and the labels are those of the file."""
    num_rows = 2_000_000
    zeros = np.zeros(num_rows)
    columns = {name: zeros.astype(kind) for name, kind in (("shard", "i4"), ("offset", "i8"), ("size", "i8"), ("width", "i4"))}
    starts = pa.array(np.arange(num_rows + 1, dtype=np.int32))
    labels = pa.ListArray.from_arrays(starts, pa.array(np.arange(num_rows, dtype=np.int32)))
    confidences = pa.nulls(num_rows, indexes.SCHEMA.field("confidences").type)
    arrays = [*map(pa.array, columns.values()), pa.array(zeros.astype("i4")), labels, confidences, pa.array(zeros.astype("u8"))]
    write_index(tmp_path / "index.arrow", [pa.Table.from_arrays(arrays, schema=indexes.SCHEMA)])
    del arrays, labels, confidences
    before = pa.total_allocated_bytes()
    index = read_index(tmp_path / "index.arrow")
    single = index.single_labels()
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert np.shares_memory(single, index.labels)
    assert not single.flags.writeable
    assert single[[0, 1_234_567]].tolist() == [0, 1_234_567]
