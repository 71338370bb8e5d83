"""The task as a labeling config, and judgements through it and back: no server is needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UserError
from labeling.label_studio.access import email_of, name_of
from labeling.label_studio.annotations import read_result, read_task, write_result
from labeling.label_studio.config import instruction, labeling_config, refuse_other_config
from labeling.label_studio.studio_client import connect
from labeling.tool.task import RATINGS, RankingTask, Submission

HOSTILE = '"/><Choice value="x"/><script>alert(1)</script> $a &amp; name="prompt"'
LETTERS = "azAZ09 .,-_+%/<>&\"'$\n\téß京\u202e\U0001f600"
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())
TASK = RankingTask(
    "recorded", 3, min_submitted=2, correction=True, flags=("unsafe", "it's <wrong>"), aspects=("accuracy",)
)


def named(task: RankingTask) -> dict[str, ElementTree.Element]:
    """The tags that have a name."""
    return {
        tag.attrib["name"]: tag for tag in ElementTree.fromstring(labeling_config(task)).iter() if "name" in tag.attrib
    }


def options(tag: ElementTree.Element) -> list[str | None]:
    return [choice.get("alias", choice.get("value")) for choice in tag]


def test_every_answer_has_a_rank_of_its_own() -> None:
    tags = named(replace(TASK, name="t", aspects=()))
    assert list(tags) == ["prompt", "rank-a", "a", "rank-b", "b", "rank-c", "c", "correction", "flags"]
    for label in "abc":
        rank = tags[f"rank-{label}"]
        assert (rank.tag, rank.get("toName"), rank.get("required")) == ("Choices", label, "true")
        assert options(rank) == ["1", "2", "3"]
        assert (tags[label].tag, tags[label].get("value"), tags[label].get("valueType")) == (
            "Text",
            f"${label}",
            "text",
        )
    keys = [choice.get("hotkey") for label in "abc" for choice in tags[f"rank-{label}"]]
    assert len(set(keys)) == 9 and None not in keys


def test_what_is_asked_is_what_the_task_asks() -> None:
    assert options(named(RankingTask("t", 4, top=2))["rank-d"]) == ["1", "2", "3"]
    pair = named(RankingTask("t", 2, asked="pairwise"))
    assert options(pair["better"]) == ["a", "b", "tie"] and "rank-a" not in pair
    rated = named(RankingTask("t", 2, asked="rating", aspects=("accuracy", "safety"), chat=False))
    assert rated["prompt"].tag == "Text" and rated["safety-b"].get("maxRating") == str(RATINGS[-1])
    assert {name for name in rated if "-" in name} == {"accuracy-a", "accuracy-b", "safety-a", "safety-b"}
    many = named(RankingTask("t", 26))  # more answers than a keyboard has rows
    assert len(options(many["rank-z"])) == 26 and many["rank-z"][0].get("hotkey") is None


def test_flags_and_guidelines_are_text() -> None:
    """Nothing of theirs becomes a tag, nor a variable that is looked up in a record."""
    tags = named(replace(TASK, flags=(HOSTILE, "wrong"), guidelines=HOSTILE))
    assert list(tags) == list(named(TASK))
    assert options(tags["flags"]) == [HOSTILE, "wrong"]
    assert not any("$" in choice.attrib["value"] for choice in tags["flags"])
    assert "<s" not in instruction(HOSTILE) and instruction("a\nb") == "a<br>b"
    with pytest.raises(UserError, match="flags can't be shown"):
        labeling_config(replace(TASK, flags=("\x00", "wrong")))


def test_a_project_that_asks_something_else_is_refused() -> None:
    refuse_other_config(TASK, RECORDED["config"])  # an older style and other headings ask the same
    with pytest.raises(UserError) as refused:
        refuse_other_config(replace(TASK, answers=4, correction=False), RECORDED["config"])
    message = str(refused.value)
    assert "'correction' is not ours" in message and "'rank-d' is missing" in message
    assert "'rank-a' is Choices a single-radio (1, 2, 3), expected Choices a single-radio (1, 2, 3, 4)" in message
    with pytest.raises(UserError, match="'prompt' is missing"):
        refuse_other_config(TASK, "<View></View>")


@st.composite
def judgements(draw: st.DrawFn) -> tuple[RankingTask, Submission]:
    answers = draw(st.integers(2, 26))
    asked = draw(st.sampled_from(["ranking", "pairwise", "rating"] if answers == 2 else ["ranking", "rating"]))
    top = draw(st.none() | st.integers(1, answers - 1)) if asked == "ranking" else None
    aspects = ("accuracy", "safety")[: draw(st.integers(1 if asked == "rating" else 0, 2))]
    flags = ("unsafe", HOSTILE)
    task = RankingTask("t", answers, asked=asked, top=top, aspects=aspects, correction=True, flags=flags)  # pyright: ignore
    ratings = {
        aspect: draw(st.lists(st.sampled_from(RATINGS), min_size=answers, max_size=answers)) for aspect in aspects
    }
    if asked == "ranking":
        ranks = draw(st.lists(st.integers(1, top or answers), min_size=answers, max_size=answers))
        if top is not None:  # at least one is among the best, and any of the others is not
            ranks = [ranks[0], *(rank if draw(st.booleans()) else None for rank in ranks[1:])]
    elif asked == "pairwise":
        ranks = draw(st.sampled_from([[1, 2], [2, 1], [1, 1]]))
    else:
        sums = [sum(own) for own in zip(*ratings.values(), strict=True)]
        ranks = [1 + sum(other > own for other in sums) for own in sums]
    said = draw(st.none() | st.text(LETTERS, min_size=1, max_size=20))
    return task, Submission(
        "r", ranks, correction=said, flags=draw(st.sampled_from([(), flags[1:], flags])), ratings=ratings
    )


@given(judgements())
def test_what_is_submitted_is_what_is_read(judged: tuple[RankingTask, Submission]) -> None:
    task, said = judged
    result = write_result(task, said)
    tags = named(task)
    for item in result:  # as the form would have sent it
        tag = tags[item["from_name"]]
        assert (item["type"], item["to_name"]) == (tag.tag.lower(), tag.get("toName"))
        assert {*item["value"].get("choices", [])} <= {*options(tag)}
    ranks, correction, flags, ratings = read_result(task, json.loads(json.dumps(result)))
    assert list(ranks) == list(said.ranks)
    assert (correction, flags) == (said.correction, tuple(said.flags))
    assert {aspect: list(values) for aspect, values in ratings.items()} == said.ratings


def test_a_judgement_that_the_form_does_not_offer_is_refused() -> None:
    with pytest.raises(UserError, match="2 ranks for 3 answers"):
        write_result(TASK, Submission("r", [1, 2]))
    with pytest.raises(UserError, match="rank 9, of 1 to 3"):
        write_result(TASK, Submission("r", [1, 2, 9]))


def test_what_a_server_gave_is_read() -> None:
    """Recorded from Label Studio: a task annotated twice, skipped, by deleted users, left as a draft, typed in a browser."""
    read = {
        (one.external_id, one.user): one
        for part in RECORDED["tasks"]
        for one in read_task(TASK, part["task"], part["drafts"])
    }
    assert {key: (one.status, one.ranks) for key, one in read.items()} == {
        ("twice", "ann"): ("submitted", (2, 1, 1)),
        ("skipped", "bob"): ("discarded", (1, None, None)),
        ("skipped", "ann"): ("submitted", (1, 1, 1)),
        ("deleted", "(deleted)"): ("submitted", (1, 2, 3)),
        ("deleted", "(deleted) 2"): ("submitted", (3, 2, 1)),
        ("deleted", "bob"): ("submitted", (1, 3, 2)),
        ("drafted", "bob"): ("draft", (2, None, None)),
        ("typed", "ann"): ("submitted", (1, 2, 2)),
    }
    typed, twice = read["typed", "ann"], read["twice", "ann"]
    assert (typed.correction, typed.flags) == ("Lima, 1w\nsecond 3 <b>", ("unsafe",))
    assert typed.ratings == {"accuracy": (5, 3, 1)} and typed.updated_at >= typed.inserted_at
    assert (twice.correction, twice.flags) == ("Lima.\nOn the coast.", ("it's <wrong>",))
    assert len({one.id for one in read.values()}) == len(read)


@given(st.text(LETTERS, min_size=1, max_size=20))
def test_a_name_is_read_off_its_address(name: str) -> None:
    email = email_of(name)
    assert name_of(email) == name and email == email.lower() and email.isascii() and " " not in email


def test_addresses_stay_as_they_are() -> None:
    assert email_of("ann@example.org") == name_of("ann@example.org") == "ann@example.org"
    for wrong in ("Ann@example.org", "ann@", "an n@example.org"):
        with pytest.raises(UserError, match="can't be an annotator in Label Studio"):
            email_of(wrong)


def test_a_server_that_is_not_named_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABEL_STUDIO_URL", raising=False)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"LABEL_STUDIO_URL does not say .*label-studio start"):
        connect()
    with pytest.raises(UserError, match="set LABEL_STUDIO_API_KEY"):
        connect("http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"does not answer .*Is LABEL_STUDIO_URL right"):
        connect("http://127.0.0.1:1", "key")
