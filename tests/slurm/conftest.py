"""A cluster for all tests of this folder that submit to a real one."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretrain.launch import ENVIRONMENT
from tests.slurm.cluster import loopback_cluster


@pytest.fixture(scope="session")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Starts slurmctld and two slurmd, yields their slurm.conf, and ends them with whatever a test that failed left."""
    with loopback_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as config, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        yield config
        for job in subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True, check=True).stdout.split():
            subprocess.run(["scancel", "--full", "--signal=KILL", job], check=False)


@pytest.fixture
def cluster(slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points SLURM's commands to the cluster and returns its slurm.conf."""
    for name, value in {**ENVIRONMENT, "SLURM_CONF": str(slurm_conf)}.items():
        monkeypatch.setenv(name, value)
    return slurm_conf
