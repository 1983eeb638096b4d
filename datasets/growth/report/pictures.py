"""Images, captions and classes of a snapshot's samples, as far as their shard folders are still where they were."""

import base64
import io
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image

from ....cli.errors import DataError, UserError
from ...images import UnreadableImageError
from ...members import caption_of, members, metadata_of
from ...remote.locations import is_remote, shown
from ...shard_source import NAMING_COMMANDS
from ...shards import Shards
from ..folders import local_folders
from ..snapshot import Snapshot
from ..state import SourceFolder

Labels = npt.NDArray[np.integer]

_SIDE, _QUALITY = 176, 88


class Pictures:
    """Looks samples up by arrival. What cannot be read is None, as a report is for looking, `bamboo shards verify` for finding."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._starts = np.cumsum([0, *(source.num_samples for source in snapshot.sources)])
        self._opened: dict[int, Shards] = {}
        self.missing: dict[int, str] = {}
        """Why the shard folder of a source is not read."""
        for number in range(len(snapshot.sources)):
            self._open(number)
        self.labels = [self._labels(number) for number in range(len(snapshot.sources))]
        """Of every source int32[N] class ids, -1: none; None: not known any more."""
        self.class_names = self._class_names()
        """Class names by class id."""

    @property
    def any_left(self) -> bool:
        """Whether any source can be read."""
        return bool(self._opened)

    def place(self, arrival: int) -> tuple[int, int]:
        """Returns (source, row in its index) of an arrival."""
        source = int(np.searchsorted(self._starts, arrival, side="right")) - 1
        return source, arrival - int(self._starts[source])

    def class_name(self, arrival: int) -> str | None:
        """Returns the name of a sample's class, of several the first; None where it has none."""
        source, row = self.place(arrival)
        labels = self.labels[source]
        return None if labels is None or labels[row] < 0 else self.name_of(int(labels[row]))

    def name_of(self, label: int) -> str:
        """Returns the name of a class."""
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    def image(self, arrival: int) -> str | None:
        """Returns a sample's image as the `data:` URI of a small JPEG."""
        source, row = self.place(arrival)
        if source not in self._opened:
            return None
        try:
            image = Image.fromarray(self._opened[source].load(row).permute(1, 2, 0).numpy())
        except (UnreadableImageError, DataError):
            return None
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def caption(self, arrival: int) -> str | None:
        """Returns a sample's caption, of several one a line."""
        source, row = self.place(arrival)
        if source not in self._opened:
            return None
        shards = self._opened[source]
        try:
            return caption_of(members(shards, row), shards.name(row))
        except DataError:
            return None

    def recaption(self, arrival: int, recaptions: Mapping[str, str]) -> str | None:
        """Returns a sample's re-caption, of those by the names that `joined_source` gives the samples."""
        source, row = self.place(arrival)
        if source not in self._opened or not recaptions:
            return None
        shards = self._opened[source]
        shard, _, member = shards.name(row).partition(":")
        name = self._recorded_name(shards, row) or member
        longer = f"{shard.removesuffix('.tar')}/{name}"  # where names repeat in a folder, or in several
        return next((recaptions[found] for found in (f"{source}/{longer}", f"{source}/{name}", longer, name) if found in recaptions), None)

    def _recorded_name(self, shards: Shards, row: int) -> str | None:
        if shards.manifest.made_by.get("command") not in NAMING_COMMANDS:
            return None
        try:
            name = metadata_of(members(shards, row), shards.name(row)).get("source")
        except DataError:
            return None
        return name if isinstance(name, str) else None

    def _open(self, number: int) -> None:
        source = self._snapshot.sources[number]
        if is_remote(source.location):
            self.missing[number] = f"{shown(source.location)} is remote, and each image would fetch a whole shard"
            return
        try:
            self._opened[number] = Shards.open(local_folders([source], "--report")[0])
        except (UserError, DataError, OSError) as error:
            self.missing[number] = str(error)

    def _labels(self, number: int) -> Labels | None:
        if number in self._opened:
            return self._opened[number].labels
        try:
            labels = SourceFolder(self._snapshot.state, number).labels
        except DataError:
            return None
        return labels if len(labels) == self._snapshot.sources[number].num_samples else None

    def _class_names(self) -> list[str]:
        for shards in self._opened.values():
            return shards.class_names
        return [str(name) for name in self._snapshot.card.get("growth", {}).get("classes", [])]
