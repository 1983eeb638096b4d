"""Coverage per class as HTML."""

import html

import numpy as np

from ...sources import printable
from .markup import MISSING, card, share, soft, table
from .pictures import Pictures
from .tally import Coverage, Tally

_ALL, _ENDS = 60, 20


def coverage(made: Tally, pictures: Pictures) -> str:
    """Returns a row per class, those with the most samples first; of many classes the first and the last twenty."""
    found = made.coverage
    if found is None:
        return card("", soft("The samples have no classes, or these are not known any more."))
    order = np.argsort(-found.samples[1:], kind="stable") + 1
    num_classes, num_empty = len(order), int((found.samples[1:] == 0).sum())
    chosen = [(order, "")] if num_classes <= _ALL else [(order[:_ENDS], "with the most samples"), (order[-_ENDS:], "with the fewest")]
    parts = [
        (f"<h4>The {_ENDS} {name}</h4>" if name else "") + _table(found, places.tolist(), pictures, int(found.samples[order[0]]))
        for places, name in chosen
    ]
    lead = f"{num_classes:,} {'class' if num_classes == 1 else 'classes'}"
    lead += f", {num_empty:,} of them without a sample" if num_empty else ""
    lead += f"; {int(found.samples[0]):,} samples without a class" if found.samples[0] else ""
    what = "Gain is the mean corrected gain of the kept samples; visits are expected visits an epoch per sample, of two phases their mean."
    return card("", "".join(parts), f"{lead}. {what}")


def _table(found: Coverage, places: list[int], pictures: Pictures, most: int) -> str:
    rows = []
    for place in places:
        samples, kept = int(found.samples[place]), int(found.kept[place])
        name = html.escape(printable(pictures.name_of(place - 1)))
        gain = f"{found.gain_sums[place] / kept:.3f}" if kept else MISSING
        visits = MISSING if found.visits is None or not samples else f"{found.visits[place] / samples:.3f}"
        duplicates = f"{int(found.duplicates[place]):,}"
        rows.append([name, _bar(samples, kept, most), f"{samples:,}", share(kept, samples), duplicates, gain, visits])
    return table(("class", "samples, of them kept", "samples", "kept", "duplicates", "gain", "visits"), rows, num_texts=2)


def _bar(samples: int, kept: int, most: int) -> str:
    """Returns a bar as long as the samples are many, filled as far as they are kept."""
    whole, part = (f"{100 * count / max(most, 1):.2f}%" for count in (samples, kept))
    return f'<div class="bar" aria-hidden="true"><i style="width: {whole}"></i><i class="s1" style="width: {part}"></i></div>'
