"""A snapshot as one HTML page that opens offline: nothing on it is fetched, it needs no script, and what is not ours is escaped."""

import dataclasses
import datetime
import html
import itertools
import string
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...atomic import write_text
from ..columns import Decision
from ..snapshot import Snapshot
from . import account, figures, samples
from .classes import coverage
from .figures import Bars
from .markup import card, legend, share, soft, wide
from .pictures import Pictures
from .tally import Tally, tally

TEMPLATE = Path(__file__).with_name("page.html")

IMAGES = 32
"""Images of a contact sheet."""

_BINS = 60


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    """Its anchor."""
    title: str
    inside: str
    """HTML."""
    lead: str = ""


def write_report(snapshot: Snapshot, path: Path, *, images: int = IMAGES, recaptions: Mapping[str, str] | None = None) -> None:
    """Writes the report of a snapshot, atomically.

    Its columns are read tar by tar, so memory does not grow with samples but for 4 bytes each where they have classes. Shard folders that
    are not there any more, were packed anew, or are remote, are named on the page, and their images left out.

    Args:
        images: images on each of the two contact sheets; of pairs and captions a quarter as many of each sort are shown.
        recaptions: re-captions by the names of samples, as `seed_lists.export_json` takes them.

    Raises:
        DataError: when a column of the snapshot is missing or damaged.
    """
    text = page(snapshot, images, recaptions or {})
    write_text(path, text.encode("utf-8", "replace").decode())  # captions come from JSON, which may hold half a character


def page(snapshot: Snapshot, images: int, recaptions: Mapping[str, str]) -> str:
    """Returns the report as one HTML document; arguments and errors as `write_report`."""
    pictures = Pictures(snapshot)
    made = tally(snapshot, pictures, images)
    sections = list(_sections(snapshot, made, pictures, recaptions))
    total, kept = int(made.decisions.sum()), int(made.decisions[[Decision.ACCEPT, Decision.CLEAN]].sum())
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{snapshot.state.name}, snapshot {snapshot.number}"),
        headline=f"{total:,} {'sample' if total == 1 else 'samples'}, {share(kept, total)} kept",
        lead=_lead(snapshot),
        alarms=_alarms(snapshot, pictures),
        contents="".join(f'<a href="#{each.name}">{html.escape(each.title)}</a>' for each in sections),
        sections="\n".join(_whole(each) for each in sections),
        date=f"{datetime.datetime.now(datetime.UTC):%-d %B %Y, %H:%M} UTC",
    )


def _whole(section: Section) -> str:
    lead = f"<p>{html.escape(section.lead)}</p>" if section.lead else ""
    return f'<section id="{section.name}"><h2>{html.escape(section.title)}</h2>{lead}\n{section.inside}</section>'


def _lead(snapshot: Snapshot) -> str:
    num_sources, kind = len(snapshot.sources), snapshot.card.get("policy", {}).get("kind")
    sources = f"{num_sources:,} shard {'folder' if num_sources == 1 else 'folders'}"
    policy = f", taken by the policy {html.escape(str(kind))}" if kind else ""
    where = f"<code>{html.escape(str(snapshot.state))}</code>"
    return f"Snapshot {snapshot.number} of {where}, <code>{snapshot.content_hash[:12]}</code>: {sources}{policy}."


def _alarms(snapshot: Snapshot, pictures: Pictures) -> str:
    """Returns cards about what nobody may overlook: images that cannot be shown, and what the policy warns of."""
    cards = []
    if pictures.missing:
        reasons = "".join(f"<li>Source {number}: {html.escape(reason)}.</li>" for number, reason in pictures.missing.items())
        count = len(pictures.missing)
        which = "A shard folder" if count == 1 else f"{count} of {len(snapshot.sources)} shard folders"
        whose = "its" if count == 1 else "their"
        cards.append(f"<strong>{which} cannot be read: {whose} images and captions are left out.</strong><ul>{reasons}</ul>")
    if warning := (snapshot.card.get("policy_summary") or {}).get("warning"):
        cards.append(f"<strong>The policy.</strong> {html.escape(str(warning))}.")
    return "".join(f'<div class="card alarm"><b aria-hidden="true">!</b><div>{each}</div></div>' for each in cards)


def _sections(snapshot: Snapshot, made: Tally, pictures: Pictures, recaptions: Mapping[str, str]) -> Iterator[Section]:
    growth = snapshot.card.get("growth", {})
    near, aligned = growth.get("duplicate_distance"), growth.get("alignment")
    yield Section("decisions", "Decisions", account.decisions(made))
    lead = (
        "A sample's gain is its mean cosine distance to its nearest earlier neighbours. The more samples there are, the nearer the "
        "nearest, so gain falls with arrival; the correction takes that out. Drawn of the kept samples."
    )
    yield Section("arrival", "Gain over arrival", _over_arrival(snapshot, made), lead)
    yield Section("spread", "How gains and visits lie", _spreads(made))
    lead = "The corrected gain of each stands below it, and its class where it has one."
    yield Section("sheets", "Most and least informative", samples.sheets(made, pictures), lead)
    yield Section("duplicates", "Duplicates", _distances(made, near) + samples.duplicates(made, pictures, near))
    if made.alignments.counts.any():
        inside = _alignments(made, aligned) + samples.captions(made, pictures, recaptions, aligned)
        yield Section("captions", "Captions", inside)
    yield Section("coverage", "Coverage per class", coverage(made, pictures))
    yield Section("policy", "Policy", account.policy(snapshot))
    yield Section("making", "How it was made", account.making(snapshot) + account.audit(snapshot))


def _over_arrival(snapshot: Snapshot, made: Tally) -> str:
    """Returns drawings of the combined gain, and of each modality where there are two."""
    counts = [source.num_samples for source in snapshot.sources]
    borders = [*itertools.accumulate(counts)][:-1]

    def drawn(title: str, series: Mapping[str, tuple[str, str]], size: tuple[float, float]) -> str:
        there = {role: pair for role, pair in series.items() if made.over_arrival[pair[0]].counts.any()}
        if not there:
            return card(title, soft("No kept sample has a gain."))
        spreads = {role: made.over_arrival[name] for role, (name, _) in there.items()}
        label = f"{title}: median and 10 to 90 % over arrival"
        names = legend({role: text for role, (_, text) in there.items()})
        picture = figures.over_arrival(spreads, sum(counts), borders, label, size)
        return card(title, names + (wide(picture) if size == figures.WIDE else picture))

    causal, settled = "to earlier samples (causal)", "to all others (settled)"
    series = {"s5": ("gain", causal), "s1": ("corrected", "causal, corrected"), "s2": ("settled", settled)}
    note = "Lines are medians, bands hold 80 % of the samples" + ("; dotted lines: the next shard folder." if borders else ".")
    whole = drawn("Gain", series, figures.WIDE) + soft(note)
    if not all(made.over_arrival[f"{name}_gain"].counts.any() for name in ("image", "text")):
        return whole
    halves = [
        drawn(f"Gain of the {name}", {"s5": (f"{name}_gain", causal), "s2": (f"{name}_settled", settled)}, figures.HALF)
        for name in ("image", "text")
    ]
    return f'{whole}<div class="halves">{"".join(halves)}</div>'


def _spreads(made: Tally) -> str:
    gains, edges = made.gains.histogram(_BINS)
    bars = [Bars(gains[[Decision.ACCEPT, Decision.CLEAN]].sum(0), "s1"), Bars(gains[Decision.DUPLICATE], "s3")]
    names = legend({"s1": "kept", "s3": "duplicates"})
    drawn = figures.histogram(bars, edges, "corrected gain", "Histogram of the corrected gain")
    left = card("Corrected gain", names + drawn)
    visits, edges = made.visits.histogram(_BINS)
    is_double = bool(visits[1].any() or made.num_never[1])
    bars = [Bars(visits[0], "s1"), *([Bars(visits[1], "s2")] if is_double else [])]
    names = legend({"s1": "first, third, … epoch", "s2": "second, fourth, …"} if is_double else {"s1": "every epoch"})
    never = f"{made.num_never[0]:,}" + (f" and {made.num_never[1]:,}" if is_double else "")
    drawn = figures.histogram(bars, edges, "expected visits an epoch", "Histogram of expected visits an epoch")
    right = card("Compiled probability", names + drawn + soft(f"Left out, as an epoch never takes them: {never} samples."))
    return f'<div class="halves">{left}{right}</div>'


def _distances(made: Tally, threshold: float | None) -> str:
    count = int(made.decisions[Decision.DUPLICATE])
    said = f"{count:,} {'sample is' if count == 1 else 'samples are'} within the duplicate distance of an earlier one."
    if not made.distances.counts.any():
        return card("", soft("Distances to the nearest are not known." if not count else said))
    counts, edges = made.distances.histogram(_BINS)
    label = "Histogram of the distance to the nearest earlier sample"
    bars = [Bars(counts[0], "s1")]
    drawn = figures.histogram(bars, edges, "cosine distance to it", label, size=figures.WIDE, threshold=threshold, log=True)
    note = "" if threshold is None else f" The dashed line is the duplicate distance, {threshold:g}. Counts are logarithmic."
    return card("Distance to the nearest", wide(drawn), said + note)


def _alignments(made: Tally, threshold: float | None) -> str:
    counts, edges = made.alignments.histogram(_BINS)
    bars = [Bars(counts[0], "s1"), *([Bars(counts[1], "s2")] if counts[1].any() else [])]
    names = legend({"s1": "caption", "s2": "re-caption"} if counts[1].any() else {"s1": "caption"})
    label = "Histogram of the alignment of captions"
    drawn = figures.histogram(bars, edges, "cosine of image and text", label, size=figures.WIDE, threshold=threshold)
    cleaned, dropped = (int(made.decisions[which]) for which in (Decision.CLEAN, Decision.DROP))
    note = f"{cleaned:,} captions replaced, {dropped:,} samples dropped."
    note += "" if threshold is None else f" The dashed line is the least alignment, {threshold:g}."
    return card("Alignment", names + wide(drawn), note)
