"""A real browser walks `flywheel ui` over a small finished run, and over a run that is under way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import krippendorff
import numpy as np
import polars as pl
import pytest

from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.engine.running import start, until
from tests.engine.view.ui.served import served
from tests.engine.view.ui.small_run import HOSTILE, build
from tests.engine.view.ui.walk import Walk


@pytest.fixture
def small(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    return build(store, tmp_path)


@pytest.fixture
def walk(small: dict[str, Artifact], store: Store, browser: Any) -> Iterator[Walk]:
    with served(store.url) as (link, home):
        yield Walk(browser, link, home)


def test_a_finished_run(walk: Walk, small: dict[str, Artifact]) -> None:
    chrome = walk.chrome
    # 1, 2: without the token nothing is told; with it, it leaves the address.
    assert httpx.get(walk.home + "/").status_code == 403 and httpx.get(walk.home + "/?token=no").status_code == 403
    assert "token" not in chrome.current_url and walk.texts("h1") == ["Runs"]
    # 3: the runs, what they cost.
    assert walk.texts("#runs td a b") == ["other", "small"] or walk.texts("#runs td a b") == ["small", "other"]
    assert "1,280 tokens in, 360 out, cost 1.75" in walk.all("#runs")[0].text
    # 4: the flow is a picture, a box a stage.
    walk.click("small")
    assert len(walk.all("#live svg g.box")) == 9 and walk.all("#live .state")[0].text == "done"
    walk.wait(lambda: "3.0" in walk.all("#curves")[0].text or walk.all("#curves svg"))
    # 5: one clicks through it.
    walk.click("pages", "#live svg")
    assert small["pages"].id in walk.all("main")[0].text
    frame = small["pages"].to_polars()
    short = pl.col("id").str.slice(0, 8)

    def ids(found: pl.DataFrame) -> list[str]:
        return found.select(short).to_series().to_list()[:50]

    # 6, 7: pages.
    assert walk.rows() == ids(frame)
    walk.click("next")
    assert walk.rows() == ids(frame[50:])
    walk.click("next")
    assert walk.rows() == ids(frame[100:]) and not walk.links("next", ".pages")
    walk.click("all", "#rows form")
    # 8, 9: search, and how many there are in all.
    walk.ask(q="TWICE")
    wanted = frame.filter(pl.col("text").str.contains("twice"))
    assert walk.rows() == ids(wanted)
    walk.wait(lambda: walk.texts("#total") == [str(len(wanted))])
    # 10: filter.
    walk.ask(q="", where="score > 7 AND text LIKE '%river%'")
    assert walk.rows() == ids(frame.filter((pl.col("score") > 7) & pl.col("text").str.contains("river")))
    # 11: a wrong filter is told in words.
    walk.ask(where="scor > 7")
    assert "Did you mean `score`" in walk.all("#rows .fault")[0].text
    walk.click("all", "#rows form")
    # 12: order, both ways.
    walk.click("score", "table.rows")
    assert walk.rows() == ids(frame.sort("score"))
    walk.click("score", "table.rows")
    assert walk.rows() == ids(frame.sort("score", descending=True))
    # 13: columns.
    walk.all(".columns summary")[0].click()
    for box in walk.all(".columns input:checked"):
        if box.get_attribute("value") != "offset":
            box.click()
    walk.ask()
    assert walk.texts("table.rows th a") == ["offset"]
    # 14: a row's lineage reaches its file, and the weights that learnt from it.
    chrome.get(f"{walk.home}/artifact/{small['unique'].id}/row/0")
    walk.wait(lambda: walk.all("#lineage svg"))
    told = walk.all("#lineage svg")[0].get_attribute("textContent")
    assert "pages.txt" in told and "learnt from it" in told and "dpo" in told
    # 15: a script in a row runs nothing, and is shown.
    chrome.get(f"{walk.home}/artifact/{small['pages'].id}/row/3")
    assert walk.texts("pre")[0] == HOSTILE
    walk.wait(lambda: walk.all("#lineage svg"))
    assert chrome.execute_script("return [window.owned, document.title]") == [None, "Row 3 of small/pages - Flywheel"]
    assert not walk.all("pre img, pre b, pre script")
    # 16: rejected rows by reason; 17: what differs from the row that was kept.
    chrome.get(f"{walk.home}/artifact/{small['unique'].id}?rejected=1")
    assert len(walk.rows()) == 3 and "min_words (1)" in walk.texts("#rows select")[0]
    walk.all("#rows option[value=min_words]")[0].click()
    walk.ask()
    assert walk.rows() == [small["pages"].to_polars()["id"][10][:8]]
    chrome.get(f"{walk.home}/artifact/{small['unique'].id}/row/0?rejected=1")
    assert "near_duplicate" in walk.all(".reason")[0].text
    assert walk.texts("del")[0] == "7" and walk.texts("ins")[0] == "8"
    # 18: a conversation with a tool.
    chrome.get(f"{walk.home}/artifact/{small['chats'].id}/row/0")
    assert [t.split("\n")[0] for t in walk.texts(".turn")] == ["user", "assistant", "tool (clock)", "assistant"]
    assert '"name": "clock"' in walk.all(".calls")[0].text and "It is noon." in walk.texts(".turn")[3]
    # 19: a ranking, best first; 20: agreement with its interval.
    place = next(i for i, r in enumerate(small["rankings"].to_table().to_pylist()) if r["ranks"] == [3, 1, 2])
    chrome.get(f"{walk.home}/artifact/{small['rankings'].id}/row/{place}")
    assert walk.texts(".ranked pre") == ["Second.", "Third.", "First of City 1"]
    chrome.get(f"{walk.home}/artifact/{small['preferences'].id}")
    assert "Krippendorff's alpha 0.62 0.51 to 0.71 6" in walk.all("main")[0].text
    # 21: a preference, side by side, and where the two differ.
    chrome.get(f"{walk.home}/artifact/{small['preferences'].id}/row/0")
    assert (walk.texts("del"), walk.texts("ins")) == (["small"], ["large"])
    # 22: the table, intervals, and answers behind a number.
    chrome.get(f"{walk.home}/artifact/{small['results'].id}")
    assert "0.51\n0.31 to 0.71" in walk.all("#evaluation")[0].text
    walk.click("0.51", "#evaluation")
    values = [float(text) for text in walk.texts("td.n")]
    assert values == [0, 0, 0.5, 0.5, 1, 1] and sum(values) / 6 == 0.5
    # 23: two models' answers; blind, no name stands above them.
    chrome.get(f"{walk.home}/artifact/{small['results'].id}/compare?a=sft&b=dpo")
    assert walk.texts(".sides b")[:2] == ["sft", "dpo"] and "sft says City" in walk.texts(".sides pre")[0]
    chrome.get(f"{walk.home}/artifact/{small['results'].id}/compare?a=sft&b=dpo&blind=on")
    assert not walk.all(".sides b")
    first = walk.all("section.answers")[0]
    left = first.find_element("css selector", "pre").text.split()[0]
    assert f"left: {left}" in first.find_element("css selector", "details").get_attribute("textContent")
    # 24: curves of two runs over each other.
    chrome.get(f"{walk.home}/curves?of=small/sft&of=other/sft")
    drawn = walk.all("#drawn svg")[0].text
    assert "small/sft" in drawn and "other/sft" in drawn and "nats a token" in drawn and "optimizer step" in drawn
    # Nothing was refused by the browser, nothing failed.
    assert [line for line in chrome.get_log("browser") if "favicon" not in line["message"]] == []


def test_five_questions_in_three_clicks(walk: Walk, small: dict[str, Artifact]) -> None:
    pages = small["pages"].to_polars()
    # Which rows were removed as near-duplicates of this one?
    told = walk.clicks(("small", "#runs"), ("unique", "#live svg"), (pages["id"][7][:8], "table.rows"))
    assert "Removed as near-duplicates of this one: 2" in told
    assert set(walk.texts("#removed code")) == {pages["id"][8][:8], pages["id"][9][:8]}
    # How far do people agree?
    walk.clicks(("small", "#runs"), ("rankings", "#live table"))
    ranks = np.array(
        [[[3, 1, 2] if who == "cleo" and q == 1 else [1, 2, 3] for q in range(6)] for who in ("ada", "ben", "cleo")]
    )
    alpha = krippendorff.alpha(ranks.reshape(3, -1).astype(float), level_of_measurement="ordinal")
    walk.wait(lambda: f"Krippendorff's alpha {alpha:.2f}" in walk.all("#people")[0].text)
    assert "18 judgements of 6 prompts by 3 annotators" in walk.all("#people")[0].text
    # What did annotator cleo rank unlike the others?
    told = walk.clicks(("small", "#runs"), ("rankings", "#live table"), ("cleo", "#annotators"))
    assert "1 of 6 rankings" in told and walk.texts("section.unlike h2")[0].startswith(
        "What is the capital of country 1?"
    )
    assert "Against most others on 2 of 3 pairs." in told
    # Which answers made DPO win?
    told = walk.clicks(("small", "#runs"), ("results", "#live svg"), ("0.52", "#evaluation"))
    assert "Of 6 answers, each beside the other's" in told
    assert walk.texts(".chip") == ["won 2", "tied 2", "lost 2", "all"] and "95 % interval 0.22 to 0.82" in told
    assert sorted(walk.texts(".sides .state")) == ["lost", "lost", "tied", "tied", "won", "won"]
    # What did this run cost by model?
    told = walk.clicks(("cost 1.75", "#runs"))
    assert [line.split() for line in walk.texts("#by-model tr")[1:3]] == [
        ["writer-2", "80", "20", "1.25"],
        ["judge-9", "1,200", "340", "0.50"],
    ]
    # Where does this weight's data come from?
    walk.clicks(("small", "#runs"), ("dpo", "#live svg"))
    lineage = walk.all("#lineage svg")[0].get_attribute("textContent")
    assert all(name in lineage for name in ("pages", "unique", "chats", "sft", "questions", "rankings", "preferences"))


LIVE = """\
name: live
stages:
  lines:
    kind: toy_read
    path: lines.txt
  loud:
    kind: toy_shout
    from: lines
  model:
    kind: toy_train
    from: loud
    steps: 40
    pause: 0.25
  after:
    kind: toy_train
    from: lines
    start: model
"""


def test_a_run_under_way(tmp_path: Path, browser: Any) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i}" for i in range(23)))
    (tmp_path / "live.yaml").write_text(
        LIVE.replace("    from: lines\n    start: model", "    from: {documents: lines, start: model}")
    )
    run = start(tmp_path, "run", "live.yaml")
    try:
        with served(tmp_path / "store") as (link, home):
            store = Store(str(tmp_path / "store"))
            until(lambda: any((store.workplace()).glob("toy_train-*/metrics.jsonl")), 60)
            walk = Walk(browser, link, home)
            walk.click("live", "#runs")
            # What is under way, what is still to come; the page goes on by itself.
            walk.wait(lambda: "under way" in walk.all("#live")[0].text)
            assert {"model", "after"} <= set(walk.texts("#live table a")) and "waiting" in walk.all("#live")[0].text
            walk.wait(lambda: walk.all("#curves svg"))
            before = walk.all("#curves svg")[0].get_attribute("outerHTML")
            walk.wait(
                lambda: walk.all("#curves svg") and walk.all("#curves svg")[0].get_attribute("outerHTML") != before
            )
            share = walk.wait(lambda: [float(one.get_attribute("value")) for one in walk.all("#live table progress")])[
                0
            ]
            walk.wait(
                lambda: [one for one in walk.all("#live table progress") if float(one.get_attribute("value")) > share]
            )
            walk.wait(lambda: walk.all("#live .state")[0].text == "done", 60)
            assert "4 of 4 stages" in walk.all("#live")[0].text
    finally:
        run.kill()
        run.communicate()
