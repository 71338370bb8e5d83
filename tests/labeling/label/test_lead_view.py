"""What a lead sees of a `label` stage in `flywheel ui`, while people are at work in the real Argilla and after."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest

import flywheel
from engine.errors import Waiting
from engine.store.store import Store
from engine.view.ui.admission import Admission
from engine.view.ui.site import Site
from labeling.argilla.dataset_status import dataset_statuses
from labeling.tool.task import Submission

RECIPE = """\
name: led
stages:
  rankings: {kind: label, from: ./answers.jsonl, dataset: led, workspace: led, per_record: 2, answers: 3, people: [gina, hugo]}
"""
TEXTS = ["the best", "good", "poor"]


def test_a_lead_sees_how_people_do(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    monkeypatch.setenv("ARGILLA_API_URL", client.url)
    monkeypatch.setenv("ARGILLA_API_KEY", client.api_key)
    asked = [f"Question <b>{p}</b>?" for p in range(4)]
    rows = [{"id": f"{p}-{a}", "prompt": q, "completion": t} for p, q in enumerate(asked) for a, t in enumerate(TEXTS)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "led.yaml").write_text(RECIPE)
    with pytest.raises(Waiting):
        flywheel.run(tmp_path / "led.yaml", store=str(tmp_path / "store"))
    store = Store(str(tmp_path / "store"))
    pages = TestClient(Admission(Site(store).app(), token="ours"), base_url="http://127.0.0.1:8000")
    assert "Runs" in pages.get("/?token=ours").text
    (folder,) = [file.parent.name for file in store.workplace().glob("label-*/spec.json")]
    page = f"/artifact/{folder}"
    # The stage's own page asks for it; so can a lead, with an address to keep.
    assert f'hx-get="{page}/people" hx-trigger="load"' in pages.get(page).text
    told = pages.get(f"{page}/people").text
    assert "0 of 4 records are judged" in told and "every 10s" in told and "alpha" not in told

    gina, hugo = (client.as_user(user) for user in client.ensure_users(["gina", "hugo"], "led"))
    (found,) = (o for o in dataset_statuses(client) if o.workspace == "led")
    assert found.dataset is not None
    given: dict[str, list[list[int]]] = {}
    for who, annotator in (("gina", gina), ("hugo", hugo)):
        for record in annotator.pending(found.dataset):
            ranks = [TEXTS.index(text) + 1 for text in record.answers]
            if who == "hugo" and "0" in record.prompt[-1]["content"]:
                ranks = [4 - rank for rank in ranks]  # against gina on all three pairs
            annotator.submit(found.dataset, [Submission(record.id, ranks)])
            in_order = [rank for _, rank in sorted(zip(record.answers, ranks, strict=True))]
            given.setdefault(record.prompt[-1]["content"], []).append(in_order)
    by_annotator = np.array([[rank for judged in given.values() for rank in judged[who]] for who in (0, 1)], float)
    alpha = krippendorff.alpha(by_annotator, level_of_measurement="ordinal")
    told = pages.get(f"{page}/people", headers={"hx-request": "true"}).text
    assert "4 of 4 records are judged" in told and "<html" not in told
    assert f'alpha</td><td class="n">{alpha:.2f}<' in told
    assert "<td>gina, hugo</td><td>9</td><td>3</td>" in told  # pairs on which they stand alike, and opposite
    (link,) = re.findall(r'<td><a href="([^"]+)" rel="noopener noreferrer">Question &lt;b&gt;0&lt;/b&gt;\?</a>', told)
    assert link.startswith(f"{client.url}/r/")
    # Without the server's address the key goes nowhere, and the page says what is missing.
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("ARGILLA_API_URL", "http://127.0.0.1:9")
        assert f"the records are at {client.url}" in pages.get(f"{page}/people").text

    done = flywheel.run(tmp_path / "led.yaml", store=str(tmp_path / "store"))["rankings"]
    told = pages.get(f"/artifact/{done.id}/people").text
    assert "8 judgements of 4 prompts by 2 annotators" in told and "every 10s" not in told
    assert f'alpha</td><td class="n">{alpha:.2f}<' in told and link in told
    assert "was not made by people" in pages.get(f"/artifact/{_input_of(done)}/people").text


def _input_of(artifact: Any) -> str:
    return artifact.manifest["inputs"]["candidates"][0]["artifact"]
