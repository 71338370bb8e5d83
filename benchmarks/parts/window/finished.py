"""What a browser sees of the finished quickstart."""

from __future__ import annotations

from collections import Counter

import httpx
import krippendorff
import numpy as np
import polars as pl

from benchmarks.parts.window.scene import RUN, Found, Scene, number, of, short
from engine.text.visible import visible


def a_page_without_the_token_is_refused(scene: Scene) -> Found:
    """403 and nothing of the store: six pages, without a token, with a wrong one, and under another host's name."""
    artifact = scene.artifacts["text"]
    pages = ["/", f"/run/{RUN}", f"/artifact/{artifact}", f"/artifact/{artifact}/row/0", "/curves", "/static/ui.css"]
    port = scene.walk.home.rpartition(":")[2]
    answers = [
        httpx.get(scene.walk.home + page + query, headers=headers)
        for page in pages
        for query, headers in (("", {}), ("?token=" + 32 * "0", {}), ("", {"host": f"evil.example:{port}"}))
    ]
    told = [answer.text for answer in answers if answer.status_code != 403 or artifact in answer.text]
    return f"{len(answers) - len(told)} of {len(answers)}", not told


def the_token_leaves_the_address(scene: Scene) -> Found:
    """The link opens the first page, and its token is not in the address nor in the page."""
    chrome = scene.walk.chrome
    return chrome.current_url.removeprefix(scene.walk.home), (
        scene.link.partition("token=")[2] not in chrome.current_url + chrome.page_source
        and scene.walk.texts("h1") == ["Runs"]
    )


def the_first_page_tells_a_run_and_its_tokens(scene: Scene) -> Found:
    """The run, its stages and its tokens: sums over the manifests."""
    spent = [one for stage in scene.stages for one in scene.manifest(stage)["timings"].get("spent", {}).values()]
    tokens = [sum(one.get(name, 0) for one in spent) for name in ("tokens_in", "tokens_out")]
    told = scene.walk.all("#runs")[0].text
    wanted = [RUN, "done", f"{len(scene.stages)} of {len(scene.stages)}", "{:,} tokens in, {:,} out".format(*tokens)]
    return wanted, all(one in told for one in wanted)


def the_flow_has_a_box_a_stage(scene: Scene) -> Found:
    """The boxes are the stages of the recipe's file, each with a way to its artifact; the page is as wide as its window."""
    scene.walk.click(RUN, "#runs")
    titles = [
        one.get_attribute("textContent").splitlines()[0] for one in scene.walk.all("#live svg g.box title")
    ]  # all of a box, as one sees it who points at it
    links = [one.get_dom_attribute("href").rpartition("/")[2] for one in scene.walk.all("#live svg a")]
    scene.walk.wait(lambda: scene.walk.all("#curves svg"))
    scene.picture("window-run")
    wide, window = scene.walk.chrome.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    same = sorted(titles) == sorted(scene.stages) and sorted(links) == sorted(scene.artifacts.values())
    return f"{len(titles)} boxes, {wide} of {window} pixels", same and wide <= window


def rows_kept_and_removed_of_each_stage(scene: Scene) -> Found:
    """Rows and rows that did not make it, of every stage with Parquet: as many as its files hold."""
    pairs: list[tuple[object, object]] = []
    for line in scene.walk.all("#live table tr")[1:]:
        cells = [cell.text for cell in line.find_elements("css selector", "td")]
        stage = line.find_elements("css selector", "a")[0].text
        kept, removed = scene.frame(stage), scene.frame(stage, "rejected")
        if len(kept):
            pairs.append(((number(cells[2]), number(cells[3])), (len(kept), len(removed))))
    return of(pairs)


def curves_have_axes_and_units(scene: Scene) -> Found:
    """Loss of every stage that reported one, over optimizer steps, in its unit."""
    walk = scene.walk
    walk.wait(lambda: walk.all("#curves svg"))
    told = [svg.get_attribute("textContent") for svg in walk.all("#curves svg")]
    named = walk.texts("#curves h3 a:first-child")
    wanted = [stage for stage in scene.stages if (scene.folder(stage) / "logs" / "metrics.parquet").exists()]
    return named, sorted(named) == sorted(wanted) and "nats a token" in told[0] and "optimizer step" in told[0]


def pages_follow_the_files(scene: Scene) -> Found:
    """First, second and last page of 13,886 rows: ids in the order of the files."""
    rows, walk = scene.frame("text")["id"], scene.open("text")
    pairs = [(walk.rows(), short(rows))]
    walk.click("next")
    pairs.append((walk.rows(), short(rows[50:])))
    last = len(rows) // 50 * 50
    scene.open("text", f"?start={last}")
    pairs.append((walk.rows(), short(rows[last:])))
    return of([*pairs, (walk.links("next", ".pages"), [])])


def rows_found_by_search(scene: Scene) -> Found:
    """Four searches, in upper and lower case: the rows and their number as Polars finds them."""
    walk, pairs = scene.walk, list[tuple[object, object]]()
    for stage, asked in (("clean", "LAMBDA"), ("clean", "(self)"), ("statements", "peru"), ("answers", "not sure")):
        texts = scene.frame(stage)
        plain = pl.col("text") if "text" in texts.columns else _said("prompt") + "\n" + _said("completion")
        found = texts.filter(plain.str.to_lowercase().str.contains(asked.lower(), literal=True))["id"]
        scene.open(stage)
        walk.ask(q=asked)
        walk.wait(lambda: "counting" not in walk.texts("#total"))
        pairs += [(walk.rows(), short(found)), (number(walk.texts("#total")[0]), len(found))]
    return of(pairs)


def _said(column: str) -> pl.Expr:
    return pl.col(column).list.eval(pl.element().struct.field("content")).list.join("\n")


def rows_found_by_filter(scene: Scene) -> Found:
    """Four SQL expressions over texts, numbers and conversations: the rows and their number as Polars finds them."""
    asked = [
        ("clean", "LENGTH(text) > 1500", pl.col("text").str.len_chars() > 1500),
        ("clean", "text LIKE '%Return%' AND LENGTH(text) < 400",
         pl.col("text").str.contains("Return") & (pl.col("text").str.len_chars() < 400)),
        ("answers", "finish_reason = 'length' OR sample >= 7", (pl.col("finish_reason") == "length") | (pl.col("sample") >= 7)),
        ("preferences", "agreement < 1 AND margin > 1.5", (pl.col("agreement") < 1) & (pl.col("margin") > 1.5)),
    ]  # fmt: skip
    walk, pairs = scene.walk, list[tuple[object, object]]()
    for stage, where, expression in asked:
        found = scene.frame(stage).filter(expression)["id"]
        scene.open(stage)
        walk.ask(where=where)
        walk.wait(lambda: "counting" not in walk.texts("#total"))
        pairs += [(walk.rows(), short(found)), (number(walk.texts("#total")[0]), len(found))]
    return of(pairs)


def a_wrong_filter_is_told(scene: Scene) -> Found:
    """A column that is not there: its nearest neighbour is named, and no row is shown."""
    scene.open("preferences")
    scene.walk.ask(where="margn > 1")
    told = scene.walk.texts("#rows .fault")
    return told, len(told) == 1 and "Did you mean `margin`" in told[0] and not scene.walk.rows()


def rows_by_order(scene: Scene) -> Found:
    """By a number and by a text, up and down, by clicks on the column: as Polars orders them."""
    walk, pairs = scene.walk, list[tuple[object, object]]()
    for stage, column in (("preferences", "margin"), ("clean", "text")):
        frame = scene.frame(stage)
        scene.open(stage)
        for descending in (False, True):
            walk.click(column, "table.rows th")
            ordered = frame.sort(column, descending=descending, maintain_order=True, nulls_last=True)
            pairs.append((walk.rows(), short(ordered["id"])))
    return of(pairs)


def columns_are_chosen(scene: Scene) -> Found:
    """Only the columns that are ticked are shown, with the values of the files."""
    walk = scene.open("answers")
    walk.all(".columns summary")[0].click()
    for box in walk.all(".columns input"):
        if box.is_selected() != (box.get_attribute("value") in ("reference", "finish_reason")):
            box.click()
    walk.ask()
    cells = walk.texts("table.rows td:not(:first-child)")
    rows = scene.frame("answers").select("finish_reason", "reference").head(50).rows()
    heads = walk.texts("table.rows th a")
    return heads, heads == ["finish_reason", "reference"] and cells == [value for row in rows for value in row]


def a_row_leads_to_its_file_and_to_weights(scene: Scene) -> Found:
    """A conversation: the line of the file that it was made from, the model that learnt from it, and those made of that."""
    row = scene.frame("chats").row(0, named=True)
    scene.open("chats", f"/find/{row['id']}")
    told = scene.lineage()
    scene.picture("window-row")
    fact = scene.frame("facts").filter(pl.col("id").is_in(row["parents"])).row(0, named=True)
    wanted = ["countries.csv", f"{fact['offset']:,}", "learnt from it", "sft", "dpo", "ppo"]
    return wanted, all(one in told for one in wanted)


def a_preference_leads_to_annotators_model_and_file(scene: Scene) -> Found:
    """A pair: rankings of it, both answers, the model that gave them, the question, the file."""
    row = scene.frame("preferences").row(0, named=True)
    scene.open("preferences", "/row/0")
    told = scene.lineage()
    rankings = scene.frame("rankings").filter(pl.col("id").is_in(row["parents"]))
    wanted = [*(f"Ranking {one[:8]}" for one in rankings["id"]), f"Candidate {row['chosen_id'][:8]}",
              f"Candidate {row['rejected_id'][:8]}", "sampled it", f"Conversation {row['prompt_id'][:8]}", "countries.csv"]  # fmt: skip
    return wanted, len(rankings) > 0 and all(one in told for one in wanted)


def rejected_rows_with_their_reason(scene: Scene) -> Found:
    """Of `clean`, by each reason: how many, which, and what is said of one: as in the files."""
    walk, frame = scene.walk, scene.frame("clean", "rejected")
    pairs = list[tuple[object, object]]()
    for reason, count in Counter(frame["reason"]).items():
        rows = frame.filter(pl.col("reason") == reason)
        scene.open("clean", "?rejected=1")
        (choice,) = walk.all(f"#rows option[value='{reason}']")
        pairs.append((choice.text, f"{reason} ({count:,})"))
        choice.click()
        walk.ask()
        pairs.append((walk.rows(), short(rows["id"])))
        walk.click(rows["id"][0][:8], "table.rows")
        told = walk.texts(".reason")[0]
        pairs.append((told, " ".join(f"Did not make it: {reason}. {rows['detail'][0] or ''}".split())))
    return of(pairs)


def a_near_duplicate_beside_the_row_that_was_kept(scene: Scene) -> Found:
    """What is struck out and what is not gives the kept row's text, what is underlined and what is not the removed one's."""
    frame = scene.frame("unique", "rejected")
    pairs = list[tuple[object, object]]()
    for place, row in enumerate(frame.rows(named=True)):
        (kept,) = scene.frame("unique").filter(pl.col("id") == row["kept_id"])["text"]
        walk = scene.open("unique", f"/row/{place}?rejected=1")
        (difference,) = walk.all("pre.diff")
        script = "return [...arguments[0].childNodes].map(n => [n.nodeName, n.textContent])"
        parts = walk.chrome.execute_script(script, difference)
        for left_out, text in (("INS", kept), ("DEL", row["text"])):
            pairs.append(("".join(told for name, told in parts if name != left_out), text))
    return of(pairs)


def a_ranking_best_first(scene: Scene) -> Found:
    """Ten rankings: the answers in the order of their ranks."""
    pairs = list[tuple[object, object]]()
    for place, row in enumerate(scene.frame("rankings").head(10).rows(named=True)):
        walk = scene.open("rankings", f"/row/{place}")
        best = sorted(zip(row["ranks"], row["completions"], strict=True), key=lambda one: one[0])
        pairs.append((walk.texts(".ranked pre"), [text.strip() for _, text in best]))
        pairs.append((walk.texts(".ranked b"), [str(rank) for rank, _ in best]))
    return of(pairs)


def agreement_is_the_librarys(scene: Scene) -> Found:
    """Krippendorff's alpha of all rankings, by the library of that name."""
    frame = scene.frame("rankings").explode("candidates", "ranks")
    table = frame.pivot("annotator", index=["prompt_id", "candidates"], values="ranks").drop("prompt_id", "candidates")
    alpha = krippendorff.alpha(table.to_numpy().T.astype(float), level_of_measurement="ordinal")
    walk = scene.open("rankings")
    told = walk.wait(lambda: [line for line in walk.all("#people")[0].text.splitlines() if "alpha" in line])[0]
    return told, f"Krippendorff's alpha {alpha:.2f} " in told


def an_evaluations_numbers(scene: Scene) -> Found:
    """Accuracy and answers of four models: means over prompts of what stands in the rows."""
    walk, rows = scene.open("results"), scene.frame("results")
    heads = [head.text for head in walk.all("#evaluation th")]
    pairs = list[tuple[object, object]]()
    for line in walk.all("#evaluation tr")[1:]:
        cells = [cell.text for cell in line.find_elements("css selector", "td")]
        for metric in ("accuracy", "answers"):
            own = rows.filter((pl.col("model") == cells[0]) & (pl.col("metric") == metric))
            mean = float(own.group_by("subject").agg(pl.col("value").mean())["value"].to_numpy().mean())
            pairs.append((float(cells[heads.index(metric)].split("\n")[0]), round(mean, 3 if 0 < mean < 0.1 else 2)))
    return of(pairs)


def answers_behind_a_number(scene: Scene) -> Found:
    """DPO against SFT, sample by sample: won, tied and lost as the rows' utilities say, and the first 200 in full."""
    values = scene.sides("utility", "value", ("dpo", "sft"))
    signs = [int(np.sign(ours - theirs)) for ours, theirs in values]
    walk = scene.open("results", "/answers?model=dpo&metric=gold_win_rate")
    scene.picture("window-answers")
    wanted = [f"won {signs.count(1)}", f"tied {signs.count(0)}", f"lost {signs.count(-1)}", "all"]
    words = {1: "won", 0: "tied", -1: "lost"}
    shown = walk.texts(".sides .state")
    texts = [visible(text).strip() for pair in scene.sides("sample", "text", ("dpo", "sft"))[:200] for text in pair]
    same = walk.texts(".chip") == wanted and shown == [words[sign] for sign in signs[:200]]
    return walk.texts(".chip"), same and walk.texts(".sides pre") == texts


def two_models_answers_side_by_side(scene: Scene) -> Found:
    """SFT's and PPO's first 200 answers as in the rows; blind, no name stands above them, and each says who wrote which."""
    texts = [[visible(one).strip() for one in pair] for pair in scene.sides("sample", "text", ("sft", "ppo"))[:200]]
    walk = scene.open("results", "/compare?a=sft&b=ppo")
    pairs: list[tuple[object, object]] = [
        (walk.texts(".sides pre"), [one for pair in texts for one in pair]),
        (set(walk.texts(".sides b")), {"sft", "ppo"}),
    ]
    scene.open("results", "/compare?a=sft&b=ppo&blind=on")
    secrets = [one.get_attribute("textContent") for one in walk.all("section.answers details")]
    swapped = ["left: ppo, right: sft" in one for one in secrets]
    told = [one for pair, turned in zip(texts, swapped, strict=True) for one in (pair[::-1] if turned else pair)]
    pairs += [(walk.texts(".sides pre"), told), (walk.all(".sides b"), []), (all("left: " in one for one in secrets), True)]  # fmt: skip
    seen, same = of(pairs)
    return f"{seen}; blind, PPO stands left in {sum(swapped)} of {len(swapped)}", same and 60 < sum(swapped) < 140


def curves_of_two_stages_over_each_other(scene: Scene) -> Found:
    """SFT's loss over the base model's, in one picture with both names."""
    scene.walk.chrome.get(f"{scene.walk.home}/curves?of={RUN}/base&of={RUN}/sft")
    told = scene.walk.all("#drawn svg")[0].get_attribute("textContent")
    return f"{RUN}/base, {RUN}/sft", f"{RUN}/base" in told and f"{RUN}/sft" in told
