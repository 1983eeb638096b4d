"""Backbones from every form of checkpoint."""

import json
import socket
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torchvision.transforms.v2 import functional

from bamboo.cli.errors import DataError, UserError
from bamboo.model_zoo.backbone import Backbone, open_backbone
from bamboo.model_zoo.export import Card, network_hash, read_weights, weights_hash, write_export
from bamboo.model_zoo.preprocessing import Normalize, Preprocessing

PREPROCESSING = Preprocessing(image_size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bilinear", crop_fraction=1.0)


@pytest.fixture
def images() -> torch.Tensor:
    """Returns uint8[5, 32, 32, 3]."""
    return torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def export(folder: Path, model: torch.nn.Module, architecture: str, **model_args: object) -> Path:
    """Writes a model as `bamboo pretrain` would."""
    card = Card(architecture=architecture, model_args=model_args, classes=("a", "b"), preprocessing=PREPROCESSING, trained={"steps": 1})
    return write_export(folder, model.state_dict(), card)


def test_normalisation_is_torchvisions(images: torch.Tensor) -> None:
    """uint8 channels-last batches against torchvision's to_dtype and normalize, to 1e-6."""
    expected = functional.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = functional.normalize(expected, list(PREPROCESSING.mean), list(PREPROCESSING.std))
    actual = Normalize(PREPROCESSING)(images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("architecture", "args"), [("test_resnet", {}), ("test_vit", {"img_size": 32, "patch_size": 8})])
def test_exported_weights_give_timms_features(tmp_path: Path, images: torch.Tensor, architecture: str, args: dict[str, int]) -> None:
    """A safetensors export opened as a backbone against timm's own forward of the same model: pooled features and feature maps."""
    model = timm.create_model(architecture, num_classes=2, **args).eval()
    backbone = open_backbone(str(export(tmp_path, model, architecture, **args)))
    inputs = Normalize(PREPROCESSING)(images)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
        maps = model.forward_intermediates(inputs, intermediates_only=True)
    torch.testing.assert_close(backbone.features(images), expected, rtol=1e-5, atol=1e-5)
    assert backbone.features(images).shape == (5, backbone.num_features)
    for actual, wanted in zip(backbone.feature_maps(images), maps, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    assert backbone.preprocessing == PREPROCESSING


def test_bf16_features_are_close(images: torch.Tensor) -> None:
    """A bf16 forward against float32: within 2 % of the features' norm."""
    backbone = open_backbone("untrained:test_resnet", image_size=32)
    exact, rounded = backbone.features(images), backbone.features(images, "bf16")
    assert rounded.dtype == torch.float32
    assert float((exact - rounded).norm() / exact.norm()) < 0.02


def test_untrained_twin_shares_all_but_the_weights(tmp_path: Path) -> None:
    """untrained:RUN has the run's architecture and preprocessing, fresh weights, and depends on the seed alone."""
    model = timm.create_model("test_resnet", num_classes=2)
    path = export(tmp_path / "export", model, "test_resnet")
    twin, again, other = (open_backbone(f"untrained:{tmp_path}", seed=seed) for seed in (1, 1, 2))
    assert twin.preprocessing == PREPROCESSING
    assert twin.checkpoint_hash == again.checkpoint_hash
    assert len({twin.checkpoint_hash, other.checkpoint_hash, open_backbone(str(path)).checkpoint_hash}) == 3


@pytest.mark.parametrize("form", ["export", "run", "untrained architecture", "untrained run", "file"])
def test_another_image_size_of_a_model_of_one_size(tmp_path: Path, images: torch.Tensor, form: str) -> None:
    """A ViT that takes 64 pixels only, at 32: features of every form come out, the hash is that at 64, and an export's are timm's own."""
    architecture, args = "test_vit", {"img_size": 64, "dynamic_img_size": False}
    model = timm.create_model(architecture, num_classes=0, **args).eval()
    path = export(tmp_path / "export", model, architecture, **args)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), tmp_path / "tiny.pth")
    checkpoint = {
        "export": str(path),
        "run": f"run:{tmp_path}",
        "untrained architecture": "untrained:vit_tiny_patch16_224",
        "untrained run": f"untrained:{tmp_path}",
        "file": f"{tmp_path / 'tiny.pth'}@vit_tiny_patch16_224",
    }[form]
    card = tmp_path / "export/model.json"
    card.write_text(card.read_text().replace('"image_size": 32', '"image_size": 64'))
    native, small = open_backbone(checkpoint), open_backbone(checkpoint, image_size=32)
    assert small.features(images).shape == (5, small.num_features)
    assert (small.preprocessing.image_size, small.checkpoint_hash) == (32, native.checkpoint_hash)
    if form in ("export", "run"):
        model.set_input_size(img_size=32)
        with torch.no_grad():
            expected = model(Normalize(small.preprocessing)(images))
        torch.testing.assert_close(small.features(images), expected, rtol=1e-5, atol=1e-5)


def test_offline_forbids_timms_downloads_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm:NAME under BAMBOO_OFFLINE with an empty cache: refused, and no connection is tried; with the file in Hugging Face's: opened."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("BAMBOO_OFFLINE", "1")
    tried: list[object] = []

    def connect(self: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    def look_up(*where: object, **options: object) -> list[object]:
        tried.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(UserError, match="offline forbids the network, and its weights are not on this machine"):
        open_backbone("timm:test_vit")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    with pytest.raises(UserError, match=r"offline forbids the network, and its weights are not at .*checkpoints"):
        open_backbone(f"timm:{first_of_an_address()}")
    folder = tmp_path / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("c" * 40)
    (folder / f"snapshots/{'c' * 40}").mkdir(parents=True)
    model = timm.create_model("test_vit", num_classes=1000)
    safetensors.torch.save_file(model.state_dict(), folder / f"snapshots/{'c' * 40}/model.safetensors")
    model.reset_classifier(0)
    assert open_backbone("timm:test_vit").checkpoint_hash == network_hash("test_vit", {}, model.state_dict())
    assert tried == []


def first_of_an_address() -> str:
    """Returns a small model whose weights timm gets from an address and not from the Hub."""
    names = (name for name in timm.list_pretrained() if (config := timm.get_pretrained_cfg(name)) and config.url and not config.hf_hub_id)
    return next(names)


def test_pixels_are_pixels(images: torch.Tensor) -> None:
    """The pixel baseline is the normalised image, flattened."""
    backbone = open_backbone("pixels:32")
    assert torch.equal(backbone.features(images), Normalize(backbone.preprocessing)(images).flatten(1))
    assert backbone.num_features == 3 * 32 * 32


@pytest.mark.parametrize("fault", ["missing", "superfluous", "shape"])
def test_every_tensor_must_match(tmp_path: Path, fault: str) -> None:
    """A block missing, one too many, one of another shape: refused, and the tensor is named."""
    path = export(tmp_path, timm.create_model("test_resnet", num_classes=2), "test_resnet")
    tensors = read_weights(path)
    name = "layer1.0.conv1.weight"
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name if fault == "shape" else (name := "extra.weight")] = torch.zeros(3)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        open_backbone(str(path))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("timm:resnet5o", "did you mean 'resnet50'"),
        ("pixels:0", "1 to 1024"),
        ("pixels:x", "1 to 1024"),
        ("untrained:resnet_18", "did you mean 'resnet18"),
    ],
)
def test_other_names_are_refused(checkpoint: str, message: str) -> None:
    """Each with the nearest name or the forms that are known."""
    with pytest.raises(UserError, match=message):
        open_backbone(checkpoint)


def test_damaged_exports(tmp_path: Path) -> None:
    """A cut weights file, a damaged card, no card, an unfinished run: each refused with the file named."""
    path = export(tmp_path, timm.create_model("test_resnet", num_classes=2), "test_resnet")
    card = tmp_path / "model.json"
    whole, weights = card.read_text(), path.read_bytes()
    path.write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        open_backbone(str(path))
    path.write_bytes(weights)
    card.write_text(whole[:50])
    with pytest.raises(DataError, match=r"model\.json"):
        open_backbone(str(path))
    card.write_text(json.dumps({"architecture": "test_resnet"}))
    with pytest.raises(DataError, match="model_args"):
        open_backbone(str(path))
    card.unlink()
    with pytest.raises(UserError, match=r"no model\.json"):
        open_backbone(str(path))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="unfinished run"):
        open_backbone(str(tmp_path / "run"))


def test_weights_hash_sees_every_change() -> None:
    """Name, dtype, shape and value all count; the order of the tensors does not."""
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    others = [{"a": torch.zeros(3, 2), "b": state["b"]}, {"c": state["a"], "b": state["b"]}, {**state, "b": torch.ones(4).double()}]
    hashes = {weights_hash(state), *(weights_hash(other) for other in others), weights_hash({**state, "b": torch.tensor([1.0, 1, 1, 2])})}
    assert len(hashes) == 5
    assert weights_hash(dict(reversed(state.items()))) == weights_hash(state)


def test_backbone_without_maps() -> None:
    """Pixels have no feature maps: an error, not an attribute of None."""
    with pytest.raises(UserError, match="no feature maps"):
        open_backbone("pixels:8").feature_maps(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    assert isinstance(open_backbone("pixels:8"), Backbone)
