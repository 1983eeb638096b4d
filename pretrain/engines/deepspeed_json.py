"""DeepSpeed's JSON, derived from our settings; a user's own may add keys, and must not contradict them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...cli.errors import UserError

_OWNED = {  # DeepSpeed's key: the setting of ours that it comes from
    "train_batch_size": "run.global_batch_size",
    "train_micro_batch_size_per_gpu": "run.global_batch_size",
    "gradient_accumulation_steps": "run.accumulate",
    "gradient_clipping": "optimizer.clip_norm",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer.device": "engine.offload",
    "torch_autocast.enabled": "run.precision",
    "torch_autocast.dtype": "run.precision",
    "fp16.enabled": "run.precision",
    "bf16.enabled": "run.precision",
}
_REFUSED = {  # sections for which we have settings of another kind, or whose layout checkpoints would not follow
    "optimizer": "optimizer.name and the other settings of that section make the optimiser",
    "scheduler": "optimizer.schedule and optimizer.warmup make the schedule",
    "data_efficiency": "the data section makes the stream",
    "checkpoint": "checkpoints are written in Bamboo's own format",
    "compression_training": "not supported",
    "zero_optimization.zero_hpz_partition_size": "not supported",
    "zero_optimization.mics_shard_size": "not supported",
    "zero_optimization.zero_quantized_weights": "not supported",
    "zero_optimization.offload_param": "not supported",
}


def derive(
    *, zero_stage: int, offload: bool, precision: str, clip_norm: float | None, accumulate: int, global_batch_size: int, world_size: int
) -> dict[str, Any]:
    """Returns the JSON that our settings come to.

    Weights stay float32 in every precision; bf16 is autocast, with gradients summed over ranks in float32, as the other engines have it.
    """
    parts = accumulate * world_size
    zero: dict[str, Any] = {"stage": zero_stage}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": -(-global_batch_size // parts),
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": zero,
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }


def read_json(path: Path) -> dict[str, Any]:
    """Returns a user's DeepSpeed JSON.

    Raises:
        UserError: when there is no such file, or it holds no JSON object.
    """
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"engine.deepspeed_json={path}: not readable as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"engine.deepspeed_json={path}: holds a {type(tree).__name__}, not an object of DeepSpeed's settings")
    return tree


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: Path, global_batch_size: int) -> dict[str, Any]:
    """Returns our JSON with a user's keys added; "auto" stands for our value.

    Raises:
        UserError: naming every key that contradicts one of ours, with both values and our setting.
    """
    known = {**dict(_leaves(ours)), "train_batch_size": global_batch_size}
    known.setdefault("zero_optimization.offload_optimizer.device", "none")
    faults, merged = [], json.loads(json.dumps(ours))
    for key, value in _leaves(theirs):
        section = next((refused for refused in _REFUSED if key == refused or key.startswith(refused + ".")), None)
        if section is not None:
            faults.append(f"  {section}: {_REFUSED[section]}; leave it out")
        elif value == "auto":
            continue
        elif key in _OWNED:
            if known[key] != value:
                faults.append(f"  {key}={json.dumps(value)}: {_OWNED[key]} makes it {json.dumps(known[key])}; change one of the two")
        else:
            _assign(merged, key.split("."), value)
    if faults:
        raise UserError("\n".join([f"engine.deepspeed_json={path}: contradicts the run's settings:", *dict.fromkeys(faults)]))
    return dict(merged)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _assign(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
