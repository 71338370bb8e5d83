"""The Python that the page on Argilla shows runs as written."""

from __future__ import annotations

from typing import Any

import pytest

from labeling.argilla import server
from labeling.argilla.client import Argilla
from tests.test_docs import blocks


def test_the_python_runs(client: Argilla, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "up", lambda: None)  # one runs already
    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    (code,) = blocks("docs/argilla.md", "python")
    # Names of their own: passwords are kept by the server's address here, by its folder in other tests.
    found: dict[str, Any] = {}
    exec(code.replace('["ann", "bob", "carla"]', '["page-ann", "page-bob", "page-carla"]'), found)
    (record,) = client.records(found["dataset"])
    assert record.answers == ("Lima", "Cusco", "?")
