"""Samples to be looked at, as HTML: sheets of images, duplicates beside what they repeat, captions beside their re-captions."""

import html
import math
from collections.abc import Iterator, Mapping

from ...sources import printable
from ..columns import Columns
from .markup import card, soft
from .pictures import Pictures
from .tally import Tally

_MOST_LETTERS = 400

_NOTHING = "The shard folders cannot be read any more, so there are no images here."


def sheets(made: Tally, pictures: Pictures) -> str:
    """Returns the kept samples with the greatest gain, and those with the least."""
    titles = {"most": "Most informative", "least": "Least informative"}
    notes = {
        "most": "The kept samples with the greatest corrected gain: nothing earlier is like them. Outliers and rubbish gather here, too.",
        "least": "The kept samples with the least corrected gain: the next to go where the duplicate distance rises.",
    }
    if not pictures.any_left:
        return card("", soft(_NOTHING))
    return "".join(card(titles[name], _sheet(made.extremes[name].columns, pictures), notes[name]) for name in titles)


def duplicates(made: Tally, pictures: Pictures, threshold: float | None) -> str:
    """Returns pairs of near-duplicates, and of samples that almost are: on the left the earlier one."""
    at = "the threshold" if threshold is None else f"{threshold:g}"
    inside, outside = _without(made.extremes["inside"].columns, made.extremes["closest"].columns), made.extremes["outside"].columns
    remedy = "cleaning.duplicate_distance, in a new state"
    groups = (
        ("Closest", "The least distances of all.", made.extremes["closest"].columns),
        ("Just within the threshold", f"The duplicates nearest to {at}. Where they are none, lower {remedy}.", inside),
        ("Just beyond it", f"The kept samples nearest to {at}. Where they are duplicates, raise {remedy}.", outside),
    )
    return "".join(card(title, _pairs(columns, pictures), note) for title, note, columns in groups if _count(columns))


def captions(made: Tally, pictures: Pictures, recaptions: Mapping[str, str], threshold: float | None) -> str:
    """Returns captions that were replaced, and captions for which samples were dropped."""
    at = "the least alignment" if threshold is None else f"the least alignment, {threshold:g}"
    worst, barely = (made.extremes[name].columns for name in ("cleaned", "cleaned_barely"))
    dropped, spared = (made.extremes[name].columns for name in ("dropped", "dropped_barely"))
    groups = (
        ("Cleaned: the worst captions", "Those that fitted their images least, and what stands in their place.", worst),
        ("Cleaned: the closest calls", f"Their re-captions are nearest to {at}.", _without(barely, worst)),
        ("Dropped: the worst captions", "Those that fitted their images least.", dropped),
        ("Dropped: the closest calls", f"Nearest to {at}.", _without(spared, dropped)),
    )
    return "".join(card(title, _captioned(columns, pictures, recaptions), note) for title, note, columns in groups if _count(columns))


def _sheet(columns: Columns, pictures: Pictures) -> str:
    tiles = ""
    for arrival, gain in _rows(columns, "arrival", "corrected"):
        name = _class(pictures, int(arrival))
        tiles += f"<figure>{_image(pictures, int(arrival))}<figcaption><b>{gain:.3f}</b> {name}</figcaption></figure>"
    return f'<div class="sheet">{tiles}</div>' if tiles else soft("There is none.")


def _pairs(columns: Columns, pictures: Pictures) -> str:
    found = ""
    for arrival, nearest, distance in _rows(columns, "arrival", "nearest", "distance"):
        sides = "".join(
            f"<figure>{_image(pictures, int(each))}<figcaption>{_class(pictures, int(each))}"
            f"<small>{_place(pictures, int(each)).replace(': ', '<br>')}</small>"
            "</figcaption></figure>"
            for each in (nearest, arrival)
        )
        found += f'<div class="pair"><div>{sides}</div><b title="cosine distance">{distance:.4f}</b></div>'
    return f'<div class="pairs">{found}</div>'


def _captioned(columns: Columns, pictures: Pictures, recaptions: Mapping[str, str]) -> str:
    found = ""
    for arrival, before, after in _rows(columns, "arrival", "alignment", "realigned"):
        texts = _line("caption", before, pictures.caption(int(arrival)))
        if not math.isnan(after):
            texts += _line("re-caption", after, pictures.recaption(int(arrival), recaptions))
        found += (
            f'<div class="captioned"><figure>{_image(pictures, int(arrival))}</figure>'
            f"<div>{texts}<small>{_place(pictures, int(arrival))}</small></div></div>"
        )
    return f'<div class="captions">{found}</div>'


def _line(name: str, alignment: float, text: str | None) -> str:
    said = '<span class="missing">not at hand</span>' if text is None else html.escape(_cut(text))
    return f'<p><span class="badge">{name} {alignment:.3f}</span> {said}</p>'


def _image(pictures: Pictures, arrival: int) -> str:
    uri = pictures.image(arrival)
    if uri is None:
        return '<span class="blank">no image</span>'
    return f'<img src="{uri}" alt="{_place(pictures, arrival)}" title="{_place(pictures, arrival)}" loading="lazy">'


def _place(pictures: Pictures, arrival: int) -> str:
    source, row = pictures.place(arrival)
    return f"arrival {arrival:,}: source {source}, row {row:,}"


def _class(pictures: Pictures, arrival: int) -> str:
    name = pictures.class_name(arrival)
    return "" if name is None else html.escape(printable(name))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"


def _rows(columns: Columns, *names: str) -> Iterator[tuple[float, ...]]:
    if columns:
        yield from zip(*(columns[name].tolist() for name in names), strict=True)


def _count(columns: Columns) -> int:
    return len(columns["arrival"]) if columns else 0


def _without(columns: Columns, others: Columns) -> Columns:
    """Returns the rows that are not among others."""
    if not columns or not others:
        return columns
    shown = set(others["arrival"].tolist())
    stay = [place for place, arrival in enumerate(columns["arrival"].tolist()) if arrival not in shown]
    return {name: column[stay] for name, column in columns.items()}
