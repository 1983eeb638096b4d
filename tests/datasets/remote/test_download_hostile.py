"""Servers that send more than there should be, say what cannot be, and lead elsewhere; and notes that somebody damaged."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.remote import download as downloads
from bamboo.datasets.remote.cache import Remote, ShardCache
from bamboo.datasets.remote.download import Patience, download, fetch_bytes
from bamboo.datasets.remote.http_transport import is_retried
from tests.loopback import Answer, Behaviour, Loopback, cut, status

BODY = os.urandom(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def served(server: Loopback) -> Loopback:
    """Serves BODY as `file`."""
    server.files["file"] = BODY
    return server


def endless(sent: list[int]) -> Behaviour:
    """Sends chunks of 256 KiB, up to 64 MiB, without a length and without an end, and notes how many bytes went."""

    def behave(answer: Answer) -> None:
        del answer.headers["Content-Length"]
        answer.headers["Transfer-Encoding"] = "chunked"
        answer.send(b"")
        answer.handler.close_connection = True
        for _ in range(256):
            answer.handler.wfile.write(b"40000\r\n" + bytes(1 << 18) + b"\r\n")
            sent.append(1 << 18)

    return behave


def unsaid(count: int) -> Behaviour:
    """Sends `count` bytes of what was asked for, and nothing of the length."""

    def behave(answer: Answer) -> None:
        del answer.headers["Content-Length"]
        answer.headers["Connection"] = "close"
        answer.send(answer.body[answer.start : answer.start + count])
        answer.handler.close_connection = True

    return behave


def headed(code: int, **headers: str) -> Behaviour:
    """Answers one byte with these headers alone."""

    def behave(answer: Answer) -> None:
        answer.status, answer.headers = code, {name.replace("_", "-"): value for name, value in headers.items()}
        answer.send(b"x")
        answer.handler.close_connection = True

    return behave


@pytest.mark.parametrize("known", [{"num_bytes": 300_000}, {"most_bytes": 300_000}])
def test_a_body_without_end_is_stopped(served: Loopback, tmp_path: Path, patience: Patience, known: dict[str, int]) -> None:
    """More than the size that is known, or the most that it may be: one request, a few megabytes in the buffers, and nothing is kept."""
    sent: list[int] = []
    served.lasting = {"file": endless(sent)}
    with pytest.raises(DataError, match="sends more than the 300,000 bytes that there should be; nothing of it was kept"):
        download(served.url("file"), tmp_path / "file", sha256=SHA256, patience=patience, show=False, **known)
    assert list(tmp_path.iterdir()) == []
    assert len(served.requests) == 1
    assert sum(sent) < 32 << 20


def test_a_size_beyond_the_most_is_refused(served: Loopback, tmp_path: Path, patience: Patience) -> None:
    """A Content-Length above `most_bytes`: refused before the first byte; one that equals it is taken."""
    with pytest.raises(DataError, match="has 300,000 bytes or more; 299,999 are the most"):
        download(served.url("file"), tmp_path / "file", sha256=SHA256, most_bytes=299_999, patience=patience, show=False)
    assert list(tmp_path.iterdir()) == []
    assert download(served.url("file"), tmp_path / "file", most_bytes=300_000, patience=patience, show=False) == SHA256


def test_what_is_read_into_memory_is_bounded(served: Loopback, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest without end, and one whose length is too great: refused at the bound; one of just that size is read."""
    assert downloads._MOST_BYTES == 10**9
    monkeypatch.setattr(downloads, "_MOST_BYTES", 300_000)
    assert fetch_bytes(served.url("file"), patience) == BODY
    served.files["longer"] = BODY + b"x"
    with pytest.raises(DataError, match="has 300,001 bytes or more; 300,000 are the most"):
        fetch_bytes(served.url("longer"), patience)
    sent: list[int] = []
    served.lasting = {"file": endless(sent)}
    with pytest.raises(DataError, match="300,000 are the most"):
        fetch_bytes(served.url("file"), patience)
    assert sum(sent) < 32 << 20


def test_the_index_is_bounded_and_a_lie_costs_the_cache_nothing(served: Loopback, cache: ShardCache) -> None:
    """An index of more bytes than its samples can need: refused, and the shards that were there stay."""
    file = Remote(served.url("file"), SHA256, len(BODY))
    cache.open(file)
    served.files["index"] = bytes(1_000_000)
    with pytest.raises(DataError, match="1,000,000 bytes or more; 500,000 are the most"):
        cache.index(served.url("index"), "0" * 64, 500_000)
    assert cache.touch(file)


def test_a_cut_without_a_length_is_gone_on_with(served: Loopback, tmp_path: Path, patience: Patience) -> None:
    """An answer without a length ends early, and the size is known: the rest is asked for. Always: given up, and the bytes are kept."""
    served.script = [unsaid(200_000)]
    known = {"sha256": SHA256, "patience": patience, "show": False}
    assert download(served.url("file"), tmp_path / "file", num_bytes=len(BODY), **known) == SHA256  # type: ignore[arg-type]  # mixed values
    assert served.asked_for("file") == ["", "bytes=200000-"]
    served.script = [unsaid(1000)] * 4
    with pytest.raises(DataError, match=r"after 4,000 of 300,000 bytes \(attempt 4 of 4\); 4,000 bytes are kept"):
        download(served.url("file"), tmp_path / "second", num_bytes=len(BODY), **known)  # type: ignore[arg-type]  # mixed values


LIES: list[tuple[Behaviour, str]] = [
    (headed(200, Content_Length="9" * 5000), "ended after 1 bytes"),
    (headed(206, Content_Range=f"bytes {'9' * 5000}-/5", Content_Length="1"), "a range and does not say which"),
    (headed(206, Content_Range=f"bytes 0-/{'9' * 5000}", Content_Length="1"), "ended after 1 bytes"),
    (headed(302, Location="ftp://127.0.0.1:1/x.tar", Content_Length="0"), "redirects to ftp://127.0.0.1:1/x.tar, which is neither http"),
    (status(503, Retry_After="Mon, 01 Jan 0001 00:00:00 -2359"), r"HTTP 503 .*attempt 4 of 4"),
    (status(503, Retry_After="9" * 5000), "asks to wait"),
]


@pytest.mark.parametrize(("behaviour", "message"), LIES)
def test_headers_that_cannot_be(served: Loopback, tmp_path: Path, patience: Patience, behaviour: Behaviour, message: str) -> None:
    """Numbers of five thousand digits, another scheme, a date before all dates: the usual error, and no file."""
    served.lasting = {"file": behaviour}
    with pytest.raises(DataError, match=message):
        download(served.url("file"), tmp_path / "file", sha256=SHA256, num_bytes=len(BODY), patience=patience, show=False)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504, 507, 508, 520, 522, 529, 598])
def test_what_may_pass_is_tried_again(served: Loopback, tmp_path: Path, patience: Patience, code: int) -> None:
    """Each status that another attempt may not meet, the ones of proxies among them: the file is whole after a second request."""
    served.script = [status(code)]
    assert download(served.url("file"), tmp_path / "file", patience=patience, show=False) == SHA256
    assert len(served.requests) == 2


def test_what_does_not_pass_is_not_tried_again() -> None:
    """Status codes against the two lists of RFC 9110 and RFC 6585."""
    assert [code for code in (*range(400, 432), *range(500, 512)) if is_retried(code)] == [
        408, 425, 429, 500, 502, 503, 504, 506, 507, 508, 509, 510, 511,
    ]  # fmt: skip


NOTES = [
    {"validator": None},
    {"total": "300000"},
    {"url": 5},
    {"validator": ["a"], "total": 1.5},
]


@pytest.mark.parametrize("damage", [*NOTES, None])
def test_a_damaged_note_is_none(served: Loopback, tmp_path: Path, patience: Patience, damage: dict[str, object] | None) -> None:
    """The note of an unfinished file with values of other types, or without them: the download begins anew, and is right."""
    served.script = [cut(100_000), *(status(500) for _ in range(4))]
    with pytest.raises(DataError):
        download(served.url("file"), tmp_path / "file", patience=patience, show=False)
    note = tmp_path / "file.part.json"
    tree = json.loads(note.read_text())
    note.write_text(json.dumps({"url": tree["url"]} if damage is None else {**tree, **damage}))
    assert download(served.url("file"), tmp_path / "file", patience=patience, show=False) == SHA256
    assert served.asked_for("file")[-1] == ""
