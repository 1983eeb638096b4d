"""Weights & Biases (wandb): one curve over all starts of a run, with or without a network, which never stops the training.

wandb has a counter of its own (`_step`), drops rows that would lower it, and makes a new folder at each offline start. So the step of
a row is a value of it, by which all curves are drawn; and each start hands over what is missing of the log's earlier rows first: all
of them offline, so that the newest offline folder holds the whole curve; what the server does not have yet online.
"""

import contextlib
import os
import shutil
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ...cli.errors import UserError, missing_extra
from ..log import Row, title
from ..settings.loggers import WandbSettings
from .scalars import scalars, written_before

Mode = Literal["auto", "offline", "online"]

REACH_S = 5.0
"""How long the server may take to be connected to."""
INIT_S = 30
"""How long a run may take to be opened at the server."""
FINISH_S = 20
"""How long the last rows may take to be uploaded: less than SLURM waits between SIGTERM and SIGKILL."""


class Wandb:
    """Writes numbers to a wandb run in the run folder; trouble is said once and ends the writing, nothing else."""

    def __init__(self, folder: Path, mode: Mode, settings: WandbSettings, identity: str, config: Mapping[str, Any], step: int) -> None:
        """Goes on after `step` with the run of that identity.

        Args:
            mode: "auto" takes the network where the server answers, "online" insists on it when a run begins; a run that goes on
                without it is written offline.

        Raises:
            UserError: when wandb is not installed, or a new run asks for "online" and there is no key or the server does not answer.
        """
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "wandb") from None
        self._wandb, self._folder, self._identity = wandb, folder, identity
        self._named: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "name": settings.name or folder.resolve().name,
            "group": settings.group,
            "tags": settings.tags or None,
            "config": dict(config),
        }
        earlier = sorted((folder / "wandb").glob(f"offline-run-*-{identity}"))
        self._run = self._open(mode, is_new=step == 0)
        if self._run is None:
            return
        is_offline = self._run.offline
        self._known: Mapping[str, Any] = {}
        try:
            self._known = {} if is_offline else dict(self._run.summary)
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # noqa: BLE001  # as in write
            self._give_up(error)
        for row in written_before(folder, step):
            self.write(row)
        if is_offline and self._run is not None:
            self._set_aside(earlier)

    def write(self, row: Row) -> None:
        """Logs the row's numbers under title/name, unless the server had rows of its title up to its step when this start began."""
        values, place = scalars(row), f"{title(row)}/step"
        if self._run is None or not values or row["step"] <= self._known.get(place, -1):
            return
        try:
            self._run.log({**values, place: row["step"], "step": row["step"]})
        except Exception as error:  # noqa: BLE001  # whatever happens to wandb's own process: log.jsonl is the record
            self._give_up(error)

    def close(self) -> None:
        """Ends the run; what cannot be uploaded in time stays in its folder, for `wandb sync`."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:  # noqa: BLE001  # as in write
            self._give_up(error)
        self._run = None

    def _open(self, mode: Mode, *, is_new: bool) -> Any:
        if mode != "offline":
            address = self._wandb.setup().settings.base_url
            reason = f"{address} does not answer"
            if answers(address):
                try:
                    return self._init("online")
                except Exception as error:  # noqa: BLE001  # no key, a server in trouble, INIT_S over, wandb's own process gone
                    reason = _first_line(error)
                    with contextlib.suppress(Exception):  # a process that is gone has nothing to close
                        self._wandb.teardown()  # one that lives holds on to the run's identity
            if mode == "online" and is_new:
                raise UserError(f"run.wandb=online: {reason}; use run.wandb=auto or offline")
            _say(f"{reason}; the run is written offline, for `wandb sync {self._folder / 'wandb' / 'latest-run'}`")
        try:
            return self._init("offline")
        except Exception as error:  # noqa: BLE001  # wandb's own process does not start
            _say(f"{_first_line(error)}; no rows go to wandb in this start")
            return None

    def _init(self, mode: Literal["online", "offline"]) -> Any:
        limits: dict[str, Any] = {"init_timeout": INIT_S, "finish_timeout": FINISH_S} if mode == "online" else {}
        # run.json holds the state of the source and the command line, the latter without what is secret in it
        quiet: dict[str, Any] = {"console": "off", "silent": True, "disable_git": True, "x_disable_meta": True}
        with _no_terminal():
            return self._wandb.init(
                id=self._identity,
                resume="allow" if mode == "online" else None,
                mode=mode,
                dir=str(self._folder),
                settings=self._wandb.Settings(**limits, **quiet),
                **self._named,
            )

    def _set_aside(self, earlier: list[Path]) -> None:
        """Moves the offline folders of earlier starts out of `wandb sync`'s way: the newest holds their rows."""
        for folder in earlier:
            with contextlib.suppress(OSError):
                target = folder.parent / "superseded" / folder.name
                target.parent.mkdir(exist_ok=True)
                shutil.move(folder, target)

    def _give_up(self, error: Exception) -> None:
        _say(f"{_first_line(error)}; no more rows go to wandb in this start, the next one makes up for them")
        self._run = None


def answers(address: str, timeout_s: float = REACH_S) -> bool:
    """Whether the address (or the proxy to it that the environment names) takes a connection in time, name look-up included."""
    parts = urllib.parse.urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    connected: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", _port(parts)), timeout=timeout_s):
            connected.append(True)

    attempt = threading.Thread(target=connect, daemon=True)  # a look-up of a name knows no time-out
    attempt.start()
    attempt.join(timeout_s)
    return bool(connected)


@contextlib.contextmanager
def _no_terminal() -> Iterator[None]:
    """Where wandb finds no key it asks for one on a terminal, and waits; without a terminal it says so."""
    terminal = sys.stdin
    with Path(os.devnull).open(encoding="utf-8") as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = terminal


def _port(parts: urllib.parse.SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    sys.stderr.write(f"bamboo: wandb: {text}\n")
