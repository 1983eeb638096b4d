"""wandb: one curve over all starts of a run, and a server in trouble that stops nothing."""

import http.server
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.pretrain.log import JsonLines
from bamboo.pretrain.loggers import wandb as ours
from bamboo.pretrain.loggers.wandb import Wandb, answers
from bamboo.pretrain.settings.loggers import WandbSettings
from tests.pretrain.launch import finish, options, wait_for_step
from tests.pretrain.launch import start as begin

pytest.importorskip("wandb", reason="extra wandb not installed")

_BLOCK = 32768


@pytest.fixture(autouse=True)
def _nobodys_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no server and no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that takes connections and answers every request with 500; wandb's address, beside a key."""

    class Broken(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    import wandb

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{serving.server_port}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        wandb.teardown()  # the settings of the session are read once
        yield address
        serving.shutdown()
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """Yields the records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # `finish` returns before the last rows are in the file
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, last part
            yield Record.FromString(whole)
            whole = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of the offline folders that `wandb sync` would find."""
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    kept = [record.history for file in files for record in records(file) if record.WhichOneof("record_type") == "history"]
    return [{(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row.item} for row in kept]


def row(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss, "stream": "ab"}


def start(folder: Path, rows: list[dict[str, Any]], step: int, *, finish: bool = True) -> None:
    """Writes rows as a run does that stands at `step` and is killed or not; what wandb had not written yet is lost."""
    log, logger = JsonLines(folder), Wandb(folder, "offline", WandbSettings(), "c0ffee", {"a": 1}, step)
    log.write({"kind": "start", "step": step})
    for entry in rows:
        log.write(entry)
        if finish:
            logger.write(entry)
    logger.close()
    log.close()


def test_one_curve_over_all_starts(tmp_path: Path) -> None:
    """A run that stopped after step 12 and went on from 10, twice: wandb's own file has every step once, in order, on our own axis."""
    start(tmp_path, [row(step, step) for step in range(1, 13)], 0, finish=False)  # rows that never reached wandb
    time.sleep(1.1)  # wandb names folders by the second
    start(tmp_path, [row(11, 111), row(12, 112), {"kind": "eval", "step": 12, "top1": 0.5}], 10)
    time.sleep(1.1)
    start(tmp_path, [row(13, 113)], 12)
    found = history(tmp_path)
    expected = [*((step, float(step)) for step in range(1, 11)), (11, 111.0), (12, 112.0), (13, 113.0)]
    assert [(entry["step"], entry["train/loss"]) for entry in found if "train/loss" in entry] == expected
    assert [(entry["step"], entry["eval/top1"]) for entry in found if "eval/top1" in entry] == [(12, 0.5)]
    assert [entry["_step"] for entry in found] == list(range(14))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert (tmp_path / "wandb" / "latest-run").resolve() == folder
    assert len(list((tmp_path / "wandb" / "superseded").iterdir())) == 2
    metrics = [record.metric for record in records(next(folder.glob("*.wandb"))) if record.WhichOneof("record_type") == "metric"]
    assert ("*", "step") in [(metric.glob_name, metric.step_metric) for metric in metrics]


class ServersRun:
    """A run as wandb's server has it: the newest value of every name, and what is logged to it."""

    offline = False

    def __init__(self, summary: dict[str, float]) -> None:
        self.summary, self.logged = summary, list[dict[str, float]]()

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def finish(self) -> None: ...

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)


def test_the_server_gets_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run stopped after step 12, of which the server has training to 8 and no evaluation, goes on from 10: each row reaches it once."""
    log = JsonLines(tmp_path)
    for step in range(1, 13):
        log.write(row(step, step))
    log.write({"kind": "eval", "step": 5, "top1": 0.5})
    online = ServersRun({"train/step": 8, "train/loss": 8.0})
    monkeypatch.setattr(Wandb, "_open", lambda *_, **__: online)
    logger = Wandb(tmp_path, "online", WandbSettings(), "c0ffee", {}, 10)
    for step in (11, 12):
        logger.write(row(step, 100 + step))
    logger.close()
    sent = [(entry["step"], entry.get("train/loss")) for entry in online.logged]
    assert sent == [(5, None), (9, 9), (10, 10), (11, 111), (12, 112)]

    beyond = ServersRun({"train/step": 12, "eval/step": 5})  # the rows of the killed start had reached the server
    monkeypatch.setattr(Wandb, "_open", lambda *_, **__: beyond)
    logger = Wandb(tmp_path, "online", WandbSettings(), "c0ffee", {}, 10)
    for step in (11, 12, 13):
        logger.write(row(step, 100 + step))
    assert [entry["step"] for entry in beyond.logged] == [13]


def test_a_process_that_dies_as_the_run_is_opened_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """wandb's process gone between `init` and the first row: said once, and rows are passed over."""

    class Gone(ServersRun):
        def define_metric(self, *_: Any, **__: Any) -> None:
            raise BrokenPipeError("the service process is gone")

    gone = Gone({})
    monkeypatch.setattr(Wandb, "_open", lambda *_, **__: gone)
    JsonLines(tmp_path).write(row(1, 0.5))
    logger = Wandb(tmp_path, "auto", WandbSettings(), "c0ffee", {}, 1)
    logger.write(row(2, 0.5))
    logger.close()
    assert gone.logged == []
    assert capsys.readouterr().err.count("the service process is gone; no more rows go to wandb") == 1


def test_a_broken_server_means_offline_in_bounded_time(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that answers 500: "auto" writes offline; "online" refuses a new run, and writes offline what goes on."""
    monkeypatch.setattr(ours, "INIT_S", 2)
    for mode, step in (("auto", 0), ("online", 7)):
        before, folder = time.monotonic(), tmp_path / mode
        folder.mkdir()
        logger = Wandb(folder, mode, WandbSettings(), "c0ffee", {}, step)
        logger.write(row(step + 1, 0.5))
        logger.close()
        assert time.monotonic() - before < 20
        assert [entry["train/loss"] for entry in history(folder)] == [0.5]
        assert "written offline" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"run\.wandb=online: .*use run\.wandb=auto"):
        Wandb(tmp_path, "online", WandbSettings(), "c0ffee", {}, 0)


def test_no_key_is_not_asked_for(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Without a key, on a terminal: no prompt, offline."""
    monkeypatch.delenv("WANDB_API_KEY")
    controller, terminal = os.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        Wandb(tmp_path, "auto", WandbSettings(), "c0ffee", {}, 0).close()
        assert sys.stdin is stdin
    os.close(controller)
    assert "API key" in capfd.readouterr().err
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_an_address_is_asked_in_bounded_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that listens, a closed port, one that takes no connection, and a name look-up that hangs."""
    assert answers(server)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert not answers(f"http://127.0.0.1:{closed.getsockname()[1]}", 1)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: threading.Event().wait())
    before = time.monotonic()
    assert not answers("https://example.invalid", 0.2)
    assert time.monotonic() - before < 2


@pytest.mark.slow
def test_wandbs_own_death_stops_nothing(pool: Path, tmp_path: Path) -> None:
    """wandb's process of a real run killed with SIGKILL: the run ends with 0, and wandb has every step once the next start is over."""
    settings = {"run.wandb": "offline", "run.duration": "40 steps"}
    process = begin(0, options(pool, tmp_path, settings))
    wait_for_step(process, tmp_path, 2)
    listings = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(child) for listing in listings for child in listing.read_text().split()]
    cores = [child for child in children if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert cores
    for core in cores:
        os.kill(core, signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert output.count("no more rows go to wandb") == 1
    time.sleep(1.1)
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == 0
    assert [entry["step"] for entry in history(tmp_path) if "train/loss" in entry] == list(range(1, 41))


def test_a_run_keeps_its_identity_and_its_names(pool: Path, tmp_path: Path) -> None:
    """Two runs in folders of one name, and one of them resumed: identities in run.json against those in wandb's files."""
    for parent in ("a", "b"):
        settings = {"run.wandb": "offline", "wandb.project": "p", "wandb.tags": "[x, y]", "wandb.group": "g", "run.duration": "3 steps"}
        assert main(["pretrain", *options(pool, tmp_path / parent / "run", settings)]) == 0
    time.sleep(1.1)
    assert main(["pretrain", *options(pool, tmp_path / "b" / "run", settings)]) == 0
    seen = []
    for parent in ("a", "b"):
        folder = tmp_path / parent / "run"
        (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
        run = next(record.run for record in records(file) if record.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name, run.run_group, list(run.tags)) == ("p", "run", "g", ["x", "y"])
        assert run.run_id == json.loads((folder / "run.json").read_bytes())["id"]
        seen.append(run.run_id)
    assert len(set(seen)) == 2
    assert [entry["step"] for entry in history(tmp_path / "b" / "run") if "train/loss" in entry] == [1, 2, 3]


def test_names_without_a_run_are_refused(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A section that nobody reads: exit code 2, setting and remedy named."""
    assert main(["pretrain", *options(pool, tmp_path / "run", {"wandb.project": "p"})]) == 2
    assert "wandb.project=p: run.wandb=disabled does not use it" in capsys.readouterr().err
