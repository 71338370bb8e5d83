"""Documents that a shortcut in deduplication would decide in another way: heavy duplicates, and chains of near-duplicates.

    python -m benchmarks.parts.chained_duplicates FOLDER [DOCUMENTS] [SEED]

A quarter of the documents each: of their own; copies, of which one text has half (a bucket of many equals); sets of a power law's
sizes around a text, each with an edit of its own; and chains, in which each document is a near-duplicate of the one before it and
drifts away from the first, so that which of them stay depends on the order of comparison and nothing else. They are shuffled, so that
sets and chains lie across all files. What comes out is known only in part: see `Truth`.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

WORDS = 120  # of a document
DRIFT = 2  # words that change from one document of a chain to the next: a Jaccard similarity of .84, and of .7 with the one after it
FILES = 7


@dataclass(frozen=True)
class Truth:
    """
    Attributes:
        documents: how many there are.
        exact: those that are a copy of another one: an exact or near method must remove at least so many.
        lone: those unlike all others: so many must stay, and one of each set, each chain, and the copied.
        groups: sets, chains and texts with copies; at least one document of each stays.
    """

    documents: int
    exact: int
    lone: int
    groups: int


def documents(count: int, seed: int = 0) -> tuple[list[str], Truth]:
    """`count` documents (a few more or less), shuffled."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choice("abcdefghijklmnoprstuvw") for _ in range(rng.randint(3, 9))) for _ in range(4000)]
    common = ["the", "be", "to", "of", "and", "that", "have", "with"]  # what Gopher's rules look for

    def drawn() -> list[str]:
        words = rng.choices(vocabulary, k=WORDS)
        for place in range(0, WORDS, 9):
            words[place] = rng.choice(common)
        return words

    def edited(words: list[str], edits: int) -> list[str]:
        changed = list(words)
        for _ in range(edits):
            changed[rng.randrange(len(changed))] = rng.choice(vocabulary)
        return changed

    quarter = count // 4
    lone = [drawn() for _ in range(quarter)]
    texts = list(lone)
    groups = exact = 0
    heavy = drawn()
    texts += [heavy] * (quarter // 2)
    exact, groups = quarter // 2 - 1, 1
    while len(texts) < 2 * quarter:
        copied = drawn()
        times = min(int(rng.paretovariate(1.1)) + 1, 200)
        texts += [copied] * times
        exact, groups = exact + times - 1, groups + 1
    while len(texts) < 3 * quarter:
        center = drawn()
        size = min(int(rng.paretovariate(1.0)) + 1, 300)
        texts += [center, *(edited(center, rng.randint(1, 2)) for _ in range(size - 1))]
        groups += 1
    while len(texts) < 4 * quarter:
        link = drawn()
        for _ in range(rng.randint(5, 60)):
            texts.append(link)
            link = edited(link, DRIFT)
        groups += 1
    rng.shuffle(texts)
    return [" ".join(words) + "." for words in texts], Truth(len(texts), exact, len(lone), groups)


def write(folder: Path, count: int, seed: int = 0) -> Truth:
    """The documents as `FILES` files of JSON lines."""
    texts, truth = documents(count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(FILES):
        rows = (json.dumps({"text": text, "number": number}) for number, text in enumerate(texts[file::FILES]))
        (folder / f"chained-{file}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return truth


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), *map(int, sys.argv[2:])))
