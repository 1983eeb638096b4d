"""The registry of released checkpoints: what each one is, how its images are prepared, and where its file can be had.

`registry.yaml` beside this module holds ours; a file of the user's own, in the same form, is merged with it.
"""

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from ..cli.config import build, load, nearest, settings
from ..cli.errors import UserError

RGB = tuple[float, float, float]
Normalisation = Literal["imagenet", "clip", "half"]

NORMALISATIONS: MappingProxyType[str, tuple[RGB, RGB]] = MappingProxyType(
    {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
)
"""Name → mean and standard deviation of the channels, of values in [0, 1]."""

_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"  # ids and file names become paths: no separators, no leading dot


@settings
class Source:
    """One place a checkpoint's file can be had from: exactly one of `hub`, `url` and `drive`."""

    hub: str | None = None
    """Repository on the Hugging Face Hub."""
    url: Annotated[str, Field(pattern=r"^https?://[^/]+/.*[^/]$")] | None = None
    """Address of the file."""
    drive: str | None = None
    """Id of a file on Google Drive."""
    file: Annotated[str, Field(pattern=_PLAIN_NAME)] | None = None
    """Its name, in the repository and in the cache; none: model.safetensors (hub) or the last part of the address (url)."""
    revision: str | None = None
    """Commit, tag or branch of the repository."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """The file's SHA-256, or its first digits where its publisher gives no more; none: not pinned."""
    num_bytes: Annotated[int, Field(ge=1)] | None = None
    """The file's size."""

    def problems(self) -> list[str]:
        """Returns what contradicts itself."""
        given = [name for name in ("hub", "url", "drive") if getattr(self, name) is not None]
        wrong = [] if len(given) == 1 else [f"sources: {' and '.join(given) or 'nothing'} given; each takes exactly one of hub, url, drive"]
        if given == ["drive"] and self.file is None:
            wrong.append(f"sources: drive={self.drive}: needs the name of its file")
        return wrong

    @property
    def name(self) -> str:
        """The file's name in the cache, in mirrors and (hub) in the repository."""
        if self.file is not None:
            return self.file
        return "model.safetensors" if self.url is None else self.url.partition("?")[0].rpartition("/")[2]

    def __str__(self) -> str:
        """Where it is, in words."""
        if self.hub is not None:
            return f"hub {self.hub}{'@' + self.revision if self.revision else ''}"
        return self.url or f"Google Drive {self.drive}"


@settings
class EntryPreprocessing:
    """What the checkpoint wants done to an image; see `preprocessing.Preprocessing`."""

    image_size: Annotated[int, Field(ge=8, le=2048)] = 224
    """Side in pixels."""
    normalisation: Normalisation | None = None
    """Mean and standard deviation by name, or …"""
    mean: RGB | None = None
    """… the mean of the channels …"""
    std: RGB | None = None
    """… and their standard deviation."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Of the resize."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Crop side over resized short side."""

    def problems(self) -> list[str]:
        """Returns what contradicts itself."""
        by_value = self.mean is not None and self.std is not None
        none_given = self.mean is None and self.std is None
        if (self.normalisation is not None and none_given) or (self.normalisation is None and by_value):
            return []
        return ["normalisation: give it by name, or mean and std, not both"]

    @property
    def statistics(self) -> tuple[RGB, RGB]:
        """Mean and standard deviation of the channels."""
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        return NORMALISATIONS[self.normalisation or "imagenet"]


@settings
class Entry:
    """One released checkpoint."""

    id: Annotated[str, Field(pattern=_PLAIN_NAME)]
    """Its name here: `zoo:ID`."""
    architecture: str
    """timm's name of the model."""
    model_args: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Further arguments of `timm.create_model`."""
    num_params: Annotated[int, Field(ge=1)]
    """Parameters of the backbone, without the classifier."""
    num_features: Annotated[int, Field(ge=1)]
    """Width of the pooled features."""
    num_classes: Annotated[int, Field(ge=0)] = 0
    """Outputs of the head in the file (of a CLIP tower: width of the joint space); 0: it has none."""
    preprocessing: EntryPreprocessing
    """How images are prepared."""
    pretraining: str
    """Data and objective."""
    licence: str
    """Of the weights."""
    paper: str
    """Where it is described."""
    note: str = ""
    """What else a user must know."""
    sources: tuple[Source, ...] = Field(min_length=1)
    """Where its file can be had, in the order in which they are tried."""

    def problems(self) -> list[str]:
        """Returns what contradicts itself, in the sources too."""
        wrong = [line for source in self.sources for line in source.problems()]
        pins: dict[str, set[tuple[str, int]]] = {}
        for source in self.sources:
            pins.setdefault(source.name, set()).add((source.sha256 or "", source.num_bytes or 0))
        wrong += [f"sources: {name} has two hashes or sizes; one name means the same bytes" for name, pin in pins.items() if len(pin) > 1]
        return wrong

    @property
    def files(self) -> dict[str, Source]:
        """File name → the first source that gives it, in order."""
        first: dict[str, Source] = {}
        for source in self.sources:
            first.setdefault(source.name, source)
        return first

    @property
    def num_bytes(self) -> int:
        """Size of the first source's file; where that is not known, about that of its float32 parameters."""
        return self.sources[0].num_bytes or 4 * (self.num_params + self.num_classes * (self.num_features + 1))


@settings
class _File:
    models: dict[str, dict[str, Any]]


def read_registry(own: Path | None = None) -> dict[str, Entry]:
    """Returns id → entry: ours, and then those of the user's file `own`.

    Raises:
        UserError: when a file is no registry, naming every wrong key and value, or when both hold the same id.
    """
    entries = _read(Path(__file__).with_name("registry.yaml"))
    if own is not None:
        added = _read(own)
        if taken := sorted(added.keys() & entries.keys()):
            raise UserError(f"registry={own}: the ids {', '.join(taken)} are taken; give yours other names")
        entries |= added
    return entries


def find_entry(entries: dict[str, Entry], id_: str) -> Entry:
    """Returns the entry of that id; raises UserError naming the nearest when there is none."""
    if id_ not in entries:
        raise UserError(f"zoo:{id_}: no such model in the registry{nearest(id_, list(entries))}; see bamboo zoo list")
    return entries[id_]


def _read(file: Path) -> dict[str, Entry]:
    models = load(_File, file, {}).models
    return {id_: build(Entry, {"id": id_, **body}, f"{file}: models.{id_}") for id_, body in models.items()}
