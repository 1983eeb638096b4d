"""The stages of a job that is made of commands: each is shown, timed, and done once; what was done stands in a diary on disk."""

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli.errors import BambooError, DataError, UserError
from ..datasets.atomic import write_json

FORMAT, VERSION = "bamboo-demo", 1

_STOP_S = 30  # how long a child may take to end its own children


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: what it did, how long that took, and the commands in it as a user types them."""

    title: str
    seconds: float
    commands: tuple[str, ...]


class Diary:
    """The finished stages of the job in a folder, kept in one JSON file of it.

    Args:
        path: the file; made by the first finished stage.
        identity: what the results depend on.
        num_stages: how many there will be, to say which one runs.

    Raises:
        UserError: when the folder holds a job of another identity, or things of others.
        DataError: when the file is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], num_stages: int) -> None:
        self._path, self._identity, self._num_stages = path, dict(identity), num_stages
        self.stages: dict[str, Stage] = {}
        self._commands: list[str] = []
        self._number = 0
        folder = path.parent
        if path.exists():
            self.stages = _read(path, self._identity)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"out={folder}: holds something else; give an empty or new folder")
        else:
            self._write()

    def stage(self, name: str, title: str, proof: Path, work: Callable[["Diary"], None]) -> None:
        """Does `work`, unless an earlier run finished it and `proof`, the last file that it writes, is still there."""
        self._number += 1
        head = f"[{self._number}/{self._num_stages}] {title}"
        if name in self.stages and proof.exists():
            _say(f"{head}: done before, in {self.stages[name].seconds:.1f} s")
            return
        _say(head)
        started, self._commands = time.monotonic(), []
        work(self)
        self.stages[name] = Stage(title, round(time.monotonic() - started, 1), tuple(self._commands))
        self._write()
        _say(f"      {self.stages[name].seconds:.1f} s")

    def call(self, words: Sequence[str]) -> None:
        """Runs `bamboo VERB …` in this process, which has torch imported already.

        Raises:
            BambooError: when it ends with another exit code than 0.
        """
        from ..cli.main import run  # here, because the command line imports the verbs

        self._show(["bamboo", *words])
        _require(run(words[0], words[1:]), f"bamboo {words[0]}")

    def launch(self, num_ranks: int, module: str, words: Sequence[str]) -> None:
        """Runs a module under torchrun on this machine's CPUs, one thread per rank.

        Raises:
            BambooError: when it ends with another exit code than 0.
        """
        launcher = ["--standalone", "--nproc-per-node", str(num_ranks), "-m", module]
        self._show(["OMP_NUM_THREADS=1", "torchrun", *launcher, *words])
        # The second variable: restarted or short-lived jobs on one host must not share a store (pytorch issues 135712, 167288).
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *launcher, *words]
        with subprocess.Popen(command, env=environment) as child:
            try:
                code = child.wait()
            except BaseException:
                child.terminate()  # torchrun ends its ranks; killed, it would leave them behind
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_STOP_S)
                child.kill()
                raise
        _require(code, f"torchrun -m {module}")

    def _show(self, words: Sequence[str]) -> None:
        line = shlex.join(words)
        self._commands.append(line)
        _say(f"      $ {line}")

    def _write(self) -> None:
        stages = {name: dataclasses.asdict(stage) for name, stage in self.stages.items()}
        write_json(self._path, {"format": FORMAT, "version": VERSION, "identity": self._identity, "stages": stages})


def _read(path: Path, identity: Mapping[str, Any]) -> dict[str, Stage]:
    try:
        tree = json.loads(path.read_bytes())
        if (tree["format"], tree["version"]) != (FORMAT, VERSION):
            raise DataError(f"{path}: format {tree['format']} version {tree['version']}; this Bamboo reads {FORMAT} version {VERSION}")
        stages = {name: Stage(kept["title"], float(kept["seconds"]), tuple(kept["commands"])) for name, kept in tree["stages"].items()}
        before = dict(tree["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); remove {path.parent} and run again") from None
    differing = [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in identity.items() if before.get(name) != value]
    if differing:
        raise UserError(f"out={path.parent}: holds a run with other settings ({'; '.join(differing)}); give another out, or remove it")
    return stages


def _require(code: int, what: str) -> None:
    if code != 0:
        raise BambooError(f"{what} ended with exit code {code}; what it said stands above; the same command goes on from here")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
