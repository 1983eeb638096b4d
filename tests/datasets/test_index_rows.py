"""Rows of the index looked up one by one, against its columns, and what of the file's map that makes resident."""

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.index import SCHEMA, Index, Row, read_index, to_table, write_index
from bamboo.datasets.index_rows import IndexRows, StreamedColumns

BLOCK = 4096  # rows


def many(path: Path, num_rows: int) -> Index:
    """Writes an index of rows with a label each, no two rows alike, and opens it."""
    numbers, small = np.arange(num_rows), pa.array(np.zeros(num_rows, np.int32))
    labels = pa.ListArray.from_arrays(pa.array(np.arange(num_rows + 1, dtype=np.int32)), pa.array((numbers % 1000).astype(np.int32)))
    columns = [(numbers // 1000).astype(np.int32), numbers * 512, numbers + 7]
    nothing = pa.nulls(num_rows, SCHEMA.field("confidences").type)
    arrays = [*map(pa.array, columns), small, small, labels, nothing, pa.array(numbers.astype(np.uint64))]
    write_index(path, [pa.Table.from_arrays(arrays, schema=SCHEMA)])
    return read_index(path)


def looked_up(index: Index, most_blocks: int) -> IndexRows:
    """Returns its look-ups with room for so many blocks."""
    return IndexRows(StreamedColumns(index.shard, index.offset, index.size, index.label_starts, index.labels, index.file), most_blocks)


def resident_kb(path: Path) -> int:
    """Returns what this process has mapped of a file and touched."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.parametrize("most_blocks", [1, 3, 384])
def test_places_and_labels_against_the_columns(tmp_path: Path, most_blocks: int) -> None:
    """Ten blocks and a bit in any order, one by one and all at once, with room for one block, three, and all of them."""
    index = many(tmp_path / "index.arrow", 10 * BLOCK + 5)
    rows, chosen = looked_up(index, most_blocks), np.random.default_rng(0).permutation(len(index))[:500]
    chosen[:2] = 0, len(index) - 1
    expected = list(zip(index.shard[chosen].tolist(), index.offset[chosen].tolist(), index.size[chosen].tolist(), strict=True))
    assert [rows.place(row) for row in chosen.tolist()] == expected
    assert list(zip(*(column.tolist() for column in rows.places(chosen)), strict=True)) == expected
    assert rows.first_labels(chosen).tolist() == index.labels[chosen].tolist()
    assert len(rows.first_labels(chosen[:0])) == 0


@pytest.mark.parametrize("labels", [[[3], [1], [2]], [[], [4, 2], [0], []], [[1, 2], []], [[], []]])
def test_first_labels_of_all_kinds(tmp_path: Path, labels: Sequence[Sequence[int]]) -> None:
    """One label each, several, none: the first, or -1; as in the file, so in memory."""
    write_index(tmp_path / "index.arrow", [to_table([Row(0, 512, 1, 1, 1, each, None, 0) for each in labels])])
    index = read_index(tmp_path / "index.arrow")
    expected = [each[0] if each else -1 for each in labels]
    for each in (index, dataclasses.replace(index, file=None)):
        assert each.rows.first_labels(np.arange(len(labels))).tolist() == expected


def test_threads_do_not_see_each_others_blocks(tmp_path: Path) -> None:
    """Four threads through twenty blocks with room for two: every place is that of its row."""
    index = many(tmp_path / "index.arrow", 20 * BLOCK)
    rows, wrong = looked_up(index, 2), list[int]()

    def look(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(len(index), size=2000).tolist():
            if rows.place(row) != (row // 1000, row * 512, row + 7):
                wrong.append(row)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    """An index cut in the middle while it is open: DataError with its path for what is gone, where the map would end the process."""
    index = many(tmp_path / "index.arrow", 50 * BLOCK)
    with (tmp_path / "index.arrow").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(DataError, match=r"index\.arrow: truncated: rows"):
        index.rows.place(len(index) - 1)


def test_neither_look_ups_nor_passes_stay_resident(tmp_path: Path) -> None:
    """Two million rows, 95 MB: with a row of each block looked up, and after the passes over the labels, under a megabyte is mapped."""
    path = tmp_path / "index.arrow"
    index = many(path, 2_000_000)
    chosen = np.arange(0, len(index), BLOCK)
    index.rows.places(chosen)
    index.rows.first_labels(chosen)
    assert resident_kb(path) < 1000
    int(index.offset.sum())
    assert resident_kb(path) > 10_000, "what is looked at through the map is"
    assert not index.is_multi_label
    assert index.num_unlabelled == 0
    assert resident_kb(path) < 1000
