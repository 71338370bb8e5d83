"""Push, submit and pull through the REST API of a real Label Studio."""

from __future__ import annotations

import json
import stat
from dataclasses import astuple, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest

from engine.errors import UserError
from labeling.label_studio.access import email_of
from labeling.label_studio.annotations import write_result
from labeling.label_studio.project_status import project_statuses
from labeling.label_studio.studio_client import LabelStudio, connect
from labeling.tool.connection import ServerRefusal, ServerUnreachable
from labeling.tool.task import RankingRecord, RankingTask, Submission
from tests.labeling.label_studio.conftest import Studio

HOSTILE = '<script>document.title = "owned"</script> $a ${b} **bold** \u202e "\\ é 京 &amp;'


def task(**more: Any) -> RankingTask:
    flags = ("unsafe", "$5 <b>wrong</b>")
    return RankingTask(f"test-{uuid4().hex[:12]}", 3, correction=True, flags=flags, min_submitted=2, **more)


def records(*names: str) -> list[RankingRecord]:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}]
    return [RankingRecord(name, asked, [f"https://example.org/{name}", "", HOSTILE]) for name in names]


def test_what_annotators_say_comes_back(label_studio: LabelStudio) -> None:
    wanted = task()
    dataset = label_studio.ensure_dataset(wanted)
    assert label_studio.ensure_dataset(wanted).id == dataset.id
    assert not label_studio.holds_others(wanted, ["p0"])
    assert astuple(label_studio.push(dataset, records("p0", "p1"))) == (2, 0)
    assert astuple(label_studio.push(dataset, records("p0", "p1", "p2", "p3"))) == (2, 2)
    assert label_studio.holds_others(wanted, ["other"]) and not label_studio.holds_others(wanted, ["p3", "other"])
    changed = replace(records("p1")[0], answers=["other", "answers", "here"])
    with pytest.raises(UserError, match="already holds record 'p1' with another prompt or other answers"):
        label_studio.push(dataset, [changed])

    names = ["ann", "Bob B.", "gone"]
    users = label_studio.ensure_users(names, "flywheel")
    assert label_studio.ensure_users(names, "flywheel")[0].name == "ann"
    ann, bob, gone = (label_studio.as_user(user) for user in users)
    views = {view.external_id: view for view in ann.records(dataset)}
    assert set(views) == {"p0", "p1", "p2", "p3"} and not any(view.answered for view in views.values())
    assert (views["p0"].prompt, views["p0"].answers) == (records("p0")[0].prompt, tuple(records("p0")[0].answers))
    said = Submission(views["p0"].id, [2, 1, 1], correction="Lima.\nYes", flags=["$5 <b>wrong</b>"])
    ann.submit(dataset, [said, Submission(views["p1"].id, [1, 2, 3])])
    ann.submit(dataset, [Submission(views["p1"].id, [3, 2, 1])])  # replaces what was said
    bob.submit(dataset, [Submission(views["p0"].id, [1, 2, 3]), Submission(views["p1"].id, [None] * 3, "discarded")])
    gone.submit(dataset, [Submission(views["p1"].id, [1, 1, 1])])
    assert [view.answered for view in ann.records(dataset)] == [
        view.external_id < "p2" for view in ann.records(dataset)
    ]
    with pytest.raises(UserError, match="of a user"):
        label_studio.submit(dataset, [said])
    # A person may annotate a task again: their last word counts, and counts once.
    body = {"result": write_result(wanted, Submission("", [2, 2, 1])), "completed_by": bob._acting_for}  # pyright: ignore
    label_studio.call("POST", f"tasks/{views['p0'].id}/annotations/", json=body)
    label_studio.call("POST", f"tasks/{views['p2'].id}/annotations/", json=body)
    label_studio.call("POST", f"tasks/{views['p2'].id}/annotations/", json=body)

    progress = label_studio.progress(dataset)
    assert (progress.total, progress.completed) == (4, 2)  # p2 has two annotations, of one annotator
    assert {name: astuple(count) for name, count in progress.users.items()} == {
        "ann": (2, 0, 0), "Bob B.": (2, 0, 1), "gone": (1, 0, 0),
    }  # fmt: skip
    pulled = {(one.external_id, one.user): one for one in label_studio.pull(dataset)}
    assert {key: (one.status, one.ranks) for key, one in pulled.items()} == {
        ("p0", "ann"): ("submitted", (2, 1, 1)),
        ("p0", "Bob B."): ("submitted", (2, 2, 1)),
        ("p1", "ann"): ("submitted", (3, 2, 1)),
        ("p1", "Bob B."): ("discarded", (None, None, None)),
        ("p1", "gone"): ("submitted", (1, 1, 1)),
        ("p2", "Bob B."): ("submitted", (2, 2, 1)),
    }
    assert (pulled["p0", "ann"].correction, pulled["p0", "ann"].flags) == ("Lima.\nYes", ("$5 <b>wrong</b>",))
    (status,) = project_statuses(label_studio, [dataset])
    between = next(table for table in status.tables if table.title.startswith("Two annotators"))
    assert ("Bob B., ann", 1, 0, 2, 0) in between.rows  # of p0: one pair alike, two that one of them ties

    # Whoever leaves the organization keeps a name; of whom is deleted, what they said stays.
    label_studio.call("DELETE", f"organizations/1/memberships/{gone._acting_for}/")  # pyright: ignore
    assert ("p1", "gone") in {(one.external_id, one.user) for one in label_studio.pull(dataset)}
    label_studio.call("DELETE", f"users/{gone._acting_for}/")  # pyright: ignore
    left = {(one.external_id, one.user): one.ranks for one in label_studio.pull(dataset)}
    assert left["p1", "(deleted)"] == (1, 1, 1) and len(left) == len(pulled)
    assert label_studio.progress(dataset).completed == 2

    with pytest.raises(UserError, match="'rank-d' is missing"):
        label_studio.ensure_dataset(replace(wanted, answers=4))
    label_studio.call("DELETE", f"projects/{dataset.id}/")
    with pytest.raises(UserError, match="somebody deleted it"):
        list(label_studio.pull(dataset))


def test_a_task_that_is_there_twice_is_one_record(label_studio: LabelStudio) -> None:
    """As left by a request that was answered too late, and so repeated."""
    dataset = label_studio.ensure_dataset(task(chat=False))
    once = records("p0")
    label_studio.push(dataset, once)
    (there,) = label_studio.call("GET", "tasks", params={"project": dataset.id, "fields": "all"})["tasks"]
    label_studio.call("POST", f"projects/{dataset.id}/import", json=[{"data": there["data"]}])
    both = {"project": dataset.id, "include": "id"}
    assert label_studio.call("GET", "tasks", params=both)["total"] == 2
    assert label_studio.progress(dataset).total == 1
    assert astuple(label_studio.push(dataset, once)) == (0, 1)
    assert label_studio.call("GET", "tasks", params=both)["total"] == 1


def test_what_got_no_answer_is_not_made_twice(label_studio: LabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does what it is asked, and each first POST's answer is lost."""
    call, lost = label_studio.call, list[str]()

    def cut_off(method: str, path: str, **request: Any) -> Any:
        done = call(method, path, **request)
        if method == "POST" and path not in lost:
            lost.append(path)
            raise ServerUnreachable("cut off")
        return done

    monkeypatch.setattr(label_studio, "call", cut_off)
    wanted = task()
    dataset = label_studio.ensure_dataset(wanted)
    assert astuple(label_studio.push(dataset, records("p0", "p1"))) == (2, 0)
    assert lost == ["projects/", f"projects/{dataset.id}/import"]
    assert len(label_studio.call("GET", "projects", params={"title": wanted.name})["results"]) == 1
    assert label_studio.progress(dataset).total == 2


def test_suggested_ranks_fill_the_form(label_studio: LabelStudio) -> None:
    dataset = label_studio.ensure_dataset(task())
    label_studio.push(dataset, [replace(records("p0")[0], suggested=[2, 1, 1])])
    (shown,) = label_studio.call("GET", "tasks", params={"project": dataset.id, "fields": "all"})["tasks"]
    (prediction,) = shown["predictions"]
    assert [item["value"]["choices"] for item in prediction["result"]] == [["2"], ["1"], ["1"]]


def test_who_is_signed_up_can_sign_in(label_studio: LabelStudio) -> None:
    (user,) = label_studio.ensure_users([f"new-{uuid4().hex[:8]}"], "flywheel")
    assert stat.S_IMODE(label_studio.annotators_file.stat().st_mode) == 0o600
    assert json.loads(label_studio.annotators_file.read_text())[email_of(user.name)] == user.password
    with httpx.Client(base_url=label_studio.url, timeout=60) as page:
        page.get("/user/login/")
        form = {
            "email": email_of(user.name),
            "password": user.password,
            "csrfmiddlewaretoken": page.cookies["csrftoken"],
        }
        page.post("/user/login/", data=form, headers={"Referer": label_studio.url})
        assert page.get("/api/current-user/whoami").json()["email"] == email_of(user.name)


def test_both_kinds_of_keys_are_known(studio: Studio) -> None:
    client = connect(studio.url, studio.key)
    # What a personal token was traded for is over after minutes: another is asked for.
    client._http.auth._access = "an.old.one"  # pyright: ignore
    assert "@" in client.me()
    legacy = client.call("GET", "current-user/token")["token"]
    if client.call("GET", "jwt/settings")["legacy_api_tokens_enabled"]:
        assert connect(studio.url, legacy).me() == client.me()
    else:
        with pytest.raises(ServerRefusal, match=r"does not know this key\. It says: .*legacy token"):
            connect(studio.url, legacy)
    for wrong in ("not-the-key", "not.the.key"):
        with pytest.raises(ServerRefusal, match=r"does not know this key\..*Personal Access Token"):
            connect(studio.url, wrong)
