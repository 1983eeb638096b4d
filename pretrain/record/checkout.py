"""The state of a git checkout, for the record of a run."""

import dataclasses
import hashlib
import os
import subprocess
from pathlib import Path

MOST_FILES = 200
MOST_DIFF_BYTES = 4 << 20

# A look at a checkout must not run what its configuration names, nor write into it.
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "diff.external=", "-c", "core.quotepath=off")
_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_TIMEOUT_S = 20.0


@dataclasses.dataclass(frozen=True)
class Checkout:
    """Where a checkout stands, and what has been changed in it."""

    folder: Path
    commit: str
    branch: str
    """Empty: a detached head."""
    changed: tuple[str, ...]
    """`git status`'s lines: two letters, a space, a path; untracked files too."""
    diff: bytes
    """Changes of tracked files against the commit."""

    def facts(self) -> dict[str, object]:
        """Returns what `run.json` says of it; of very many changed files the first."""
        return {
            "commit": self.commit,
            "branch": self.branch or "(detached)",
            "changed": list(self.changed[:MOST_FILES]),
            "num_changed": len(self.changed),
            "diff_sha256": hashlib.sha256(self.diff).hexdigest() if self.diff else None,
            "diff_bytes": len(self.diff),
        }


def read_checkout(folder: Path) -> Checkout | str:
    """Returns the checkout that `folder` lies in, or why there is none to speak of."""
    try:
        top = _git(folder, "rev-parse", "--show-toplevel").decode().strip()
        commit = _git(folder, "rev-parse", "HEAD").decode().strip()
        status = _git(folder, "status", "--porcelain", "-z", "--no-renames", "--ignore-submodules=none")
        diff = _git(folder, "diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
        branch = _git(folder, "branch", "--show-current").decode().strip()
    except FileNotFoundError:
        return "git is not installed"
    except subprocess.TimeoutExpired:
        return f"git took more than {_TIMEOUT_S:.0f} s"
    except subprocess.CalledProcessError as error:
        return _reason(error)
    changed = tuple(line.decode(errors="replace") for line in status.split(b"\0") if line)
    return Checkout(Path(top), commit, branch, changed, diff)


def source_checkout() -> Checkout | str:
    """Returns the checkout that this code runs from, or why there is none: it is installed."""
    root = Path(__file__).resolve().parents[2]
    found = read_checkout(root)
    if isinstance(found, Checkout) and found.folder.resolve() != root:
        return "not a checkout of its own"  # e.g. a virtual environment inside somebody's repository
    return found


def _git(folder: Path, *words: str) -> bytes:
    command = [*_GIT, "-c", f"safe.directory={folder.resolve()}", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S, env={**os.environ, **_ENVIRONMENT})
    return done.stdout


def _reason(error: subprocess.CalledProcessError) -> str:
    said = error.stderr.decode(errors="replace").strip().splitlines()
    return "not a git checkout" if said and "not a git repository" in said[0] else f"git: {said[0] if said else error.returncode}"
