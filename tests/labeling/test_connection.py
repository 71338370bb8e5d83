"""What is told of a server that answers, and is another than it was taken for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from labeling.argilla import client as argilla
from labeling.label_studio import studio_client


@pytest.fixture(params=[b'["odd"]', b'{"version": 3}', b'{"username": 7, "email": null}', b"<p>hello</p>", b""])
def other_server(request: pytest.FixtureRequest) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param)

        def do_POST(self) -> None:  # where a token is traded
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("key", ["key", "to.be.traded"])
@pytest.mark.parametrize(("tool", "name"), [(argilla, "Argilla"), (studio_client, "Label Studio")])
def test_another_server_is_told_from_the_tool(
    other_server: str, tool: Any, name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLYWHEEL_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=f"{other_server} answers, but not as a {name} server does: is the address right"
    ):
        tool.connect(other_server, key, patience=1.0)
