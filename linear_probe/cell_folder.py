"""The folder of an evaluation: what it predicted, on which rows, how it chose, and last its row, which marks it as finished."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..datasets.atomic import write_bytes, write_json
from .protocols.outcome import Curve, Outcome
from .results import ResultRow, parse_row
from .splits import Indices, write_split

MARKER = "row.json"


def write_folder(
    folder: Path, outcome: Outcome, row: ResultRow, *, rows: Indices, labels: npt.NDArray[np.int64], class_names: list[str]
) -> None:
    """Writes the folder; one that is there is unfinished until it is written anew.

    predictions.npz (`predictions`, `labels`: int64[N test]), split.npz (`rows`, `train`, `val` and their digests), classes.json,
    curve.json and curve.png where there is a curve, and row.json.

    Args:
        rows: numbers of the training rows in use.
        labels: of the test rows.
    """
    (folder / MARKER).unlink(missing_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, predictions=outcome.predictions, labels=labels)
    write_bytes(folder / "predictions.npz", buffer.getvalue())
    write_split(folder / "split.npz", rows, outcome.split)
    write_json(folder / "classes.json", class_names)
    if outcome.curve is not None:
        write_json(folder / "curve.json", dataclasses.asdict(outcome.curve))
        write_bytes(folder / "curve.png", curve_png(outcome.curve))
    write_json(folder / MARKER, dataclasses.asdict(row))


def read_row(folder: Path) -> ResultRow | None:
    """Returns the row of a finished folder; None where there is none, or none that can be read."""
    try:
        return parse_row((folder / MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def curve_png(curve: Curve) -> bytes:
    """Returns a PNG of the scores over what was tried, the chosen value marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: no global state, no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([point.x for point in curve.points], [100 * point.val_score for point in curve.points], marker=".", label="selects")
    trained = [(point.x, 100 * point.train_score) for point in curve.points if point.train_score is not None]
    if trained:
        axes.plot(*zip(*trained, strict=True), linewidth=0.8, label="training (top-1)")
    axes.axvline(curve.points[curve.chosen].x, color="0.6", linewidth=0.8, linestyle="--", label="chosen")
    axes.set(xlabel=curve.x, ylabel="accuracy, %", xscale="log" if curve.log else "linear")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
