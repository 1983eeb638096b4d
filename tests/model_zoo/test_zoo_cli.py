"""`bamboo zoo` from the command line: list, fetch, show, convert."""

import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

from bamboo.cli.main import main
from bamboo.model_zoo import zoo_fetch
from bamboo.model_zoo.backbone import open_backbone
from bamboo.model_zoo.export import Card, read_card, read_weights, write_export
from bamboo.model_zoo.preprocessing import Preprocessing
from bamboo.model_zoo.registry import Entry
from bamboo.model_zoo.sources import Access, Fetched
from bamboo.model_zoo.zoo_cli import SETTINGS
from tests.loopback import Loopback, loopback
from tests.model_zoo.released import registry, weights

FILE = weights()


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches below tmp_path, and none of the user's settings."""
    for name in ("BAMBOO_MIRROR", "BAMBOO_OFFLINE", "HF_HUB_OFFLINE", "BAMBOO_SHARED_CACHES", "BAMBOO_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BAMBOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def server() -> Iterator[Loopback]:
    """Serves FILE as `small.safetensors`."""
    with loopback() as running:
        running.files["small.safetensors"] = FILE
        yield running


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


@pytest.mark.parametrize("command", SETTINGS)
def test_every_help_fits_a_screen(command: str, said: pytest.CaptureFixture[str]) -> None:
    """At most 40 lines each."""
    with pytest.raises(SystemExit):
        main(["zoo", command, "--help"])
    assert said.readouterr().out.count("\n") <= 40


def test_list_filters_by_words(said: pytest.CaptureFixture[str]) -> None:
    """All entries, those with every word, none."""
    assert main(["zoo", "list"]) == 0
    assert "115,217" in said.readouterr().out
    assert main(["zoo", "list", "clip", "openai"]) == 0
    lines = said.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "clip-rn50", "clip-vitb16", "2"]
    assert main(["zoo", "list", "nothing-of-that-kind"]) == 2


def test_list_shows_runs_with_an_export(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    """Of three run folders: one exported, one unfinished (not listed), one with a damaged card (said so)."""
    card = Card(
        architecture="test_vit", model_args={}, classes=("a", "b"), preprocessing=Preprocessing(image_size=32), trained={"steps": 1234}
    )
    write_export(tmp_path / "runs/done/export", timm.create_model("test_vit", num_classes=2).state_dict(), card)
    (tmp_path / "runs/unfinished/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/bad/export").mkdir(parents=True)
    (tmp_path / "runs/bad/export/model.json").write_text("{")
    assert main(["zoo", "list", "--runs", str(tmp_path / "runs"), "runs/"]) == 0
    out = said.readouterr().out
    assert "own run, 1,234 steps" in out
    assert "damaged export" in out
    assert "unfinished" not in out
    assert main(["zoo", "list", "--runs", str(tmp_path / "none")]) == 2


def test_fetch_show_and_open(tmp_path: Path, server: Loopback, said: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run fetches nothing; a fetch prints place and hash; show says what is pinned; zoo:ID gives the model's own features."""
    file = registry(tmp_path, {"url": server.url("small.safetensors")})
    monkeypatch.setenv("BAMBOO_REGISTRY", str(file))
    assert main(["zoo", "fetch", "small", "--dry-run"]) == 0
    assert server.requests == []
    assert "about 1.2 MB from http" in said.readouterr().out
    assert main(["zoo", "show", "small"]) == 0
    assert "not pinned: its hash is recorded at the first download" in said.readouterr().out
    assert main(["zoo", "fetch", "small"]) == 0
    out = said.readouterr().out
    assert hashlib.sha256(FILE).hexdigest() in out
    assert "not pinned: sha256 recorded at the first download" in out
    assert main(["zoo", "show", "small"]) == 0
    assert str(tmp_path / "cache/zoo/small/small.safetensors") in said.readouterr().out
    backbone = open_backbone("zoo:small")
    assert (backbone.name, backbone.preprocessing.mean, backbone.preprocessing.crop_fraction) == ("small", (0.5, 0.5, 0.5), 0.9)
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=7).eval()
    images = torch.randint(0, 256, (2, 160, 160, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5), pre_logits=True)
    torch.testing.assert_close(backbone.features(images), expected, rtol=1e-4, atol=1e-5)


def test_another_image_size_keeps_the_hash(tmp_path: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT opened at 64 instead of 160 pixels: features come out, and the weights' hash is that of the file as it is."""
    monkeypatch.setenv("BAMBOO_REGISTRY", str(registry(tmp_path, {"url": server.url("small.safetensors")})))
    native, small = open_backbone("zoo:small"), open_backbone("zoo:small", image_size=64)
    assert small.checkpoint_hash == native.checkpoint_hash
    assert small.preprocessing.image_size == 64
    assert small.features(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 64)


def test_one_that_fails_does_not_keep_the_others(tmp_path: Path, server: Loopback, said: pytest.CaptureFixture[str]) -> None:
    """Offline, one of two models here: it is checked, the other is named with its place; exit code 2."""
    file = registry(tmp_path, {"url": server.url("small.safetensors")})
    assert main(["zoo", "fetch", "small", "--registry", str(file)]) == 0
    said.readouterr()
    assert main(["zoo", "fetch", "bamboo-rn50", "small", "--offline", "--registry", str(file)]) == 2
    out, err = said.readouterr()
    assert "small:" in out
    assert "cache/zoo/bamboo-rn50/model.safetensors" in err
    assert main(["zoo", "fetch", "smal", "--registry", str(file)]) == 2
    assert "did you mean 'small'" in said.readouterr().err


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    """A checkpoint as the released ViT's: `module.` under state_dict, with a head of 7."""
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    path = tmp_path / "vit.pth.tar.convert"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    return path


def test_convert_keeps_or_drops_the_head(tmp_path: Path, wrapped: Path, said: pytest.CaptureFixture[str]) -> None:
    """Both exports open with the same weights hash as the file itself; the kept head has its names and timm's output."""
    names = tmp_path / "names.json"
    names.write_text(json.dumps({str(index): f"class {index}" for index in range(7)}))
    checkpoint = f"{wrapped}@test_vit"
    assert main(["zoo", "convert", checkpoint, str(tmp_path / "dropped"), "--normalisation", "clip"]) == 0
    assert "tensors of the backbone, 2 of the head, in 'state_dict', under 'module.'" in said.readouterr().out
    assert main(["zoo", "convert", checkpoint, str(tmp_path / "kept"), "--head", "keep", "--classes", str(names)]) == 0
    hashes = {open_backbone(name).checkpoint_hash for name in (checkpoint, str(tmp_path / "dropped"), str(tmp_path / "kept"))}
    assert len(hashes) == 1
    dropped, kept = (read_card(tmp_path / name / "model.safetensors") for name in ("dropped", "kept"))
    assert dropped is not None
    assert kept is not None
    assert (dropped.classes, kept.classes) == ((), tuple(f"class {index}" for index in range(7)))
    assert dropped.preprocessing.mean == (0.48145466, 0.4578275, 0.40821073)
    assert kept.trained["file_sha256"] == hashlib.sha256(wrapped.read_bytes()).hexdigest()
    whole = timm.create_model("test_vit", num_classes=7)
    whole.load_state_dict(read_weights(tmp_path / "kept/model.safetensors"))


def test_convert_dry_run_and_refusals(tmp_path: Path, wrapped: Path, said: pytest.CaptureFixture[str]) -> None:
    """Nothing is written by a dry run, over another export, with a wrong number of names, or of a head that is not there."""
    checkpoint, out = f"{wrapped}@test_vit", tmp_path / "out"
    assert main(["zoo", "convert", checkpoint, str(out), "--dry-run"]) == 0
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert main(["zoo", "convert", checkpoint, str(out), "--head", "keep", "--classes", str(names)]) == 2
    assert "2 names for a head of 7 outputs" in said.readouterr().err
    assert main(["zoo", "convert", checkpoint, str(out), "--classes", str(names)]) == 2
    assert "add head=keep" in said.readouterr().err
    assert main(["zoo", "convert", f"{wrapped}@test_resnet", str(out)]) == 1
    assert "do not match" in said.readouterr().err
    assert main(["zoo", "convert", str(tmp_path), str(out)]) == 2
    assert "a folder, and no checkpoint of ours (RUN/checkpoints/step-N)" in said.readouterr().err
    headless = tmp_path / "headless.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), headless)
    assert main(["zoo", "convert", f"{headless}@test_vit", str(out), "--head", "keep"]) == 2
    assert "holds no classifier" in said.readouterr().err
    assert not out.exists()
    assert main(["zoo", "convert", checkpoint, str(out)]) == 0
    assert main(["zoo", "convert", checkpoint, str(out)]) == 2
    assert "holds model.safetensors and model.json already" in said.readouterr().err


FIXED = ["--model-args", "{dynamic_img_size: false, img_size: 32}"]


def test_convert_does_not_resample(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    """A ViT of 32 pixels only: another side is refused, also by a dry run; its own is written, given or not, and the export is usable."""
    path = tmp_path / "a.pth"
    torch.save(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), path)
    for extra in ([], ["--dry-run"]):
        assert main(["zoo", "convert", f"{path}@test_vit", str(tmp_path / "out"), *FIXED, "--image-size", "64", *extra]) == 2
        assert "image_size=64: a.pth@test_vit takes images of 32 pixels only" in said.readouterr().err
    assert not (tmp_path / "out").exists()
    for name, extra in (("one", []), ("two", ["--image-size", "32"])):
        assert main(["zoo", "convert", f"{path}@test_vit", str(tmp_path / name), *FIXED, *extra]) == 0
        backbone = open_backbone(str(tmp_path / name / "model.safetensors"))
        assert backbone.features(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 64)


def test_a_disk_error_does_not_keep_the_others(
    tmp_path: Path, server: Loopback, said: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError at the first of two ids: told, the second is fetched, and the exit code says failure."""
    file = registry(tmp_path, {"url": server.url("small.safetensors")})
    real = zoo_fetch.fetch

    def fetch(entry: Entry, access: Access) -> Fetched:
        if entry.id == "bamboo-rn50":
            raise OSError(errno.ENOSPC, "No space left on device", "some/file")
        return real(entry, access)

    monkeypatch.setattr(zoo_fetch, "fetch", fetch)
    assert main(["zoo", "fetch", "bamboo-rn50", "small", "--registry", str(file)]) == 1
    out, err = said.readouterr()
    assert "No space left on device: 'some/file'" in err
    assert hashlib.sha256(FILE).hexdigest() in out


def test_convert_renames_a_foreign_head(tmp_path: Path) -> None:
    """A head called `fc` in a file for a model that calls it `head`: kept under the model's name."""
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    path = tmp_path / "a.pth"
    torch.save({name.replace("head.", "fc."): tensor for name, tensor in state.items()}, path)
    assert main(["zoo", "convert", f"{path}@test_vit", str(tmp_path / "out"), "--head", "keep"]) == 0
    assert set(read_weights(tmp_path / "out/model.safetensors")) == set(state)
    card = read_card(tmp_path / "out/model.safetensors")
    assert card is not None
    assert card.classes == tuple("0123456")
