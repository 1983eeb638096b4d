"""Two shard folders that arrive, and the verb."""

from pathlib import Path

import pytest

from bamboo.cli.main import main
from tests.conftest import pack, write_pool
from tests.datasets.growth.grown import vectors
from tests.datasets.growth.steps import Grow, put_features


@pytest.fixture(scope="module")
def arrivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shard folders `first` (60 images) and `second` (45), with features of both beside them: `first-image`, …, of width 16."""
    folder = tmp_path_factory.mktemp("arrivals")
    for number, (name, count) in enumerate((("first", 60), ("second", 45))):
        write_pool(folder / f"{name}-images", count, number)
        pack(folder / f"{name}-images", folder / name)
        features = vectors(count, 16, seed=number)
        features[-5:] = features[:5]
        put_features(folder / f"{name}-image", features, folder / name)
        put_features(folder / f"{name}-text", features + 0.3 * vectors(count, 16, seed=9), folder / name)
    return folder


@pytest.fixture
def grow(capsys: pytest.CaptureFixture[str]) -> Grow:
    """Runs `bamboo grow …` in this process and returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["grow", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
