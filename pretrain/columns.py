"""The weight columns that a run folder holds already, so that a run goes on without its weight files, and without compiling again."""

import json
from pathlib import Path

from ..datasets.plan.rates import read_card
from ..datasets.plan.weighting import Weighting, drawn_samples, made_by
from ..datasets.shards import Shards


def find_compiled(run: Path, weighting: Weighting, data_hash: str) -> Path | None:
    """Returns the weight column in a run folder that was made of the same data by the same settings, None where there is none.

    A weight file counts by name, size and time; where it is gone, by its name alone.
    """
    wanted = {**json.loads(json.dumps(made_by(weighting))), "data_hash": data_hash}
    for folder in sorted((run / "plan").glob("rates-*")):
        made = dict((read_card(folder) or {}).get("made_by", {}))
        for file in ("weights_file", "second_file"):
            if file not in wanted:
                made.pop(file, None)
        if made == wanted:
            return folder
    return None


def samples_an_epoch(run: Path, weighting: Weighting, part: Shards, what: str) -> int:
    """Returns what an epoch of one folder draws, by its compiled weight column or else its weights; errors as `compile_rates`."""
    if weighting.is_even:
        return len(part)
    compiled = find_compiled(run, weighting, part.data_hash)
    card = None if compiled is None else read_card(compiled)
    return int(card["epoch_samples"]) if card is not None else drawn_samples(weighting, part.index, what)
