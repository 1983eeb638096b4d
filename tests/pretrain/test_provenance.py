"""`run.json`: what a run was made of, against git's own words and made-up machines."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.pretrain.record import provenance
from bamboo.pretrain.record.checkout import Checkout, read_checkout
from bamboo.pretrain.record.machine import Machine, cpu_model, driver_version
from bamboo.pretrain.record.provenance import environment, nodes, record_start
from tests.pretrain.launch import options


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=trunk")
    return subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init")
    (folder / "a.py").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_checkout_is_described(checkout: Path) -> None:
    """Against git's own commands: clean, then with a changed, a staged and an untracked file."""
    clean = read_checkout(checkout)
    assert isinstance(clean, Checkout)
    assert (clean.commit, clean.branch, clean.changed, clean.diff) == (git(checkout, "rev-parse", "HEAD").strip(), "trunk", (), b"")
    (checkout / "a.py").write_text("two\n")
    (checkout / "new name.py").write_text("three\n")
    (checkout / "staged.py").write_text("four\n")
    git(checkout, "add", "staged.py")
    index = (checkout / ".git" / "index").read_bytes()
    found = read_checkout(checkout)
    assert isinstance(found, Checkout)
    assert (checkout / ".git" / "index").read_bytes() == index, "a look must not write"
    assert set(found.changed) == {" M a.py", "A  staged.py", "?? new name.py"}
    assert found.diff.decode() == git(checkout, "diff", "--binary", "HEAD")
    git(checkout, "stash", "-u")
    subprocess.run(["git", "-C", str(checkout), "apply"], input=found.diff, check=True)  # the diff gives the source back
    assert (checkout / "a.py").read_text() == "two\n"
    git(checkout, "checkout", "--detach")
    assert read_checkout(checkout).facts()["branch"] == "(detached)"  # type: ignore[union-attr]  # a checkout, as before


def test_no_checkout_and_no_git_are_said(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain folder, a repository without a commit, a machine without git: words, no error."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert read_checkout(tmp_path) == "not a git checkout"
    shutil.rmtree(checkout / ".git")
    git(checkout, "init")
    assert str(read_checkout(checkout)).startswith("git: ")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_checkout(checkout) == "git is not installed"


def test_starts_grow_and_the_identity_stays(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three starts, the second with a changed source: entries, `git.diff` and its hash."""
    monkeypatch.setattr(provenance, "source_checkout", lambda: read_checkout(checkout))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    run = tmp_path / "run"
    identities = [record_start(run, {"data_hash": "x"}, {"step": 0})]
    (checkout / "a.py").write_text("two\n")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    identities.append(record_start(run, {"data_hash": "y"}, {"step": 10}))
    diff = (run / "git.diff").read_bytes()
    assert b"+two" in diff
    record = json.loads((run / "run.json").read_bytes())
    assert record["data_hash"] == "y"
    assert record["git"]["source"]["diff_sha256"] == hashlib.sha256(diff).hexdigest()
    assert [entry["step"] for entry in record["starts"]] == [0, 10]
    assert [entry["slurm"] for entry in record["starts"]] == [{"job": "17", "attempt": 0}, {"job": "17", "attempt": 1}]
    assert [bool(entry["source"]["diff_sha256"]) for entry in record["starts"]] == [False, True]
    monkeypatch.setattr(provenance, "MOST_DIFF_BYTES", 10)
    identities.append(record_start(run, {}, {"step": 20}))
    assert not (run / "git.diff").exists(), "too large a diff is not kept, and an older one would be wrong"
    assert len(set(identities)) == 1
    (run / "run.json").write_text('{"id": "hal')  # a damaged record keeps nobody from training
    assert record_start(run, {}, {"step": 20}) not in identities


def test_the_environment_holds_no_secrets() -> None:
    """Variables by hand: those that matter, without keys and without credentials in addresses."""
    wanted = {"NCCL_DEBUG": "INFO", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "SLURM_JOB_ID": "3", "OMP_NUM_THREADS": "1"}
    proxy = {"TORCH_HUB_MIRROR": "https://me:word@host/x"}
    others = {"WANDB_API_KEY": "k", "SLURM_JWT": "j", "HOME": "/root", "NCCL_SECRET": "s", "TORCH_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "a"}
    found = environment({**wanted, **proxy, **others})
    assert {name: found[name] for name in wanted} == wanted
    assert set(found) == {*wanted, *proxy}
    assert "word" not in found["TORCH_HUB_MIRROR"]


def test_ranks_are_counted_by_host(tmp_path: Path) -> None:
    """Three ranks on two hosts; the kernel's listings of processor and driver, whole and absent."""
    machines = [Machine(host, "cpu", 8, 1 << 30, gpu, ()) for host, gpu in (("a", "H200"), ("a", "H200"), ("b", None))]
    found = nodes(machines)
    assert [(node["host"], node["ranks"], node["gpus"]) for node in found] == [("a", 2, {"H200": 2}), ("b", 1, {})]
    listing = tmp_path / "listing"
    listing.write_text("processor : 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: Fast CPU @ 3 GHz\n")
    assert cpu_model(listing) == "Fast CPU @ 3 GHz"
    listing.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 01:58:19 UTC 2025\n")
    assert driver_version(listing) == "570.124.06"
    assert driver_version(tmp_path / "nowhere") == ""


def test_a_runs_record(pool: Path, tmp_path: Path) -> None:
    """A run, started once more when it was over: the record against what was asked for."""
    for _ in range(2):
        assert main(["pretrain", *options(pool, tmp_path, {"run.duration": "2 steps"})]) == 0
    record = json.loads((tmp_path / "run.json").read_bytes())
    assert [(entry["step"], entry["world_size"], entry["engine"]) for entry in record["starts"]] == [(0, 1, "plain"), (2, 1, "plain")]
    assert record["config"]["run"]["duration"] == "2 steps"
    assert record["hardware"]["nodes"][0]["host"] == os.uname().nodename
    assert {"torch", "timm", "python"} <= record["versions"].keys()
    assert {"source", "working_directory"} == record["git"].keys()
