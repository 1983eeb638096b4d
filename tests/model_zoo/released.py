"""A registry of one small checkpoint, and the checkpoint, for tests of fetching."""

import io
from pathlib import Path

import safetensors.torch
import timm
import torch
import yaml

from bamboo.model_zoo.registry import Entry, read_registry


def weights(seed: int = 0) -> bytes:
    """Returns timm's test_vit with a head of 7 outputs, as a safetensors file."""
    torch.manual_seed(seed)
    data: bytes = safetensors.torch.save(timm.create_model("test_vit", num_classes=7).state_dict())
    return data


def legacy_weights(seed: int = 0, *, zipped: bool = False) -> bytes:
    """Returns the same weights as torch wrote them before its zip archives, or as one of those."""
    torch.manual_seed(seed)
    file = io.BytesIO()
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def registry(folder: Path, *sources: dict[str, object], id_: str = "small") -> Path:
    """Writes a registry of test_vit with the given sources, and returns its path."""
    module = timm.create_model("test_vit", num_classes=0)
    entry = {
        "architecture": "test_vit",
        "num_params": sum(parameter.numel() for parameter in module.parameters()),
        "num_features": module.num_features,
        "num_classes": 7,
        "preprocessing": {"image_size": 160, "normalisation": "half", "crop_fraction": 0.9},
        "pretraining": "none",
        "licence": "none",
        "paper": "https://example.org",
        "sources": list(sources),
    }
    path = folder / "registry.yaml"
    path.write_text(yaml.safe_dump({"models": {id_: entry}}))
    return path


def entry(folder: Path, *sources: dict[str, object]) -> Entry:
    """Returns the entry `small` of a registry file with these sources, which is written into `folder`."""
    return read_registry(registry(folder, *sources))["small"]
