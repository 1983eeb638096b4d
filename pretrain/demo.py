"""The verb `demo`: the whole job on scikit-learn's handwritten digits, from image files to a table. Needs no download and no GPU.

    bamboo demo
    bamboo demo --out runs/demo-1 --seed 1

It writes the digits as PNG files, packs them into shards, pretrains a small ResNet on the digits 0 to 4, and probes it on all ten digits
and on 5 to 9, which pretraining never saw, beside the same network untrained and raw pixels. Open report.html at the end. Exit code 0:
the pretrained backbone is the best on the unseen digits; 1: it is not. The same command goes on where it stopped.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..cli.arguments import parse
from ..cli.config import settings
from ..cli.errors import EXIT_DONE, EXIT_FAILURE
from .settings.duration import Duration

if TYPE_CHECKING:
    from .stages import Diary

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "digits.yaml"

_SHEET_IMAGES, _SHEET_COLUMNS = 40, 10


@settings
class DemoSettings:
    """Everything `bamboo demo` can be told."""

    out: Path = Path("runs/demo")
    """Folder for everything; an unfinished demo in it is finished, a finished one is only reported again."""
    duration: Duration = "14 epochs"
    """Length of the pretraining."""
    ranks: Annotated[int, Field(ge=1, le=16)] = 2
    """Processes of the pretraining."""
    shots: Annotated[int, Field(ge=5, le=100)] = 20
    """Training images per digit that the probes get."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the splits, of pretraining and of the probes."""


SETTINGS = {"": DemoSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo demo` and returns its exit code."""
    config = parse(DemoSettings, argv, prog="bamboo demo", doc=__doc__ or "")
    from .demo_data import load_digits
    from .stages import Diary

    digits = load_digits()  # the only thing that may be missing, so first of all
    identity = {"duration": config.duration, "shots": config.shots, "seed": config.seed}
    diary = Diary(config.out / "demo.json", identity, num_stages=4)
    import torch  # seconds

    torch.set_num_threads(1)  # 32-pixel images: more threads only wait for one another
    from .demo_data import SPLIT_NAME, split_digits, write_digits

    out, images = config.out, config.out / "images"
    split = split_digits(digits.labels, config.seed, config.shots)
    diary.stage("images", "write the digits as PNG files", images / SPLIT_NAME, lambda _: write_digits(digits, split, config.seed, images))
    diary.stage("pack", "pack them into shards", out / "seen.png", lambda diary: _pack(diary, config))
    exported = out / "pretrained" / "export" / "model.json"
    diary.stage("pretrain", f"pretrain on {config.ranks} ranks", exported, lambda diary: _pretrain(diary, config))
    diary.stage("probe", "probe", out / "probe" / "centred" / "results.jsonl", lambda diary: _probe(diary, config))
    return _conclude(diary, config)


def _pack(diary: "Diary", config: DemoSettings) -> None:
    from .demo_data import SPLITS

    for split in SPLITS:
        diary.call(["shards", "pack", str(config.out / "images" / split), "--out", str(config.out / "shards" / split)])
    for name, split in (("unseen", "unseen/test"), ("seen", "pretrain/train")):
        sheet = ["--contact-sheet", str(config.out / f"{name}.png"), "--images", str(_SHEET_IMAGES), "--columns", str(_SHEET_COLUMNS)]
        diary.call(["shards", "show", str(config.out / "shards" / split), *sheet, "--bars", "0", "--seed", str(config.seed)])


def _pretrain(diary: "Diary", config: DemoSettings) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    copy = config.out / "pretrain.yaml"
    shutil.copyfile(CONFIG, copy)
    shards, folder = config.out / "shards" / "pretrain", config.out / "pretrained"
    data = ["--data.train", str(shards / "train"), "--data.val", str(shards / "val")]
    run = ["--run.folder", str(folder), "--run.duration", config.duration, "--run.seed", str(config.seed)]
    diary.launch(config.ranks, "bamboo.pretrain", ["--config", str(copy), *data, *run])


def _probe(diary: "Diary", config: DemoSettings) -> None:
    from .demo_data import SIDE
    from .demo_table import TABLES

    pretrained = str(config.out / "pretrained")
    for name in TABLES:
        where = ["--data-root", str(config.out / "shards" / name), "--out", str(config.out / "probe" / name)]
        how = ["--cache", str(config.out / "features"), "--seed", str(config.seed), "--device", "cpu", "--workers", "1"]
        for checkpoint in (pretrained, f"untrained:{pretrained}", f"pixels:{SIDE}"):
            diary.call(["probe", checkpoint, "--dataset", "shards", *where, *how])


def _conclude(diary: "Diary", config: DemoSettings) -> int:
    """Writes the report, says how it went, and returns the exit code."""
    from ..datasets.atomic import write_text
    from .demo_report import Facts, page
    from .demo_table import LABELS, TABLES, Table

    tables = {name: Table(config.out / "probe" / name) for name in TABLES}
    report = config.out / "report.html"
    write_text(report, page(Facts(config.out, config.ranks, config.shots, config.seed, diary.stages, tables)))
    for name, title in TABLES.items():
        sys.stdout.write(f"\n{title}, top-1 of {config.shots} training images per digit:\n")
        for kind, row in tables[name].rows.items():
            sys.stdout.write(f"  {LABELS[kind]:<24}{100 * row.value:6.2f} ± {100 * row.standard_error:.2f} %\n")
        sys.stdout.write(f"  {tables[name].sentence()}\n")
    won = tables["unseen"].is_won
    verdict = "is ahead of both baselines" if won else "is NOT ahead of both baselines"
    total = sum(stage.seconds for stage in diary.stages.values())
    sys.stdout.write(f"\nOn digits that it never saw the pretrained backbone {verdict}.\n{total:.0f} s in all; open {report}\n")
    return EXIT_DONE if won else EXIT_FAILURE
