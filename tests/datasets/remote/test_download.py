"""One file over HTTP from servers that cut, stall, lie and change their mind."""

import errno
import hashlib
import http.client
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.remote import download as downloads
from bamboo.datasets.remote import http_transport
from bamboo.datasets.remote.download import Patience, download
from tests.loopback import (
    Answer,
    Behaviour,
    Loopback,
    cut,
    good,
    longer,
    loopback,
    no_ranges,
    stall,
    status,
    unlabelled,
    web_page,
)

BODY = os.urandom(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server() -> Iterator[Loopback]:
    """Serves BODY as `file`."""
    with loopback() as running:
        running.files["file"] = BODY
        yield running


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    return Patience(stall_s=0.3, attempts=4, sleep=waits.append)


def only_whole(folder: Path) -> list[str]:
    """Returns the names in the folder; a finished download leaves nothing else beside it."""
    return sorted(path.name for path in folder.iterdir())


GOOD_ENDS: list[tuple[str, list[Behaviour]]] = [
    ("at once", []),
    ("cut twice", [cut(100_000), cut(100_000)]),
    ("cut before the first byte", [cut(0), cut(0)]),
    ("stalled", [stall(50_000, 0.6)]),
    ("cut, then no ranges", [cut(200_000), no_ranges]),
    ("cut without a label", [unlabelled(cut(200_000)), unlabelled(good)]),
    ("too long once", [longer(1000)]),
    ("busy", [status(503, Retry_After="3"), status(429)]),
]


@pytest.mark.parametrize(("behaviours", "pinned"), [(b, p) for _, b in GOOD_ENDS for p in (True, False)])
def test_the_file_is_whole_in_the_end(
    server: Loopback, tmp_path: Path, patience: Patience, behaviours: list[Behaviour], pinned: bool
) -> None:
    """Bytes and returned hash against those served, and nothing else in the folder, with and without a hash known beforehand."""
    server.script = list(behaviours)
    digest = download(server.url("file"), tmp_path / "file", sha256=SHA256 if pinned else "", patience=patience, show=False)
    assert digest == SHA256
    assert (tmp_path / "file").read_bytes() == BODY
    assert only_whole(tmp_path) == ["file"]


def test_a_cut_download_goes_on_where_it_was(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """Requested ranges: each begins where the last connection ended, also in another call."""
    server.script = [cut(100_000), cut(50_000), *(status(500) for _ in range(4))]
    with pytest.raises(DataError, match=r"HTTP 500 .*\(attempt 4 of 4\); 150,000 bytes are kept"):
        download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert only_whole(tmp_path) == ["file.part", "file.part.json"]
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    ranges = [asked for _, asked, code in server.requests if code < 500]
    assert ranges == ["", "bytes=100000-", "bytes=150000-"]


def test_a_changed_file_is_not_spliced(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """A file that changes between two attempts, of the same length: the result is all of the new one."""
    other = os.urandom(len(BODY))

    def change(answer: object) -> None:
        server.files["file"] = other
        status(503)(answer)  # type: ignore[arg-type]  # the server passes an Answer

    server.script = [cut(100_000), change]
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert (tmp_path / "file").read_bytes() == other


def test_a_server_that_ignores_if_range_is_seen_by_its_label(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """A 206 with another ETag than the first answer's: the download begins anew."""

    def relabelled(answer: object) -> None:
        answer.headers["ETag"] = '"other"'  # type: ignore[attr-defined]  # the server passes an Answer
        answer.send()  # type: ignore[attr-defined]  # the server passes an Answer

    server.script = [cut(100_000), relabelled]
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert [asked for _, asked, _ in server.requests] == ["", "bytes=100000-", ""]
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_damaged_part_is_found_by_the_hash(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """Bytes of the unfinished file altered between two calls: with a known hash the download begins anew and is right."""
    server.script = [cut(100_000), *(status(500) for _ in range(4))]
    with pytest.raises(DataError):
        download(server.url("file"), tmp_path / "file", sha256=SHA256, patience=patience, show=False)
    with (tmp_path / "file.part").open("r+b") as part:
        part.write(b"altered")
    download(server.url("file"), tmp_path / "file", sha256=SHA256, patience=patience, show=False)
    assert (tmp_path / "file").read_bytes() == BODY


def test_killed_between_the_last_byte_and_the_rename(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """A complete unfinished file, left by a failing check: no byte is asked for again."""

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url("file"), tmp_path / "file", patience=patience, show=False, check=die)
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert len(server.requests) == 1
    assert (tmp_path / "file").read_bytes() == BODY


FAILURES: list[tuple[list[Behaviour], str]] = [
    ([web_page("text/html")], "web page"),
    ([web_page("application/octet-stream")], "web page"),
    ([status(404)], "HTTP 404"),
    ([status(403)], "HTTP 403"),
    ([status(503, Retry_After="9999")], r"asks to wait 9999 s"),
    ([longer(1000)] * 9, "attempt 4 of 4"),
    ([longer(-1000)] * 9, "sha256 is"),
    ([stall(0, 0.5)] * 9, r"no byte for 0\.3 s|no answer for 0\.3 s"),
    ([cut(0)] * 9, "cut after 0 of 300,000"),
]


@pytest.mark.parametrize(("behaviours", "message"), FAILURES)
def test_what_cannot_be_had_fails_with_the_reason(
    server: Loopback, tmp_path: Path, patience: Patience, behaviours: list[Behaviour], message: str
) -> None:
    """Each failure names itself, and there is no file under the final name."""
    server.script = list(behaviours)
    with pytest.raises(DataError, match=message):
        download(server.url("file"), tmp_path / "file", sha256=SHA256, patience=patience, show=False)
    assert not (tmp_path / "file").exists()


def test_a_wrong_file_leaves_nothing(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """Another hash, another size, a check that fails: refused, and the folder is empty."""
    with pytest.raises(DataError, match="it should be 00000000; nothing of it was kept"):
        download(server.url("file"), tmp_path / "file", sha256="0" * 8, patience=patience, show=False)
    with pytest.raises(DataError, match="has 300,000 bytes, the registry says 299,999"):
        download(server.url("file"), tmp_path / "file", num_bytes=299_999, patience=patience, show=False)

    def refuse(path: Path) -> None:
        raise DataError(f"{path.name} is no checkpoint")

    with pytest.raises(DataError, match=r"wrong file: file\.part is no checkpoint"):
        download(server.url("file"), tmp_path / "file", patience=patience, show=False, check=refuse)
    assert only_whole(tmp_path) == []


def test_waits_double_and_honour_retry_after(server: Loopback, tmp_path: Path, patience: Patience, waits: list[float]) -> None:
    """Waits between attempts: 1, 2 s doubled with up to a tenth more, or what Retry-After says."""
    server.script = [status(500), status(500), status(503, Retry_After="7")]
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert [round(wait, 3) for wait in waits] == [pytest.approx(wait, rel=0.11) for wait in (1, 2, 7)]


LARGE = os.urandom(3_000_000)  # more than an attempt must gain to count as none that failed
ENDLESS: list[tuple[str, list[Behaviour], str, int]] = [
    ("", [longer(1000)] * 99, r"starting over \(attempt 4 of 4\)", 4),
    ("0" * 64, [cut(2_000_000), good] * 99, "it should be 0000", 4),
    ("0" * 64, [cut(1_200_000), cut(1_200_000), good] * 99, r"cut after .* \(attempt 4 of 4\)", 6),
    ("", [cut(1_500_000), status(416)] * 99, r"starting over \(attempt 4 of 4\)", 6),
]


@pytest.mark.parametrize(("pin", "behaviours", "message", "most"), ENDLESS)
def test_what_is_thrown_away_is_no_progress(
    server: Loopback, tmp_path: Path, patience: Patience, pin: str, behaviours: list[Behaviour], message: str, most: int
) -> None:
    """Servers that give megabytes in each attempt which then are of no use: given up after a few requests."""
    server.files["file"] = LARGE
    server.script = list(behaviours)
    with pytest.raises(DataError, match=message):
        download(server.url("file"), tmp_path / "file", sha256=pin, patience=patience, show=False)
    assert len(server.requests) <= most


def test_progress_is_no_failure(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """Eleven cuts, each after more than a mebibyte that was not there before: none counts, and the file is whole."""
    server.files["file"] = os.urandom(13_200_000)
    server.script = [cut(1_200_000)] * 11
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert (tmp_path / "file").read_bytes() == server.files["file"]


def unsaid(answer: Answer) -> None:
    """Sends half of the file and nothing of its length."""
    del answer.headers["Content-Length"]
    answer.headers["Connection"] = "close"
    answer.send(answer.body[: len(answer.body) // 2])
    answer.handler.close_connection = True


def chunked(count: int, *, ended: bool) -> Behaviour:
    """Sends `count` bytes in a chunk, and the mark of the end or not."""

    def behave(answer: Answer) -> None:
        del answer.headers["Content-Length"]
        answer.headers["Transfer-Encoding"] = "chunked"
        answer.send(b"%x\r\n%b\r\n" % (count, answer.body[:count]) + (b"0\r\n\r\n" if ended else b""))
        answer.handler.close_connection = True

    return behave


def test_a_length_that_nobody_says(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """No Content-Length: refused where no hash or size is known either; taken where one is, and in chunks, which have an end."""
    server.script = [unsaid]
    with pytest.raises(DataError, match="does not say how long the file is"):
        download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert only_whole(tmp_path) == []
    server.script = [unsaid]
    download(server.url("file"), tmp_path / "known", num_bytes=len(BODY), patience=patience, show=False)
    assert (tmp_path / "known").read_bytes() == BODY
    server.script = [chunked(100_000, ended=False), no_ranges]
    download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert (tmp_path / "file").read_bytes() == BODY
    server.script = [chunked(len(BODY), ended=True)]
    download(server.url("file"), tmp_path / "second", patience=patience, show=False)
    assert (tmp_path / "second").read_bytes() == BODY


def test_a_rest_of_unsaid_length_is_measured_by_the_first_answer(server: Loopback, tmp_path: Path, patience: Patience) -> None:
    """A server that answers a range with `/*` and cuts that too: the size it said at first is what counts."""

    def starred(answer: Answer) -> None:
        answer.headers["Content-Range"] = f"bytes {answer.start}-{len(answer.body) - 1}/*"
        answer.send(answer.body[answer.start : answer.start + 50_000])
        answer.handler.close_connection = True

    server.script = [cut(100_000), starred]
    assert download(server.url("file"), tmp_path / "file", patience=patience, show=False) == SHA256
    assert [asked for _, asked, _ in server.requests] == ["", "bytes=100000-", "bytes=150000-"]


BROKEN = [ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]"), OSError(errno.EHOSTUNREACH, "No route to host")]


@pytest.mark.parametrize("trouble", BROKEN, ids=["tls", "route"])
@pytest.mark.parametrize("always", [False, True])
def test_what_befalls_a_connection_is_tried_again(
    server: Loopback, tmp_path: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch, trouble: OSError, always: bool
) -> None:
    """Errors of TLS and of the network in the middle of a body: once, the file is whole; always, a DataError that names them."""
    real = http.client.HTTPResponse.read1
    calls: list[int] = []

    def read1(response: http.client.HTTPResponse, count: int = -1) -> bytes:
        calls.append(count)
        if len(calls) == 2 or always:
            raise trouble
        return real(response, count)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", read1)
    if always:
        with pytest.raises(DataError, match=rf"the connection broke \({type(trouble).__name__}: .*attempt 4 of 4"):
            download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    else:
        assert download(server.url("file"), tmp_path / "file", patience=patience, show=False) == SHA256


def test_nobody_listens(tmp_path: Path, patience: Patience) -> None:
    """A closed port: tried as often as said, then the reason."""
    with loopback() as gone:
        pass
    with pytest.raises(DataError, match=r"cannot be reached: .*refused.*attempt 4 of 4"):
        download(gone.url("file"), tmp_path / "file", patience=patience, show=False)


def test_too_little_room(server: Loopback, tmp_path: Path, patience: Patience, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with less free than the server announces: refused before the first byte is written."""
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="300,000 bytes are to be written, 1,000 are free"):
        download(server.url("file"), tmp_path / "file", patience=patience, show=False)
    assert only_whole(tmp_path) == []


def test_plain_http_after_https_is_refused() -> None:
    """A redirect from https to http, given to the handler that urllib would call."""
    redirects = http_transport.Redirects()
    request = http_transport.urllib.request.Request("https://example.org/a")
    with pytest.raises(DataError, match="not encrypted"):
        redirects.redirect_request(request, None, 302, "Found", {}, "http://example.org/a")
    followed = redirects.redirect_request(request, None, 302, "Found", {}, "https://example.org/b")
    assert followed is not None
    assert followed.full_url == "https://example.org/b"


SIGNED = "?X-Amz-Credential=AKIDEXAMPLE&X-Amz-Signature=5ec2e7"


@pytest.mark.parametrize("behaviours", [b for b, _ in FAILURES], ids=[message for _, message in FAILURES])
def test_a_signature_is_sent_and_never_shown(server: Loopback, tmp_path: Path, patience: Patience, behaviours: list[Behaviour]) -> None:
    """A pre-signed address under each failure: the query reaches the server whole, and neither message nor note holds any of it."""
    server.script = list(behaviours)
    with pytest.raises(DataError) as caught:
        download(server.url("file") + SIGNED, tmp_path / "file", sha256=SHA256, patience=patience, show=False)
    assert server.requests[0][0] == f"/file{SIGNED}"
    assert server.url("file") + "?…" in str(caught.value)
    notes = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert not [secret for secret in ("AKIDEXAMPLE", "5ec2e7", "X-Amz") if secret in str(caught.value) + notes]


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/file?sig=5ec 2e7", "http://127.0.0.1:x5ec2e7/file"])
def test_an_address_that_is_none_is_not_repeated(tmp_path: Path, patience: Patience, address: str) -> None:
    """A space in a signature, letters for a port: the user's error, without what may be secret."""
    with pytest.raises(UserError) as caught:
        download(address, tmp_path / "file", patience=patience, show=False)
    assert "5ec" not in str(caught.value)
