"""The growth state on disk: everything that the next step needs, so that the features of earlier ones may go.

    STATE/
        growth.json                  what all of it shares: encoders and widths, k, thresholds, engine, seed
        sources/000000/              one per shard folder, in the order of arrival
            begun.json               what it is grown from; there from the start
            labels.npy               int32[N] class ids
            codes/000000-image.npy   float16[n, D] codes of the samples of a stretch that are in the index; -text likewise
            codes/000000-arrivals.npy   int64[n]
            parts/000000.parquet     the columns `CAUSAL` of that stretch, written last: with it the stretch is there
            SHARD.parquet            the same by tar, once all stretches are there; the parts go then
            source.json              counts, audit, SHA-256 of codes and columns; written last of all
        cells/image-000000004096.npy float16[C, D] centroids that were made when the index held so many codes
        snapshots/, latest           see `snapshot`

Nothing but an unfinished source is ever changed. A killed growth goes on after its last stretch; what it does then is the same.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt

from ...cli.errors import DataError, UserError
from ..atomic import atomic_file, sha256_file, write_json
from .codes import Codes
from .columns import CAUSAL, Columns, join_columns, read_columns, write_columns
from .lists import Ids
from .snapshot import CARD_NAME, SNAPSHOTS, SOURCES, Snapshot, open_snapshot, sidecar, snapshot_folder

FORMAT, VERSION = "bamboo-growth", 1

_CARD, _BEGUN, _DONE = "growth.json", "begun.json", "source.json"
_STRETCH = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Codes of one stretch of arrivals, as far as they are in the index."""

    arrivals: Ids
    paths: Mapping[str, Path]
    """.npy by modality."""


class SourceFolder:
    """One shard folder's part of a state."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder / SOURCES / f"{number:06d}", number

    @property
    def is_finished(self) -> bool:
        """Whether all of it is there."""
        return (self.folder / _DONE).exists()

    @property
    def card(self) -> dict[str, Any]:
        """What source.json says, or begun.json of an unfinished one."""
        return _read_json(self.folder / (_DONE if self.is_finished else _BEGUN))

    def card_begun(self) -> dict[str, Any] | None:
        """Returns what begun.json says; None: the source is not begun, or is finished."""
        return _read_json(self.folder / _BEGUN) if (self.folder / _BEGUN).exists() and not self.is_finished else None

    def begin(self, card: dict[str, Any], labels: npt.NDArray[np.int32]) -> None:
        """Writes what the source is grown from."""
        if (self.folder / "codes").exists():
            raise DataError(f"{self.folder}: has codes, and neither {_BEGUN} nor {_DONE}; restore them from a copy, or remove the folder")
        with atomic_file(self.folder / "labels.npy") as file:
            np.save(file, labels)
        write_json(self.folder / _BEGUN, card)

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32[N] class ids, -1: none."""
        return _load(self.folder / "labels.npy", np.dtype(np.int32))

    def num_parts(self) -> int:
        """Returns how many stretches are there; what a killed process left of the next one is overwritten."""
        number = 0
        while self._part(number).exists():
            number += 1
        return number

    def columns_of_part(self, number: int) -> Columns:
        """Returns the columns of a stretch."""
        return read_columns(self._part(number), CAUSAL)

    def columns_of_parts(self) -> Columns:
        """Returns the columns of all stretches that are there."""
        return join_columns([self.columns_of_part(number) for number in range(self.num_parts())], CAUSAL)

    def add_part(self, number: int, columns: Columns, codes: Mapping[str, Codes], arrivals: Ids) -> None:
        """Writes a stretch; it is there once this returns, and not at all before."""
        arrays: dict[str, npt.NDArray[Any]] = {**codes, "arrivals": arrivals}
        for name, array in arrays.items():
            with atomic_file(self._codes(number, name)) as file:
                np.save(file, array)
        write_columns(self._part(number), columns, CAUSAL)

    def part(self, number: int, modalities: Iterator[str] | tuple[str, ...]) -> Part:
        """Returns the codes of a stretch."""
        paths = {name: self._codes(number, name) for name in modalities}
        return Part(_load(self._codes(number, "arrivals"), np.dtype(np.int64)), paths)

    def finish(self, shards: tuple[str, ...], shard_counts: npt.NDArray[np.int64], more: dict[str, Any]) -> None:
        """Writes the columns by tar and source.json; then the parts go."""
        num_parts, columns = self.num_parts(), self.columns_of_parts()
        ends = np.cumsum(shard_counts).tolist()
        for shard, stop, count in zip(shards, ends, shard_counts.tolist(), strict=True):
            rows = {name: column[stop - count : stop] for name, column in columns.items()}
            write_columns(sidecar(self.folder, shard), rows, CAUSAL)
        files = sorted([*self.folder.glob("codes/*.npy"), *self.folder.glob("*.parquet"), self.folder / "labels.npy"])
        hashes = {str(path.relative_to(self.folder)): sha256_file(path) for path in files}
        write_json(self.folder / _DONE, {**self.card, **more, "num_parts": num_parts, "files": hashes})
        self.tidy()

    def give_up(self) -> None:
        """Removes an unfinished source."""
        assert not self.is_finished
        shutil.rmtree(self.folder)

    def tidy(self) -> None:
        """Removes what a finished source no longer needs; a call that was killed may have left it."""
        shutil.rmtree(self.folder / "parts", ignore_errors=True)
        (self.folder / _BEGUN).unlink(missing_ok=True)

    def columns(self) -> Columns:
        """Returns the columns `CAUSAL` of a finished source, in the order of its index."""
        return join_columns([read_columns(sidecar(self.folder, shard), CAUSAL) for shard in self.card["shards"]], CAUSAL)

    def verify(self) -> None:
        """Compares the files of a finished source with their hashes.

        Raises:
            DataError: naming the first that is missing or altered.
        """
        for name, sha256 in self.card["files"].items():
            if not (self.folder / name).is_file() or sha256_file(self.folder / name) != sha256:
                raise DataError(f"{self.folder / name}: missing or altered; restore the growth state from a copy, or grow it anew")

    def _part(self, number: int) -> Path:
        return self.folder / "parts" / f"{number:06d}.parquet"

    def _codes(self, number: int, name: str) -> Path:
        return self.folder / "codes" / f"{number:06d}-{name}.npy"


class GrowthState:
    """A state, opened or about to be made; `card` is what growth.json says, None where there is none yet.

    Raises:
        DataError: when it is damaged or of another version.
        UserError: when the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.card = self._read_card()

    def _read_card(self) -> dict[str, Any] | None:
        path = self.folder / _CARD
        if not path.exists():
            if self.folder.exists() and any(entry.name != ".lock" for entry in self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds something else than a growth state; name another folder")
            return None
        card = _read_json(path)
        if (card.get("format"), card.get("version")) != (FORMAT, VERSION):
            found = f"format {card.get('format')} version {card.get('version')}"
            raise DataError(f"{path}: {found}; this Bamboo reads {FORMAT} version {VERSION}")
        return card

    def begin(self, shared: dict[str, Any]) -> None:
        """Writes growth.json."""
        write_json(self.folder / _CARD, shared)
        self.card = self._read_card()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it grows by: image, text, or both."""
        return tuple((self.card or {}).get("modalities", {}))

    def sources(self) -> list[SourceFolder]:
        """Returns the finished sources, in the order of arrival.

        Raises:
            DataError: when one is missing that later ones or the newest snapshot go on from.
        """
        numbers = sorted(int(path.parent.name) for path in (self.folder / SOURCES).glob(f"[0-9]*/{_DONE}"))
        newest = self.newest()
        wanted = len(newest.sources) if newest is not None else 0
        if numbers != list(range(len(numbers))) or len(numbers) < wanted:
            lost = next(number for number in range(wanted + len(numbers) + 1) if number not in numbers)
            what = f"{_DONE} of a source that later ones or snapshots go on from is missing; restore it from a copy of the state"
            raise DataError(f"{self.folder / SOURCES / f'{lost:06d}'}: {what}")
        return [SourceFolder(self.folder, number) for number in numbers]

    def newest(self) -> Snapshot | None:
        """Returns the snapshot that was published last, whether or not `latest` says so yet; None: there is none."""
        numbers = [int(path.parent.name) for path in (self.folder / SNAPSHOTS).glob(f"[0-9]*/{CARD_NAME}")]
        return open_snapshot(snapshot_folder(self.folder, max(numbers))) if numbers else None

    def tidy(self) -> None:
        """Removes what a killed call may have left: half-written files, and what finished sources no longer need."""
        for path in self.folder.rglob(".*.tmp"):
            path.unlink()
        for source in self.sources():
            source.tidy()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the state for this process; it goes with the process.

        Raises:
            UserError: when another process grows it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"{self.folder}: another process is growing it; wait until that has ended") from None
        try:
            yield
        finally:
            lock.release()


class Codebook:
    """The codes of one modality, of all sources up to where the state stands, as an index reads them (see `CodeStore`)."""

    def __init__(self, state: Path, modality: str, width: int) -> None:
        self._cells, self._modality, self._width = state / "cells", modality, width
        self._parts: list[Part] = []
        self._ends: list[int] = []

    def append(self, part: Part) -> None:
        """Takes a stretch that has been written."""
        self._parts.append(part)
        self._ends.append(len(self) + len(part.arrivals))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def rows(self, places: Ids) -> Codes:
        """Returns the codes at sorted places, float16[n, D]."""
        found = [np.zeros((0, self._width), np.float16)]
        start = 0
        for part, stop in zip(self._parts, self._ends, strict=True):
            inside = places[np.searchsorted(places, start) : np.searchsorted(places, stop)] - start
            if len(inside):
                found.append(np.asarray(self._open(part)[inside]))
            start = stop
        return np.concatenate(found)

    def blocks(self) -> Iterator[tuple[Codes, Ids]]:
        """Yields (codes, arrivals) of one stretch after another."""
        for part in self._parts:
            codes = self._open(part)
            for start in range(0, len(codes), _STRETCH):
                yield np.asarray(codes[start : start + _STRETCH]), part.arrivals[start : start + _STRETCH]

    def arrivals(self) -> Ids:
        """Returns int64[N] the arrivals of all codes, which rise."""
        return np.concatenate([np.zeros(0, np.int64), *(part.arrivals for part in self._parts)])

    def newest_cells(self) -> tuple[int, Codes] | None:
        """Returns (how many codes there were, centroids) of the cells that were made last."""
        paths = sorted(self._cells.glob(f"{self._modality}-*.npy"))
        if not paths:
            return None
        return int(paths[-1].stem.rpartition("-")[2]), _load(paths[-1], np.dtype(np.float16))

    def keep_cells(self, centroids: Codes) -> None:
        """Keeps cells that were made of all codes there are."""
        with atomic_file(self._cells / f"{self._modality}-{len(self):012d}.npy") as file:
            np.save(file, centroids)

    def drop_cells_after(self, size: int) -> None:
        """Removes cells that were made of more codes than these: those of a source that is begun anew."""
        for path in self._cells.glob(f"{self._modality}-*.npy"):
            if int(path.stem.rpartition("-")[2]) > size:
                path.unlink()

    def _open(self, part: Part) -> Codes:
        codes: Codes = _load(part.paths[self._modality], np.dtype(np.float16), mapped=True)
        if codes.shape != (len(part.arrivals), self._width):
            raise DataError(f"{part.paths[self._modality]}: damaged: holds {codes.shape}, not {(len(part.arrivals), self._width)}")
        return codes


def _load(path: Path, dtype: np.dtype[Any], *, mapped: bool = False) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if array.dtype != dtype:
        raise DataError(f"{path}: damaged: holds {array.dtype}, not {dtype}")
    return array


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: damaged (not an object)")
    return tree
