"""`run.json`: what a run is made of (data, source, machines, versions), and every time it was started."""

import contextlib
import dataclasses
import datetime
import json
import os
import platform
import re
import sys
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision

from ...cli.config import dump
from ...datasets.atomic import write_bytes, write_json
from ...datasets.plan.sources import parse_source
from ...datasets.ranks import Ranks
from ...datasets.remote.locations import redacted
from ..pool import Pool
from ..settings.pretrain import PretrainSettings
from .checkout import MOST_DIFF_BYTES, Checkout, read_checkout, source_checkout
from .machine import Machine, accelerator_versions, package_version

FILE_NAME, DIFF_NAME = "run.json", "git.diff"

_WORTH_KNOWING = re.compile(
    r"(NCCL|TORCH|PYTORCH|TORCHINDUCTOR|TORCHELASTIC|CUDA|CUBLAS|CUDNN|GLOO|OMP|MKL|KMP|DS|BAMBOO|UCX|FI|LOCAL|GROUP)_\w+"
    r"|WORLD_SIZE|SLURM_(JOB_(ID|NAME|PARTITION|NUM_NODES|NODELIST)|NNODES|NTASKS|CLUSTER_NAME|RESTART_COUNT|ARRAY_\w+)"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|JWT|COOKIE", re.IGNORECASE)


def describe(config: PretrainSettings, pool: Pool, ranks: Ranks, machines: Sequence[Machine], total_steps: int) -> dict[str, Any]:
    """Returns what `run.json` says of a run that is about to start; `machines` are every rank's."""
    return {
        "data_hash": pool.train.data_hash,
        "num_classes": len(pool.train.class_names),
        "num_samples": len(pool.train),
        **({} if pool.grown is None else {"snapshot": pool.grown.facts()}),
        "total_steps": total_steps,
        "world_size": ranks.world_size,
        "hardware": {
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "device": str(ranks.device),
            "gpus": dict(Counter(machine.gpu for machine in machines if machine.gpu)),
            "nodes": nodes(machines),
        },
        "versions": {**versions(), **_engine_versions(config), **accelerator_versions(ranks.device)},
        "command": [redacted(word) for word in sys.argv],
        "environment": environment(os.environ),
        "config": dump(without_secrets(config)),
    }


def record_start(folder: Path, facts: Mapping[str, Any], start: Mapping[str, Any]) -> str:
    """Writes `run.json` and `git.diff`, and returns the run's identity, which it keeps for good.

    Args:
        facts: what holds for this start; it takes the place of what an earlier one said.
        start: what is added to the list `starts`: step, samples, engine, …; the time and the state of the source are added to it.
    """
    before = _read(folder / FILE_NAME)
    identity = before.get("id") or uuid.uuid4().hex[:16]
    git = _source(folder)
    source = {name: git["source"].get(name) for name in ("commit", "diff_sha256")} if isinstance(git["source"], dict) else {}
    entry = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **start, **_slurm(), "source": source}
    starts = [*before.get("starts", []), entry]
    write_json(folder / FILE_NAME, {"id": identity, **facts, "git": git, "starts": starts})
    return str(identity)


def without_secrets(config: PretrainSettings) -> PretrainSettings:
    """Returns the settings as they may be recorded: addresses without credentials and signatures."""
    train = tuple(parse_source(text).shown for text in config.data.train)
    val = None if config.data.val is None else parse_source(config.data.val).shown
    return dataclasses.replace(config, data=dataclasses.replace(config.data, train=train, val=val))


def versions() -> dict[str, str]:
    """Returns the versions of what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that libraries below us listen to and those that name the job; none that may hold a secret."""
    wanted = {name: text for name, text in variables.items() if _WORTH_KNOWING.fullmatch(name) and not _SECRET.search(name)}
    return {name: redacted(wanted[name]) for name in sorted(wanted)}


def nodes(machines: Sequence[Machine]) -> list[dict[str, Any]]:
    """Returns the hosts in the order of their first ranks, with how many ranks and which GPUs each has."""
    by_host: dict[str, list[Machine]] = {}
    for machine in machines:
        by_host.setdefault(machine.host, []).append(machine)
    return [
        {
            **{name: value for name, value in dataclasses.asdict(ranks[0]).items() if name != "gpu"},
            "ranks": len(ranks),
            "gpus": dict(Counter(machine.gpu for machine in ranks if machine.gpu)),
        }
        for ranks in by_host.values()
    ]


def _engine_versions(config: PretrainSettings) -> dict[str, str]:
    return {"deepspeed": package_version("deepspeed")} if config.engine.kind == "deepspeed" else {}


def _source(folder: Path) -> dict[str, Any]:
    """Returns the state of Bamboo's own source and of the working directory; a diff of the source goes to `git.diff`."""
    source, here = source_checkout(), read_checkout(Path.cwd())
    found: dict[str, Any] = {"source": source if isinstance(source, str) else source.facts()}
    if isinstance(source, Checkout) and source.diff and len(source.diff) <= MOST_DIFF_BYTES:
        write_bytes(folder / DIFF_NAME, source.diff)
        found["source"]["diff_file"] = DIFF_NAME
    else:
        (folder / DIFF_NAME).unlink(missing_ok=True)  # of an earlier start
    is_same = isinstance(source, Checkout) and isinstance(here, Checkout) and here.folder == source.folder
    found["working_directory"] = "the source" if is_same else here if isinstance(here, str) else here.facts()
    return found


def _slurm() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID")
    return {"slurm": {"job": job, "attempt": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}} if job else {}


def _read(path: Path) -> dict[str, Any]:
    """Returns what an earlier start wrote; nothing where there is none, or it is damaged: a record must not keep a run from training."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) and isinstance(found.get("starts", []), list) else {}
    return {}
