"""A real S3 server (moto's) on the loopback, behind a proxy that misbehaves as it is told, request by request."""

import contextlib
import http.client
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.loopback import Answer, Behaviour, Loopback, good

BUCKET = "images"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE0001", "AWS_SECRET_ACCESS_KEY": "wJalr+XUtnFEMI/K7MDENG", "AWS_DEFAULT_REGION": "us-east-1"}


def slow_down(answer: Answer) -> None:
    """Answers as S3 does to too many requests."""
    answer.status = 503
    page = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    page = b"" if answer.handler.command == "HEAD" else page
    answer.headers = {"Content-Type": "application/xml", "Content-Length": str(len(page)), "Retry-After": "2"}
    answer.send(page)


class ObjectStore(Loopback):
    """The proxy's script and requests, as of `Loopback`; `environment` is what clients need."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": address}

    def put(self, folder: Path, name: str) -> str:
        """Uploads the files of a folder below `name` and returns its address."""
        import boto3

        client = boto3.client(
            "s3", endpoint_url=self.address, aws_access_key_id="any", aws_secret_access_key="any", region_name="us-east-1"
        )
        client.create_bucket(Bucket=BUCKET)
        for path in folder.iterdir():
            if path.is_file():
                client.put_object(Bucket=BUCKET, Key=f"{name}/{path.name}", Body=path.read_bytes())
        self.requests.clear()
        return f"s3://{BUCKET}/{name}"


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Runs server and proxy in threads."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    real = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    real.start()
    port = real.get_host_and_port()[1]

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            upstream.request(self.command, self.path, sent, dict(self.headers))
            got = upstream.getresponse()
            body, headers = got.read(), dict(got.getheaders())
            upstream.close()
            headers = {key: value for key, value in headers.items() if key.lower() not in ("connection", "transfer-encoding")}
            reading = self.command in ("GET", "HEAD")
            behaviour: Behaviour = here.behaviour(self.path.partition("?")[0].lstrip("/")) if reading else good
            answer = Answer(self, body, 0, got.status, headers)
            with here.noted(f"{self.command} {self.path}", answer):
                try:
                    behaviour(answer)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = forward

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the base class gave it
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    here = ObjectStore(f"http://127.0.0.1:{proxy.server_address[1]}")
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield here
    finally:
        proxy.shutdown()
        proxy.server_close()
        real.stop()
