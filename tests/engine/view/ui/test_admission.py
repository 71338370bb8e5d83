from __future__ import annotations

from typing import Any

import pytest

from engine.store.store import Store
from engine.view.ui.admission import Admission
from engine.view.ui.site import Site

pytest.importorskip("httpx")


@pytest.fixture
def client(store: Store) -> Any:
    from starlette.testclient import TestClient

    return TestClient(
        Admission(Site(store).app(), token="ours"), base_url="http://127.0.0.1:8000", follow_redirects=False
    )


def test_only_the_link_opens_the_page(client: Any) -> None:
    for place in ("/", "/run/x", "/static/ui.css", "/?token=theirs", "/?token=", "/nowhere"):
        answer = client.get(place)
        assert answer.status_code == 403 and "flywheel ui" in answer.text and "Runs" not in answer.text
    answer = client.get("/curves?token=ours&of=a%2Fb")
    assert (answer.status_code, answer.headers["location"]) == (303, "/curves?of=a%2Fb")
    assert "httponly" in answer.headers["set-cookie"].lower() and "samesite=lax" in answer.headers["set-cookie"].lower()
    assert client.get("/").status_code == 200


def test_a_redirect_stays_here(client: Any) -> None:
    assert client.get("http://127.0.0.1:8000//evil.example/?token=ours").headers["location"] == "/evil.example/"


def test_another_host_another_method_and_another_port_are_refused(client: Any) -> None:
    client.get("/?token=ours")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "127.0.0.1.evil.example:8000"}).status_code == 403
    assert client.get("/", headers={"host": "127.0.0.1:8001"}).status_code == 403  # its cookie has another name
    assert client.post("/").status_code == 405 and client.delete("/run/x").status_code == 405


def test_pages_run_nothing_from_elsewhere(client: Any) -> None:
    client.get("/?token=ours")
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["script-src"] == "'self'" and rules["frame-ancestors"] == "'none'"
    assert client.get("/").headers["cache-control"] == "no-store"
