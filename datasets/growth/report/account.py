"""What a snapshot says of itself, as HTML: decisions, how it was made, its audit, its policy. Keys that its card lacks are left out."""

import html
from collections.abc import Mapping
from typing import Any

from ...amounts import bytes_text
from ...remote.locations import shown
from ..columns import REASONS, Decision, Reason
from ..snapshot import Snapshot
from .markup import MISSING, card, definitions, share, soft, table, told
from .tally import Tally

_DECISIONS = {
    Decision.ACCEPT: ("s1", "accepted", "as they came"),
    Decision.CLEAN: ("s2", "cleaned", "with another caption"),
    Decision.DUPLICATE: ("s3", "duplicates", "of an earlier sample"),
    Decision.DROP: ("s5", "dropped", "caption and image do not fit"),
}
_ENCODER = ("checkpoint", "preprocessing", "precision")
_AUDIT = ("samples", "bias", "p50", "p99", "max", "share_over", "num_cells")
_AUDIT_HEADS = ("source", "features", "samples", "mean error", "median |error|", "99 %", "greatest", "off by > 0.05", "cells")
_SUMMARY = {
    "num_trainable": "samples that may be taken",
    "epoch_samples": "expected samples an epoch",
    "second_samples": "of every second epoch",
    "mean_keep": "mean probability",
    "ess": "effective sample size of full inverse weights, share",
    "quantile": "gain that counts as 1",
    "scale": "τ",
    "num_zero": "taken never",
    "num_at_floor": "held at the floor",
    "num_at_cap": "held at the cap",
}


def decisions(made: Tally) -> str:
    """Returns how many samples met with each decision, and why."""
    total = int(made.decisions.sum())
    tiles, parts = "", ""
    for decision, (role, name, what) in _DECISIONS.items():
        count = int(made.decisions[decision])
        told_of = f"<span>{name}, {share(count, total)}</span><small>{what}</small>"
        tiles += f'<div class="count"><i class="{role}"></i><b>{count:,}</b>{told_of}</div>'
        parts += f'<i class="{role}" style="flex-grow: {count}"></i>' if count else ""
    why = [
        [html.escape(REASONS[reason]), f"{int(made.reasons[reason]):,}", share(int(made.reasons[reason]), total)]
        for reason in Reason
        if made.reasons[reason]
    ]
    drawn = f'<div class="counts">{tiles}</div><div class="stack" aria-hidden="true">{parts}</div>'
    return card("", drawn + table(("why", "samples", "share"), why))


def making(snapshot: Snapshot) -> str:
    """Returns what made the snapshot: state, hashes, encoders, settings, sources."""
    entries, growth = snapshot.card, snapshot.card.get("growth", {})
    settings = {
        "neighbours (k)": growth.get("k"),
        "least alignment": growth.get("alignment"),
        "duplicate distance": growth.get("duplicate_distance"),
        "engine": growth.get("engine"),
        "seed": growth.get("seed"),
        "window of the correction": entries.get("window"),
        "settled gains": entries.get("settled"),
        "gains imported": growth.get("imported"),
    }
    identity = {
        "state": str(snapshot.state),
        "snapshot": f"{snapshot.number}",
        "hash": snapshot.content_hash,
        "made after": entries.get("parent") or "none: it is the first",
    }
    left = definitions(identity) + _encoders(growth.get("modalities", {}))
    both = f'<div class="two"><section>{left}</section><section>{definitions(_known(settings))}</section></div>'
    rows = [
        [f"{number}", _path(source.location), _code(source.data_hash[:12]), f"{len(source.shards):,}", f"{source.num_samples:,}"]
        for number, source in enumerate(snapshot.sources)
    ]
    return card("", both + table(("source", "shard folder", "data hash", "shards", "samples"), rows, num_texts=3))


def audit(snapshot: Snapshot) -> str:
    """Returns how far the gains of each step were from exact ones."""
    entries = [entry for entry in snapshot.card.get("audit", []) if isinstance(entry, dict)]
    if not entries:
        return card("Audit", soft("None is recorded: no gain was computed, they were imported, or it was an earlier version."))
    rows = [[html.escape(told(entry.get("source"))), html.escape(told(entry.get("modality"))), *_audit_cells(entry)] for entry in entries]
    note = "Gain found minus gain by exact search, in cosine distance, on samples chosen before anything was known of them, step by step."
    return card("Audit", table(_AUDIT_HEADS, rows, num_texts=2), note)


def policy(snapshot: Snapshot) -> str:
    """Returns the policy, what it comes to, and what an epoch reads."""
    settings, summary = (snapshot.card.get(name) or {} for name in ("policy", "policy_summary"))
    left = f"<h4>Settings</h4>{definitions(settings)}" if settings else ""
    right = definitions({text: summary[name] for name, text in _SUMMARY.items() if summary.get(name) is not None})
    both = f'<div class="two"><section>{left}</section><section><h4>What it comes to</h4>{right}</section></div>'
    rows = [_training(entry) for entry in snapshot.card.get("training", [])]
    heads = ("trained from", "samples", "an epoch reads", "uses", "read / used", "groups")
    return card("", both + table(heads, rows))


def _encoders(modalities: Mapping[str, Any]) -> str:
    found = ""
    for name, entry in modalities.items():
        encoder = entry.get("encoder") or {}
        pairs = {"width": entry.get("width")} | {part: encoder.get(part) for part in _ENCODER}
        found += f"<h4>Encoder of the {html.escape(name)}</h4>{definitions(_known(pairs))}"
    return found


def _audit_cells(entry: Mapping[str, Any]) -> list[str]:
    texts = {name: html.escape(told(entry.get(name))) for name in _AUDIT}
    if isinstance(over := entry.get("share_over"), int | float):
        texts["share_over"] = share(over, 1)
    return [texts[name] for name in _AUDIT]


def _training(entry: Mapping[str, Any]) -> list[str]:
    sizes = [bytes_text(value) if isinstance(value := entry.get(name), int | float) else MISSING for name in ("read_bytes", "used_bytes")]
    ratio = f"{value:.2f}" if isinstance(value := entry.get("amplification"), int | float) else MISSING
    return [_path(entry["location"]), f"{entry['num_samples']:,}", *sizes, ratio, told(bool(entry.get("grouped")))]


def _path(location: str) -> str:
    return f'<span class="path">{html.escape(shown(location))}</span>'


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _known(pairs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in pairs.items() if value is not None}
