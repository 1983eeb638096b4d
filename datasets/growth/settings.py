"""The settings of `bamboo grow`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ...cli.config import settings
from .policy_settings import PolicySettings

Count = Annotated[int, Field(ge=1)]

EFFORT = 2200


@settings
class CleaningSettings:
    """What a sample is judged by."""

    alignment: Annotated[float, Field(ge=-1, le=1)] = 0.4
    """Least cosine of image and caption, where both are given; it depends on the encoder (0.4 is InfoGrowth's, for its BLIP)."""
    duplicate_distance: Annotated[float, Field(ge=0, le=2)] = 0.05
    """Cosine distance up to which a sample is a near-duplicate of an earlier one."""


@settings
class EngineSettings:
    """How neighbours are found."""

    kind: Literal["cells", "exact", "hnsw"] = "cells"
    """cells: inverted file, exact while it is small (extra: grow); exact: all codes; hnsw: InfoGrowth's own, one by one (extra: hnsw)."""
    effort: Count = EFFORT
    """kind=cells: codes that are compared with each sample; more find more of the neighbours, at more CPU time."""
    audit_samples: Count = 500
    """Samples of each step whose gains are compared with exact ones."""
    audit_limit: Annotated[float, Field(gt=0)] = 0.05
    """Greatest 99 % quantile of their errors, in cosine distance; a step that exceeds it ends with an error."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        if self.kind != "cells" and self.effort != EFFORT:
            return [f"effort={self.effort}: kind={self.kind} does not use it; leave it out, or give kind=cells"]
        return []


@settings
class BucketSettings:
    """Shards packed anew, sorted by probability, so that samples that are seldom taken cost little reading."""

    out: Path | None = None
    """Folder to pack into; none: training reads the shards as they are."""
    count: Count = 8
    """Buckets of probability; a shard has samples of one."""
    samples_per_shard: Count = 10_000
    """Images per shard."""
    processes: Count | None = None
    """Worker processes; by default one per CPU core."""


@settings
class GrowSettings:
    """Everything `bamboo grow` can be told."""

    state: Path
    """Folder of the growth state, which is made where there is none."""
    data: str | None = None
    """Shard folder that has arrived; none: a snapshot of what is there, by another policy."""
    image: Path | None = None
    """Feature folder of its images, as bamboo features makes it."""
    text: Path | None = None
    """Feature folder of its captions, of the same width where both are given."""
    recaptions: Path | None = None
    """Feature folder of re-captions; a row of zeros: that sample has none."""
    gains: bool = False
    """Take the gains that InfoGrowth computed, from the JSON members of the shards, in place of features."""
    k: Count = 4
    """Neighbours that a gain is the mean over."""
    seed: int = 0
    """Keys which codes k-means looks at, and which samples are audited."""
    settled: bool = True
    """Also compute each sample's gain by all others, earlier and later, anew in every snapshot; as long as growth itself."""
    window: Count | None = None
    """Samples of a window of arrival, in which drift is measured, smaller at first; none: as the newest snapshot, else 1,000,000."""
    cleaning: CleaningSettings = CleaningSettings()
    engine: EngineSettings = EngineSettings()
    policy: PolicySettings | None = None
    """None: that of the newest snapshot, else proportional."""
    bucket: BucketSettings = BucketSettings()
    report: Path | None = None
    """HTML page to write of the newest snapshot."""
    export: Path | None = None
    """InfoGrowth's JSON list to write: image, caption and gains of every sample that was not dropped."""
    captions: Path | None = None
    """InfoGrowth's JSON list of re-captions by image name, for the report and the export."""
    dry_run: bool = False
    """Only say what would be done, what it takes, and what the policy comes to; nothing is written."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        features = {"image": self.image, "text": self.text, "recaptions": self.recaptions}
        if self.data is None:
            found += [f"{name}={path}: of which samples? give data, the shard folder" for name, path in features.items() if path]
            if self.gains:
                found.append("gains=true: of which samples? give data, the shard folder")
        elif self.gains:
            found += [f"{name}={path}: gains=true takes the gains as they are; give one of both" for name, path in features.items() if path]
        elif self.image is None and self.text is None:
            found.append("data is given without features; give image, text or both, made by bamboo features, or gains=true")
        if self.recaptions is not None and (self.image is None or self.text is None):
            found.append(f"recaptions={self.recaptions}: need image and text beside them, to tell which captions do not fit")
        if self.data is not None and (self.image is None or self.text is None) and self.cleaning.alignment != CleaningSettings().alignment:
            found.append(f"cleaning.alignment={self.cleaning.alignment:g}: compares image and text; give both, or leave it out")
        if self.gains and (self.k, self.engine, self.cleaning) != (4, EngineSettings(), CleaningSettings()):
            found.append("gains=true: nothing is compared, so k, engine and cleaning are not used; leave them out")
        if self.captions is not None and self.report is None and self.export is None:
            found.append(f"captions={self.captions}: are for the report and the export; give one of them, or leave it out")
        if self.bucket.out is None and self.bucket != BucketSettings():
            found.append("bucket: give bucket.out, the folder to pack into")
        return found

    @property
    def shared(self) -> dict[str, object]:
        """What all steps of a state must have in common, besides the encoders."""
        return {"k": self.k, "seed": self.seed, "engine": self.engine.kind, **dataclasses.asdict(self.cleaning)}
