"""`flywheel ask` over a folder of 200 documents, by the command line, with SmolLM2-135M where `make weights` installed it."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim
from benchmarks.parts.retrieval import DOCSTRINGS, docstrings
from benchmarks.real import flywheel, gguf_file

DOCUMENTS = 200
# What can't be answered from the documents, and the way in which that is said.
BEYOND = {
    "Qwxyz vrtplk?": "no passage has a word of it",
    "図書館はどこですか。": "another script",
    "Who won the chess championship of the year 1927?": "whatever the model makes of it",
}


def library(folder: Path, documents: int = DOCUMENTS) -> list[str]:
    """A folder of so many text files, each of some docstrings; a question for each."""
    texts = docstrings()[:DOCSTRINGS]
    share = len(texts) // documents
    questions: list[str] = []
    for number in range(documents):
        its = texts[number * share : (number + 1) * share]
        text = "\n\n".join(f"{first}\n\n{rest}" for _, first, rest in its)
        (folder / f"{number:03d}.txt").write_text(text)
        questions.append(f"Which part of the library is this of: {its[0][1]}")
    return questions


def claims() -> list[Claim]:
    """The first answer, later ones, and what is said of questions that the documents don't hold."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "documents").mkdir()
        questions = library(folder / "documents")
        model = str(gguf_file())

        def ask(question: str) -> tuple[float, dict[str, Any]]:
            began = time.monotonic()
            said = flywheel(folder, "ask", "--docs", "documents", "--model", model, "--json", question)
            return round(time.monotonic() - began, 1), json.loads(said)

        first, _ = ask(questions[0])
        later = sorted(ask(question)[0] for question in questions[1:6])
        beyond = {question: ask(question)[1]["lacking"] for question in BEYOND}
    return [
        claim("first answer on a folder of 200 documents, s", first, "< 60", first < 60),
        claim("later answers, s", later[-1], "< 15", later[-1] < 15, all=later),
        claim("what is said where the documents don't hold it", beyond, "told", all(list(beyond.values())[:2])),
    ]
