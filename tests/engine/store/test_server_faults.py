"""What a store's server fails at is said in words, whatever library noticed it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import flywheel
from engine.errors import StageFailed
from engine.shortage import shortage
from engine.store.store import Store

XML = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message><BucketName>b</BucketName></Error>'


class Refusing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # who sends waits to be told to go on
    status, code, message = 403, "AccessDenied", "Access Denied"

    def _answer(self) -> None:
        data = XML.format(self.code, self.message).encode()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that answers as `Refusing` says."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "code", "message", "words"),
    [
        (
            403,
            "AccessDenied",
            "Access Denied",
            r"refuses \w+ \(AccessDenied: Access Denied\). These credentials need to",
        ),
        (403, "InvalidAccessKeyId", "unknown", r"does not take the credentials .*Set AWS_ACCESS_KEY_ID"),
        (404, "NoSuchBucket", "none", r"there is no bucket `b` at http://127.0.0.1:\d+. Make it, or name another"),
        (503, "SlowDown", "Reduce your rate", r"could not serve \w+ \(SlowDown.*When it is well, what is done is kept"),
    ],
)
def test_what_it_answers(
    refusing: str, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str, words: str
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    for name, value in {"status": status, "code": code, "message": message}.items():
        monkeypatch.setattr(Refusing, name, value)
    store = Store("s3://b/x")
    for do in (lambda: store.fs.pipe_file("b/x/y", b"z"), lambda: store.list("artifacts")):
        with pytest.raises(Exception) as raised:  # whatever its library calls it
            do()
        told = shortage(raised.value)
        assert told and re.search(words, told), told


def test_nobody_there_and_no_credentials(refusing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens to `discard`
    with pytest.raises(Exception) as raised:
        Store("s3://b/x").list("artifacts")
    assert "http://127.0.0.1:9 can't be reached" in (shortage(raised.value) or "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing + "/")  # another instance
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(Exception) as raised:
        Store("s3://b/x").list("artifacts")
    assert "there are no credentials for http://127.0.0.1" in (shortage(raised.value) or "")


def test_a_run_into_a_bucket_that_is_not_there_ends_at_once(recipe: Path, bucket: str) -> None:
    with pytest.raises(StageFailed, match=r"stage `lines` \(toy_read\): there is no bucket `nowhere` at http://127"):
        flywheel.run(recipe, store="s3://nowhere/store")
