"""`bamboo zoo list|fetch|show|convert`: released checkpoints, and the files of others.

bamboo zoo list clip
bamboo zoo fetch bamboo-rn50
bamboo zoo convert checkpoint.pth.tar@bamboo-vitb16 exports/bamboo-vitb16 --head keep
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..cli.commands import Command, run_command, settings_of
from ..cli.config import settings
from .registry import Normalisation


@settings
class ListSettings:
    """Lists the checkpoints of the registry that hold every one of the words.

    bamboo zoo list vit in21k
    """

    words: tuple[str, ...] = ()
    """Words to look for, in any column."""
    runs: Path | None = None
    """Also list the finished runs in this folder."""
    registry: Path | None = None
    """Registry file of one's own, merged with ours (BAMBOO_REGISTRY)."""
    cache: Path | None = None
    """Folder of downloads (BAMBOO_CACHE, else ~/.cache/bamboo)."""


@settings
class FetchSettings:
    """Downloads checkpoints, resuming and verifying; what is here already is only checked.

    bamboo zoo fetch bamboo-rn50 clip-rn50
    """

    ids: tuple[str, ...]
    """Ids of the registry, or all."""
    dry_run: bool = False
    """Say what would be fetched and how large it is, then stop."""
    offline: bool = False
    """Never use the network (BAMBOO_OFFLINE, HF_HUB_OFFLINE); check what is here."""
    mirror: str | None = None
    """Address or folder holding ID/FILE, tried before the sources (BAMBOO_MIRROR)."""
    cache: Path | None = None
    """Folder of downloads (BAMBOO_CACHE, else ~/.cache/bamboo)."""
    shared: tuple[Path, ...] | None = None
    """Read-only folders of the same form, searched first (BAMBOO_SHARED_CACHES)."""
    registry: Path | None = None
    """Registry file of one's own, merged with ours (BAMBOO_REGISTRY)."""
    stall_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Seconds without a byte, after which a connection is given up."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Failures in a row, after which a source is given up."""


@settings
class ShowSettings:
    """Shows all that is known of one checkpoint, and where its file is.

    bamboo zoo show bamboo-vitb16
    """

    id: str
    """Id of the registry."""
    registry: Path | None = None
    """Registry file of one's own, merged with ours (BAMBOO_REGISTRY)."""
    cache: Path | None = None
    """Folder of downloads (BAMBOO_CACHE, else ~/.cache/bamboo)."""


@settings
class ConvertSettings:
    """Turns a checkpoint of others, or of a run of ours, into an export: model.safetensors with timm's names, and model.json.

    bamboo zoo convert dino.pth@vit_small_patch16_224.dino exports/dino --part teacher
    bamboo zoo convert runs/first/checkpoints/step-00001200 exports/first

    Every tensor of the backbone must be there, or nothing is written.
    """

    checkpoint: str
    """FILE@NAME, NAME an id of the registry or a model of timm; zoo:ID, which is fetched; or a run's checkpoint folder."""
    out: Path
    """Folder to write; it must not hold an export."""
    head: Literal["keep", "drop"] | None = None
    """What becomes of the classifier; none: a run's is kept, that of others dropped."""
    classes: Path | None = None
    """Names of the kept head's outputs: a JSON list, a JSON map of index to name, or one a line."""
    part: str = ""
    """Which part to take, where there are several models (teacher, model_ema, …); of a run: ema (if it has one) or model."""
    model_args: dict[str, bool | int | float | str] | None = None
    """Further arguments of timm's model, as {img_size: 256}."""
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Side in pixels, for the card; none: as NAME says."""
    normalisation: Normalisation | None = None
    """Mean and standard deviation, for the card; none: as NAME says."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Of the resize, for the card; none: as NAME says."""
    crop_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Crop side over resized short side, for the card; none: as NAME says."""
    registry: Path | None = None
    """Registry file of one's own, merged with ours (BAMBOO_REGISTRY)."""
    dry_run: bool = False
    """Match the tensors and say how, then stop."""

    def problems(self) -> list[str]:
        """Returns what contradicts itself."""
        return ["classes: names the outputs of a head; add head=keep"] if self.classes is not None and self.head != "keep" else []


COMMANDS = {
    "list": Command(
        settings=ListSettings,
        run="bamboo.model_zoo.zoo_list.run",
        line="the checkpoints of the registry, and one's own runs",
        positional=("words",),
    ),
    "fetch": Command(
        settings=FetchSettings,
        run="bamboo.model_zoo.zoo_fetch.run",
        line="download checkpoints: resumed, verified, once for all processes",
        positional=("ids",),
    ),
    "show": Command(
        settings=ShowSettings,
        run="bamboo.model_zoo.zoo_show.run",
        line="all that is known of one checkpoint",
        positional=("id",),
    ),
    "convert": Command(
        settings=ConvertSettings,
        run="bamboo.model_zoo.convert.run",
        line="turn a checkpoint, of others or of a run, into model.safetensors and model.json",
        positional=("checkpoint", "out"),
    ),
}
SETTINGS = settings_of(COMMANDS)


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code."""
    return run_command("zoo", COMMANDS, argv, start="bamboo zoo list")
