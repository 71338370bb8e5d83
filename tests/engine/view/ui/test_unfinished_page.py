from __future__ import annotations

from pathlib import Path

import pytest

import flywheel
from engine.errors import StageFailed
from engine.store.store import Store
from engine.view.report.flow import stops_of
from engine.view.ui.admission import Admission
from engine.view.ui.site import Site
from tests.engine.view.ui.small_run import build

RECIPE = """\
name: broken
stages:
  lines: {kind: toy_read, path: lines.txt}
  bad: {kind: toy_crash, from: lines, how: exception}
  never: {kind: toy_shout, from: bad}
"""


def test_a_stage_that_failed_tells_why(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    (tmp_path / "lines.txt").write_text("one\ntwo")
    (tmp_path / "broken.yaml").write_text(RECIPE)
    with pytest.raises(StageFailed):
        flywheel.run(tmp_path / "broken.yaml", store=str(tmp_path / "store"))
    store = Store(str(tmp_path / "store"))
    client = TestClient(Admission(Site(store).app(), token="ours"), base_url="http://127.0.0.1:8000")
    assert "failed" in client.get("/?token=ours").text
    page = client.get("/run/broken").text
    assert "planted" in page and ">waiting<" in page and "1 of 3 stages" in page
    bad = (store.run("broken") or {})["failed"]["bad"]
    page = client.get(f"/artifact/{bad}").text
    assert (
        "<h2>Failed</h2>" in page
        and "ZeroDivisionError: planted" in page
        and "stage.log" in page
        and 'href="/run/broken"' in page
    )
    gone = client.get(f"/artifact/{(store.run('broken') or {})['planned']['never']['artifact']}")
    assert gone.status_code == 404 and "has not begun" in gone.text


def test_a_stage_that_is_made_anew_is_not_done(store: Store, tmp_path: Path) -> None:
    """A run under way shows what it will be; its report, what it was."""
    from starlette.testclient import TestClient

    build(store, tmp_path)
    anew = {**(store.run("small") or {})["stages"]["dpo"], "artifact": "dpo-0123456789abcdef"}
    store.update_run("small", lambda record: {**record, "planned": {"dpo": anew}})
    client = TestClient(Admission(Site(store).app(), token="ours"), base_url="http://127.0.0.1:8000")
    client.get("/?token=ours")
    page = client.get("/run/small").text
    assert "8 of 9 stages" in page and ">waiting<" in page and anew["artifact"] in page
    assert all(stop.artifact for stop in stops_of(store, "small"))
