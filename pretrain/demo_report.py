"""`report.html` of the demo: one file that opens offline, made from the rows, logs and manifests of the folder it lies in."""

import base64
import dataclasses
import datetime
import html
import importlib.metadata
import json
import os
import platform
import statistics
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..datasets.manifest import read_manifest
from ..linear_probe.results import ResultRow
from .curves import draw_curves
from .demo_data import DIGIT_SIDE, NUM_HELD_OUT, SIDE, SPLITS
from .demo_table import LABELS, PIXELS, PRETRAINED, TABLES, UNTRAINED, Table
from .log import read_log
from .settings.evaluators import VAL
from .stages import Stage

TEMPLATE = Path(__file__).with_name("report_template.html")

_USES = {
    "pretrain/train": "pretraining: digits 0 to 4 in four rotations",
    "pretrain/val": "the validation curve of pretraining, nothing else",
    "unseen/train": "training the probes on digits 5 to 9",
    "unseen/test": "testing them: every other image of these digits",
    "centred/train": "the images of unseen/train, every digit in the middle of its frame",
    "centred/test": "the images of unseen/test, likewise",
    "all/train": "training the probes on all ten digits",
    "all/test": f"testing them: {NUM_HELD_OUT} images per digit, none of them in pretraining",
}
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the report is about; all else is read from `out`."""

    out: Path
    ranks: int
    shots: int
    seed: int
    stages: Mapping[str, Stage]
    tables: Mapping[str, Table]


def page(facts: Facts) -> str:
    """Returns the report as one HTML document without any external reference; all that is not ours to write is escaped."""
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    numbers = {"ranks": facts.ranks, "shots": facts.shots, "seed": facts.seed, "digit_side": DIGIT_SIDE, "side": SIDE}
    return template.substitute(
        _verdict(facts),
        **{name: str(number) for name, number in numbers.items()},
        **_centred(facts.tables["centred"]),
        **_pretraining(facts.out / "pretrained"),
        num_views=f"{_count(facts, 'pretrain/train'):,}",
        total_seconds=f"{_total_seconds(facts):.0f}",
        pipeline=_pipeline(facts),
        first_table=table_card(TABLES["unseen"], facts.tables["unseen"].rows),
        more_tables="\n".join(table_card(TABLES[name], table.rows) for name, table in facts.tables.items() if name != "unseen"),
        sheets=_sheets(facts.out),
        splits=_splits(facts),
        commands="\n".join(_commands(stage) for stage in facts.stages.values() if stage.commands),
        times=_times(facts.stages),
        versions=definitions(_versions(facts)),
        date=f"{datetime.date.today():%-d %B %Y}",
    )


def data_uri(png: bytes) -> str:
    """Returns a PNG as a `data:` URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def image(png: bytes, alt: str, caption: str = "") -> str:
    """Returns a figure that holds the PNG itself."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{data_uri(png)}" alt="{html.escape(alt)}">{below}</figure>'


def definitions(pairs: Mapping[str, str]) -> str:
    """Returns names and values as a definition list."""
    return "<dl>" + "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def table_card(title: str, rows: Mapping[str, ResultRow]) -> str:
    """Returns a card with top-1 accuracies of probes, ± standard error, beside bars from 0 to 100 %; the best row is marked."""
    best = max(row.value for row in rows.values())
    lines = []
    for kind, row in rows.items():
        top1 = row.scores["top1"]
        shown = f'{100 * row.value:.1f} <span class="error">± {100 * row.standard_error:.1f}</span>'
        mark = ' class="best"' if row.value == best else ""
        label = html.escape(LABELS.get(kind, kind))
        drawn = bar(row.value, top1["interval"], f"{label}: {100 * row.value:.1f} %")
        lines.append(f'<tr{mark}><th scope="row">{label}</th><td class="number">{shown}</td><td>{drawn}</td></tr>')
    details = next(iter(rows.values())).details
    size = f"{details['num_train']:,} training and {details['num_test']:,} test images, {details['num_classes']} classes"
    head = '<tr><th scope="col">features</th><th scope="col" class="number">top-1, %</th><th scope="col">0 to 100 %</th></tr>'
    return (
        f'<div class="card wide"><h3>{html.escape(title[0].upper() + title[1:])}</h3><div class="soft">{size}</div>\n'
        f"<table><thead>{head}</thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def bar(value: float, interval: Sequence[float], label: str) -> str:
    """Returns a bar of length `value` in [0, 1] as inline SVG, with a whisker over `interval`."""
    low, high = (1000 * end for end in interval)
    whisker = f"M{low:.1f} 10H{high:.1f}M{low:.1f} 6V14M{high:.1f} 6V14"
    return (
        f'<svg class="bar" viewBox="0 0 1000 20" preserveAspectRatio="none" role="img" aria-label="{html.escape(label)}">'
        f'<rect class="track" width="1000" height="20"/><rect class="fill" width="{1000 * value:.1f}" height="20"/>'
        f'<path class="whisker" d="{whisker}"/></svg>'
    )


def _verdict(facts: Facts) -> dict[str, str]:
    table = facts.tables["unseen"]
    short = "the pretrained backbone wins" if table.is_won else "the pretrained backbone does not win"
    value = table.rows[PRETRAINED]
    shown = f"{100 * value.value:.1f} ± {100 * value.standard_error:.1f} %"
    verb = "beats both baselines" if table.is_won else "does not beat both baselines"
    return {
        "verdict": (
            f"On the digits 5 to 9, which it never saw, the pretrained backbone {verb}: <strong>{shown}</strong>, "
            f"{_than(table, UNTRAINED)} the same network untrained and {_than(table, PIXELS)} raw pixels, compared image by image."
        ),
        "verdict_short": short,
        "verdict_class": "" if table.is_won else "lost",
        "verdict_mark": "✓" if table.is_won else "✗",
    }


def _than(table: Table, other: str) -> str:
    lead = table.lead(other)
    points = f"{abs(100 * lead.value):.1f}{_NO_BREAK}±{_NO_BREAK}{100 * lead.standard_error:.1f}"
    return f"{points} points {'above' if lead.value >= 0 else 'below'}"


def _centred(table: Table) -> dict[str, str]:
    return {"centred_pixels": f"{100 * table.rows[PIXELS].value:.1f}", "centred_lead": _than(table, PIXELS)}


def _count(facts: Facts, split: str) -> int:
    return read_manifest(facts.out / "shards" / split).num_samples


def _total_seconds(facts: Facts) -> float:
    return sum(stage.seconds for stage in facts.stages.values())


def _sheets(out: Path) -> str:
    captions = {
        "seen": "What pretraining saw: 0 to 4, each in four rotations.",
        "unseen": "What it never saw: 5 to 9, the test images of the first table.",
    }
    figures = [
        image((out / f"{name}.png").read_bytes(), f"Contact sheet of handwritten digits. {caption}", caption)
        for name, caption in captions.items()
    ]
    return "\n".join(f'<div class="card">{figure}</div>' for figure in figures)


def _splits(facts: Facts) -> str:
    lines = []
    for split in SPLITS:
        manifest = read_manifest(facts.out / "shards" / split)
        counts = f'<td class="number">{manifest.num_samples:,}</td><td class="number">{len(manifest.classes)}</td>'
        lines.append(f'<tr><th scope="row"><code>{split}</code></th>{counts}<td>{html.escape(_USES[split])}</td></tr>')
    names = (("shards", ""), ("images", "number"), ("classes", "number"), ("used for", ""))
    head = "".join(f'<th scope="col" class="{kind}">{name}</th>' for name, kind in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>"


def _pretraining(folder: Path) -> dict[str, str]:
    """Returns what the report says of the run in `folder`, from its card, description and log."""
    card, run = (json.loads((folder / name).read_bytes()) for name in ("export/model.json", "run.json"))
    train, scored = read_log(folder, "train"), read_log(folder, "eval", VAL)
    curves = "Four curves over the steps of pretraining: loss, validation accuracy, learning rate, images per second"
    return {
        "architecture": html.escape(card["architecture"]),
        "num_steps": f"{run['total_steps']:,}",
        "num_pretraining_classes": str(run["num_classes"]),
        "images_per_s": f"{statistics.median(row['images_per_s'] for row in train):,.0f}",
        "val_top1": f"{100 * scored[-1]['top1']:.1f}",
        "num_val": str(scored[-1]["num_images"]),
        "curves": image(draw_curves(folder), curves),
    }


def _commands(stage: Stage) -> str:
    lines = "".join(f'<span class="line">$ {_wrapped(command)}</span>' for command in stage.commands)
    return f"<h3>{html.escape(stage.title[0].upper() + stage.title[1:])}</h3>\n<pre>{lines}</pre>"


def _wrapped(command: str) -> str:
    """Returns a command that the browser may break before an option, not between an option and its value."""
    parts = command.split(" --")
    return " ".join(f"<span>{html.escape(part)}</span>" for part in [parts[0], *(f"--{part}" for part in parts[1:])])


def _times(stages: Mapping[str, Stage]) -> str:
    total = sum(stage.seconds for stage in stages.values())
    lines = [
        f'<tr><th scope="row">{html.escape(stage.title)}</th><td class="number">{stage.seconds:.1f} s</td></tr>'
        for stage in stages.values()
    ]
    lines.append(f'<tr class="best"><th scope="row">all of it</th><td class="number">{total:.1f} s</td></tr>')
    return (
        "<table><thead><tr><th>stage</th><th class=number>wall clock</th></tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>"
    )


def _versions(facts: Facts) -> dict[str, str]:
    row = facts.tables["unseen"].rows[PRETRAINED]
    own = {"bamboo-vision": importlib.metadata.version("bamboo-vision"), "scikit-learn": importlib.metadata.version("scikit-learn")}
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores"
    hashes = {"weights": row.checkpoint_hash[:12], "protocol": f"{row.protocol}, {row.protocol_hash[:12]}"}
    return {**own, **row.versions, "machine": machine, **hashes}


def _pipeline(facts: Facts) -> str:
    """Returns the picture of the pipeline: five boxes with what is in them, and arrows."""
    pretrain, views = facts.stages["pretrain"].seconds, _count(facts, "pretrain/train")
    won = facts.tables["unseen"].rows[PRETRAINED]
    boxes = (
        ("images", "PNG in class folders", f"{views:,} views of 0 to 4"),
        ("shards", "WebDataset tar + index", "bamboo shards pack"),
        ("pretrain", f"torchrun, {facts.ranks} ranks", f"{pretrain:.0f} s"),
        ("backbone", "model.safetensors", f"{won.details['num_features']} features"),
        ("linear probe", f"{facts.shots} images per digit", f"{100 * won.value:.1f} % on 5 to 9"),
    )
    width, gap, parts = 164, 35, []
    for place, (title, *lines) in enumerate(boxes):
        left = place * (width + gap) + 2
        middle = left + width / 2
        parts.append(f'<rect x="{left}" y="6" width="{width}" height="88" rx="12"/><text x="{middle}" y="36">{html.escape(title)}</text>')
        parts += [f'<text class="small" x="{middle}" y="{58 + 20 * i}">{html.escape(line)}</text>' for i, line in enumerate(lines)]
        if place:
            end = left - 5
            parts.append(f'<path d="M{left - gap + 5} 50H{end - 6}"/><path class="head" d="M{end} 50l-9 -5v10z"/>')
    total = len(boxes) * (width + gap) - gap + 4
    label = "Pipeline: " + ", ".join(f"{title} ({lines[0]})" for title, *lines in boxes)
    return f'<svg class="pipeline" viewBox="0 0 {total} 100" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
