"""The run's curves as one picture."""

import io
from pathlib import Path
from typing import Any

from ..datasets.atomic import write_bytes
from .log import read_log
from .settings.evaluators import VAL


def draw_curves(folder: Path) -> bytes:
    """Returns a PNG of loss, accuracy, learning rate and throughput over the run so far, and writes it to `curves.png`."""
    import matplotlib.figure  # 0.3 s to import, and only wanted here

    train, scored = read_log(folder, "train"), read_log(folder, "eval", VAL)
    others: dict[str, list[dict[str, Any]]] = {}
    for row in read_log(folder, "eval"):
        if row["name"] != VAL and "value" in row:
            others.setdefault(row["name"], []).append(row)
    figure = matplotlib.figure.Figure(figsize=(11, 6))  # a layout engine would take as long again as the drawing, while all ranks wait
    margins = {"left": 0.06, "right": 0.985, "bottom": 0.085, "top": 0.945, "hspace": 0.4, "wspace": 0.16}
    axes = figure.subplots(2, 2, gridspec_kw=margins)
    _plot(axes[0, 0], "loss", {"train": (train, "loss"), "validation": (scored, "loss")})
    accuracies = {"val top-1": (scored, "top1"), "val top-5": (scored, "top5")} if scored or not others else {}
    _plot(axes[0, 1], "accuracy", accuracies | {name: (rows, "value") for name, rows in others.items()})
    _plot(axes[1, 0], "learning rate", {"": (train, "lr")})
    _plot(axes[1, 1], "images / s", {"": (train, "images_per_s")})
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_bytes(folder / "curves.png", picture.getvalue())
    return picture.getvalue()


def _plot(axis: Any, title: str, lines: dict[str, tuple[list[dict[str, Any]], str]]) -> None:
    for label, (rows, name) in lines.items():
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=label or None, marker="." if len(rows) < 30 else None)
    axis.set_title(title)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    if any(lines):
        axis.legend()
