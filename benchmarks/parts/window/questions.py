"""What five people want to know of a run, each in three clicks from the first page at most (`Walk.clicks` allows no more)."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl

from benchmarks.parts.window.scene import RUN, Found, Scene, number


def which_rows_were_removed_as_near_duplicates_of_this_one(scene: Scene) -> Found:
    """Three clicks: the rows that `unique` held against this one."""
    rejected = scene.frame("unique", "rejected")
    kept, of_it = rejected.group_by("kept_id").len().sort("len", "kept_id", descending=[True, False]).row(0)
    told = scene.walk.clicks((RUN, "#runs"), ("unique", "#live svg"), (f"{of_it} removed for being like", "main"))
    shown = set(scene.walk.texts("#removed code"))
    ids = {one[:8] for one in rejected.filter(pl.col("kept_id") == kept)["id"]}
    # Several rows may have had as many removed beside them: the page leads to one of them.
    here = scene.walk.texts("h1 code")[0]
    ids = {one[:8] for one in rejected.filter(pl.col("kept_id") == here)["id"]} or ids
    return sorted(shown), shown == ids and f"Removed as near-duplicates of this one: {of_it}" in told


def what_did_an_annotator_rank_unlike_the_others(scene: Scene) -> Found:
    """Three clicks: how many of cleo's rankings stand against most of the others, as counted here."""
    name, unlike, seen = "scripted-cleo", 0, 0
    for _, frame in scene.frame("rankings").group_by("prompt_id", maintain_order=True):
        ranks = {
            row["annotator"]: dict(zip(row["candidates"], row["ranks"], strict=True)) for row in frame.rows(named=True)
        }
        own = ranks.pop(name, None)
        if own is None or not ranks:
            continue
        seen += 1
        votes = [
            (np.sign(own[b] - own[a]), sum(np.sign(other[b] - other[a]) for other in ranks.values()))
            for a, b in combinations(own, 2)
        ]
        unlike += any(mine * majority < 0 for mine, majority in votes)
    told = scene.walk.clicks((RUN, "#runs"), ("rankings", "#live table"), (name, "#annotators"))
    wanted = f"{unlike} of {seen} rankings"
    return wanted, wanted in told and len(scene.walk.all("section.unlike")) == unlike > 0


def which_answers_made_dpo_win(scene: Scene) -> Found:
    """Three clicks, the last on DPO's win rate: as many won as its rows say; one more click, and they stand alone."""
    walk = scene.walk
    heads = [head.text for head in scene.open("results").all("#evaluation th")]
    names = [line.find_elements("css selector", "td")[0].text for line in walk.all("#evaluation tr")[1:]]
    line, column = names.index("dpo") + 2, heads.index("gold win rate") + 1
    cell = f"#evaluation tr:nth-child({line}) td:nth-child({column})"
    rate = walk.all(f"{cell} a")[0].text
    walk.clicks((RUN, "#runs"), ("results", "#live svg"), (rate, cell))
    won = sum(ours > theirs for ours, theirs in scene.sides("utility", "value", ("dpo", "sft")))
    chips = walk.texts(".chip")
    walk.click(f"won {won}", ".lead")  # a fourth click shows those alone
    return chips, chips[0] == f"won {won}" and set(walk.texts(".sides .state")) == {"won"}


def what_did_it_cost_by_model(scene: Scene) -> Found:
    """One click: tokens in and out of each model that answered, as the manifests have them."""
    spent: dict[str, list[int]] = {}
    names = {artifact: stage for stage, artifact in scene.artifacts.items()}
    for stage in scene.stages:
        for who, one in scene.manifest(stage)["timings"].get("spent", {}).items():
            mine = spent.setdefault(f"{RUN}/{names[who]}" if who in names else who, [0, 0])
            mine[0] += one["tokens_in"]
            mine[1] += one["tokens_out"]
    scene.walk.clicks((f"{sum(one[0] for one in spent.values()):,} tokens in", "#runs"))
    lines = [
        [cell.text for cell in line.find_elements("css selector", "td")]
        for line in scene.walk.all("#by-model tr")[1:-1]
    ]
    return lines, {line[0]: [number(line[1]), number(line[2])] for line in lines} == spent


def where_does_this_weights_data_come_from(scene: Scene) -> Found:
    """Two clicks: everything that DPO's manifest leads to, and the files that those read."""
    ancestors, todo, files = set[str](), ["dpo"], set[str]()
    names = {artifact: stage for stage, artifact in scene.artifacts.items()}
    while todo:
        manifest = scene.manifest(stage := todo.pop())
        if stage not in ancestors:
            ancestors.add(stage)
            todo += [names[one["artifact"]] for given in manifest["inputs"].values() for one in given]
            files.update(path.rpartition("/")[2] for path in manifest["stage"]["config"].get("paths") or [])
    scene.walk.clicks((RUN, "#runs"), ("dpo", "#live svg"))
    told = scene.lineage()
    return f"{len(ancestors)} stages, {sorted(files)}", len(ancestors) > 10 and all(one in told for one in ancestors | files)  # fmt: skip
