"""The registry against timm, and registries of one's own."""

import re
from pathlib import Path

import pytest
import timm
import torch
import yaml

from bamboo.cli.errors import UserError
from bamboo.model_zoo.published import entry_recipe
from bamboo.model_zoo.registry import find_entry, read_registry
from tests.model_zoo.released import registry

ENTRIES = read_registry()


@pytest.mark.parametrize("id_", ENTRIES)
def test_every_entry_is_what_timm_says(id_: str) -> None:
    """Architecture, parameters, width, head, preprocessing and Hub name against timm's config and its model on the meta device."""
    entry = ENTRIES[id_]
    assert entry.architecture in timm.list_pretrained()
    known = timm.get_pretrained_cfg(entry.architecture).to_dict()
    with torch.device("meta"):
        module = timm.create_model(entry.architecture, num_classes=0, **entry.model_args)
    assert entry.num_params == sum(parameter.numel() for parameter in module.parameters())
    assert entry.num_features == module.num_features
    assert entry.num_classes == known["num_classes"]
    wanted = entry_recipe(entry).preprocessing
    assert wanted is not None
    assert (wanted.image_size, wanted.crop_fraction) == (known["input_size"][-1], known["crop_pct"])
    assert (wanted.mean, wanted.std, wanted.interpolation) == (tuple(known["mean"]), tuple(known["std"]), known["interpolation"])
    hubs = [source for source in entry.sources if source.hub]
    assert [source.hub for source in hubs] == [known["hf_hub_id"]]
    assert entry.sources[0] is hubs[0]
    assert {source.url for source in entry.sources if source.url} <= {known["url"]}
    assert entry.licence == known.get("license") or id_.startswith("bamboo-")


def test_ids_are_no_architectures() -> None:
    """In FILE@NAME an id must not mean a model of timm as well."""
    assert not [id_ for id_ in ENTRIES if timm.is_model(id_)]


def test_hashes_agree_with_the_names_of_their_files() -> None:
    """Where a publisher writes the first digits of the hash into the name, those are the pin."""
    for entry in ENTRIES.values():
        for source in entry.sources:
            named = re.search(r"-([0-9a-f]{8})\.pth$", source.name)
            if named and source.url:
                assert source.sha256 == named[1], source.name


def test_bamboo_as_released() -> None:
    """The two released checkpoints: head, normalisation, the original's size and hash as its publisher's pointer file has them."""
    resnet, vit = ENTRIES["bamboo-rn50"], ENTRIES["bamboo-vitb16"]
    assert (resnet.num_params, resnet.num_classes, resnet.preprocessing.normalisation) == (23_508_032, 0, "imagenet")
    assert (vit.num_params + 115_217 * 769, vit.num_classes, vit.preprocessing.normalisation) == (174_400_529, 115_217, "clip")
    original = vit.files["Bamboo_v0-1_ViT-B16.pth.tar.convert"]
    assert original.num_bytes == 697_651_655
    assert (original.sha256 or "").startswith("a6d30c82")
    assert next(iter(vit.files)) == "model.safetensors"


def test_ones_own_registry_is_merged(tmp_path: Path) -> None:
    """Own entries come after ours; an id of ours is refused."""
    merged = read_registry(registry(tmp_path, {"url": "https://example.org/a.pth"}))
    assert list(merged) == [*ENTRIES, "small"]
    with pytest.raises(UserError, match="bamboo-rn50 are taken"):
        read_registry(registry(tmp_path, {"url": "https://example.org/a.pth"}, id_="bamboo-rn50"))
    with pytest.raises(UserError, match="did you mean 'bamboo-rn50'"):
        find_entry(merged, "bamboo-rn5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectur": "x"}, "did you mean 'architecture'"),
        ({"sources": []}, "sources"),
        ({"sources": [{"hub": "a/b", "url": "https://example.org/x"}]}, "hub and url given"),
        ({"sources": [{"drive": "a"}]}, "needs the name of its file"),
        ({"sources": [{"hub": "a/b", "file": "../x"}]}, "file"),
        ({"sources": [{"url": "ftp://example.org/x"}]}, "url"),
        ({"sources": [{"url": "https://example.org/x", "sha256": "XYZ"}]}, "sha256"),
        ({"sources": [{"hub": "a/b", "file": "x"}, {"url": "https://example.org/x", "num_bytes": 3}]}, "two hashes or sizes"),
        ({"preprocessing": {"mean": [0, 0, 0]}}, "by name, or mean and std"),
        ({"num_features": 0}, "num_features=0"),
    ],
)
def test_wrong_registries_are_explained(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """Each mistake in a user's registry is a UserError that names the entry and the key."""
    path = registry(tmp_path, {"url": "https://example.org/a.pth"})
    tree = yaml.safe_load(path.read_text())
    tree["models"]["small"] |= change
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=f"(?s)small.*{message}"):
        read_registry(path)
