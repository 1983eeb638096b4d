"""What `bamboo grow` says and writes of a snapshot, besides the snapshot."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ..amounts import bytes_text
from ..annotations import read_annotations
from .bucket import bucket
from .inputs import Inputs
from .policy_summary import PolicySummary
from .seed_lists import export_json
from .settings import GrowSettings
from .snapshot import Snapshot
from .state import GrowthState
from .taking import take_bucketed

_ROOM = 1.6
"""What lists of codes take of memory over the codes in them, while they grow."""


def describe(snapshot: Snapshot, is_new: bool) -> str:
    """Returns the lines that tell of a snapshot."""
    card = snapshot.card
    total = sum(card["decisions"].values())
    counts = ", ".join(f"{count:,} {name}" for name, count in card["decisions"].items())
    state = "" if is_new else " (nothing has changed since it was taken)"
    lines = [f"{snapshot.folder}: snapshot {snapshot.number}{state}", f"  {total:,} samples: {counts}"]
    lines += [_audit_line(entry) for entry in card["audit"]]
    lines += _policy_lines(card["policy"]["kind"], card["policy_summary"])
    for folder, entry in zip(snapshot.training, card["training"], strict=True):
        reading = f"reads {bytes_text(entry['read_bytes'])} for {bytes_text(entry['used_bytes'])} used: {entry['amplification']:.2f} ×"
        lines.append(f"  {folder.location}: an epoch {reading}{', in groups of shards' if folder.grouped else ''}")
    return "\n".join([*lines, f"  train from it: bamboo pretrain --data.snapshot {snapshot.folder} …"]) + "\n"


def _audit_line(entry: Mapping[str, Any]) -> str:
    errors = f"bias {entry['bias']:+.2g}, p99 {entry['p99']:.2g}, greatest {entry['max']:.2g}"
    return f"  audit of source {entry['source']}, {entry['modality']}: gain error {errors}, over {entry['samples']:,} samples"


def _policy_lines(kind: str, summary: Mapping[str, Any]) -> Iterator[str]:
    phases = f" and {summary['second_samples']:,.0f} in turn" if summary["second_samples"] is not None else ""
    yield (
        f"  policy {kind}: an epoch of {summary['epoch_samples']:,.0f}{phases} of {summary['num_trainable']:,} samples,"
        f" mean probability {summary['mean_keep']:.3f}, effective sample size {summary['ess']:.2f}"
    )
    if summary["warning"]:
        yield f"  warning: {summary['warning']}"


def describe_plan(state: GrowthState, inputs: Inputs | None, config: GrowSettings, summary: PolicySummary | None) -> str:
    """Returns what a dry run says; `summary` tells what the policy comes to, where nothing new is to grow before."""
    sources = state.sources()
    held = sum(source.card["num_samples"] for source in sources)
    lines = [f"{state.folder}: {len(sources)} sources, {held:,} samples"]
    if inputs is not None:
        total = held + len(inputs)
        lines.append(f"would grow over {inputs.location}: {len(inputs):,} samples, {total:,} then")
        for name, part in inputs.encoded.items():
            num_bytes = total * (2 * part.width + 8)
            room = f"{bytes_text(num_bytes)} on the disk, about {bytes_text(_ROOM * num_bytes)} of memory over all processes"
            lines.append(f"  {name}: width {part.width}, {room}")
    kind = "the newest snapshot's" if config.policy is None else config.policy.kind
    lines.append(f"would take a snapshot by policy {kind}; nothing is written")
    if summary is not None:
        lines += _policy_lines(kind, dataclasses.asdict(summary))
    return "\n".join(lines) + "\n"


def bucket_shards(state: GrowthState, snapshot: Snapshot, config: GrowSettings) -> tuple[Snapshot, bool]:
    """Packs what a snapshot trains from anew, by probability, and takes the snapshot that trains from that."""
    settings = config.bucket
    assert settings.out is not None, "asked for"
    made = bucket(
        snapshot,
        settings.out,
        num_buckets=settings.count,
        samples_per_shard=settings.samples_per_shard,
        seed=config.seed,
        processes=settings.processes,
    )
    return take_bucketed(state, snapshot, made, str(settings.out.resolve()))


def write_outputs(snapshot: Snapshot, config: GrowSettings) -> None:
    """Writes the page and the list that the settings ask for."""
    captions = {}
    if config.captions is not None and (config.report or config.export):
        captions = {name: entry.captions[0] for name, entry in read_annotations(config.captions).items() if entry.captions}
    if config.export is not None:
        count = export_json(snapshot, config.export, captions)
        sys.stdout.write(f"{config.export}: {count:,} samples\n")
    if config.report is not None:
        from .report.page import write_report  # matplotlib is loaded only for it

        write_report(snapshot, config.report, recaptions=captions)
        sys.stdout.write(f"{config.report}: written\n")
