"""A file server on the loopback that misbehaves as it is told, request by request."""

import dataclasses
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Behaviour = Callable[["Answer"], None]


@dataclasses.dataclass
class Answer:
    """One request under way, and what a correct server would say to it."""

    handler: http.server.BaseHTTPRequestHandler
    body: bytes
    start: int
    status: int
    headers: dict[str, str]

    def send(self, body: bytes | None = None) -> None:
        """Sends the headers as they now stand, and the body."""
        self.handler.send_response(self.status)
        for name, value in self.headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(self.body[self.start :] if body is None else body)


class Loopback:
    """Serves `files` (path → bytes) with ETag, Range and If-Range; `script` holds the behaviour of the next requests."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.script: list[Behaviour] = []
        self.lasting: dict[str, Behaviour] = {}
        """Path → the behaviour of every request for it."""
        self.requests: list[tuple[str, str, int]] = []
        """(path, Range header, status) of each GET, in the order in which they came."""
        self._noting = threading.Lock()

    @contextmanager
    def noted(self, path: str, answer: Answer) -> Iterator[None]:
        """Notes a request when it comes, and its status when it is answered, unless a test has cleared the list meanwhile.

        An answer that stalls ends in a later test: it must not appear in that one's list.
        """
        asked = answer.handler.headers.get("Range", "")
        entry = (path, asked, answer.status)
        with self._noting:
            place = len(self.requests)
            self.requests.append(entry)
        try:
            yield
        finally:
            with self._noting:
                if place < len(self.requests) and self.requests[place] is entry:
                    self.requests[place] = (path, asked, answer.status)

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def serve(self, folder: Path, name: str) -> str:
        """Serves the files of a folder below `name`, and returns its address."""
        self.files.update({f"{name}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()})
        return self.url(name)

    def asked_for(self, ending: str) -> list[str]:
        """Returns the Range header of each GET of a path that ends so."""
        return [asked for path, asked, _ in self.requests if path.partition("?")[0].endswith(ending)]

    def behaviour(self, path: str) -> Behaviour:
        """Returns how to answer the next request."""
        try:
            return self.lasting.get(path) or self.script.pop(0)
        except IndexError:
            return good


def good(answer: Answer) -> None:
    answer.send()


def cut(count: int) -> Behaviour:
    """Closes the connection after `count` bytes of the body."""

    def behave(answer: Answer) -> None:
        answer.send(answer.body[answer.start : answer.start + count])
        answer.handler.close_connection = True

    return behave


def stall(count: int, seconds: float) -> Behaviour:
    """Sends `count` bytes and then nothing for a while."""

    def behave(answer: Answer) -> None:
        answer.send(answer.body[answer.start : answer.start + count])
        answer.handler.wfile.flush()
        time.sleep(seconds)
        answer.handler.close_connection = True

    return behave


def longer(extra: int) -> Behaviour:
    """Announces `extra` bytes more than there are (fewer, when negative)."""

    def behave(answer: Answer) -> None:
        size = len(answer.body) + extra
        answer.headers["Content-Length"] = str(size - answer.start)
        if answer.status == 206:
            answer.headers["Content-Range"] = f"bytes {answer.start}-{size - 1}/{size}"
        answer.send(answer.body[answer.start : size])
        answer.handler.close_connection = True

    return behave


def no_ranges(answer: Answer) -> None:
    """Answers with the whole file, whatever was asked for."""
    answer.status, answer.start = 200, 0
    answer.headers.pop("Content-Range", None)
    answer.headers["Content-Length"] = str(len(answer.body))
    answer.send()


def unlabelled(behaviour: Behaviour) -> Behaviour:
    """Leaves out ETag and Last-Modified."""

    def behave(answer: Answer) -> None:
        answer.headers.pop("ETag")
        behaviour(answer)

    return behave


def status(code: int, **headers: str) -> Behaviour:
    """Answers with an error code."""

    def behave(answer: Answer) -> None:
        answer.status, answer.headers = code, {"Content-Length": "0", **{key.replace("_", "-"): value for key, value in headers.items()}}
        answer.send(b"")

    return behave


def web_page(kind: str) -> Behaviour:
    """Answers with a quota notice, under the content type `kind`."""

    def behave(answer: Answer) -> None:
        page = b"<!DOCTYPE html><html><body>Too many users have viewed this file</body></html>"
        answer.status, answer.headers = 200, {"Content-Type": kind, "Content-Length": str(len(page))}
        answer.send(page)

    return behave


def slowly(chunk: int, pause_s: float) -> Behaviour:
    """Sends `chunk` bytes at a time."""

    def behave(answer: Answer) -> None:
        answer.send(b"")
        for start in range(answer.start, len(answer.body), chunk):
            answer.handler.wfile.write(answer.body[start : start + chunk])
            time.sleep(pause_s)

    return behave


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Runs the server in a thread; an unscripted request is answered correctly."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].lstrip("/")
            behaviour, body = here.behaviour(name), here.files.get(name)
            if body is None:
                answer = Answer(self, b"", 0, 404, {"Content-Length": "0"})
                behaviour = good
            else:
                answer = self.right_answer(body)
            with here.noted(self.path, answer):
                try:
                    behaviour(answer)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        def do_HEAD(self) -> None:  # as the Hub answers: the file's label and the commit it is of
            body = here.files.get(self.path.lstrip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.end_headers()

        def right_answer(self, body: bytes) -> Answer:
            etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            asked = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
            start = int(asked) if asked and self.headers.get("If-Range", etag) == etag else 0
            headers = {"ETag": etag, "Content-Type": "application/octet-stream", "Content-Length": str(len(body) - start)}
            if start >= len(body) > 0 and start:
                return Answer(self, b"", 0, 416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0", "ETag": etag})
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return Answer(self, body, start, 206 if start else 200, headers)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the base class gave it
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Loopback(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
