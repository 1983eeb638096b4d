"""What the tests of the house share: the files of the checkout, its packages, and the settings behind each verb."""

import dataclasses
import importlib
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from bamboo.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[2]
_MADE_FOLDERS = {".git", ".venv", "build", "dist", "runs", "data", "wandb", ".hypothesis"}


@dataclasses.dataclass(frozen=True)
class House:
    """The checkout: its root, every file that git tracks or would track (relative), and the packages of pyproject.toml."""

    root: Path
    files: tuple[Path, ...]
    packages: tuple[str, ...]

    @property
    def rooms(self) -> list[str]:
        """Top-level folders that are packages."""
        return sorted({package.split(".")[1] for package in self.packages})

    def python(self, *, packages_only: bool = False) -> list[Path]:
        """Returns the Python files, relative to the root."""
        return [file for file in self.files if file.suffix == ".py" and (not packages_only or file.parts[0] in self.rooms)]

    def text(self, file: Path) -> str:
        """Returns the text of a file given relative to the root."""
        return (self.root / file).read_text(encoding="utf-8")


def _files() -> tuple[Path, ...]:
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        files = [Path(name) for name in listed if name]
    except (OSError, subprocess.CalledProcessError):  # no git, or an unpacked archive
        inside = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        files = [
            path
            for path in inside
            if not _MADE_FOLDERS & set(path.parts) and not any(part.endswith((".egg-info", "cache", "cache__")) for part in path.parts)
        ]
    return tuple(sorted(file for file in set(files) if (ROOT / file).is_file()))


@pytest.fixture(scope="session")
def house() -> House:
    """The checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return House(ROOT, _files(), tuple(project["tool"]["setuptools"]["packages"]))


@pytest.fixture(scope="session")
def verb_settings() -> dict[str, type]:
    """Command (`shards pack`, `pretrain`) → settings class, from the `SETTINGS` of each verb's module."""
    found: dict[str, type] = {}
    for verb, (module, _) in VERBS.items():
        declared: Mapping[str, type] | None = getattr(importlib.import_module(module), "SETTINGS", None)
        assert declared, f"{module} must hold SETTINGS: dict[str, type], the settings class of each sub-command ('' for a plain verb)"
        found |= {f"{verb} {name}".strip(): cls for name, cls in declared.items()}
    return found
