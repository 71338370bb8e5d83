"""The statistics of texts in plain Python: what the kernel is compared with."""

from __future__ import annotations

import re
from collections import Counter

from engine.text.words import token_spans, tokens, words
from pipelines.filter.heuristics import TERMINALS
from pipelines.filter.statistics import STOP_WORDS
from pipelines.kernels.characters import BULLETS, CLOSERS


def top_ngram(text: str, n: int) -> int:
    spans = token_spans(text)
    counts, lengths = Counter[tuple[str, ...]](), dict[tuple[str, ...], int]()
    for i in range(len(spans) - n + 1):
        gram = tuple(text[a:b] for a, b in spans[i : i + n])
        apart = sum(spans[k][1] < spans[k + 1][0] for k in range(i, i + n - 1))
        counts[gram] += 1
        lengths[gram] = max(lengths.get(gram, 0), sum(map(len, gram)) + apart)
    times, length = max(((count, lengths[gram]) for gram, count in counts.items()), default=(0, 0))
    return times * length if times > 1 else 0


def duplicate_ngrams(found: list[str], n: int) -> int:
    """As datatrove's `find_all_duplicate`."""
    seen: set[tuple[str, ...]] = set()
    repeated = at = 0
    while at < len(found) - n + 1:
        gram = tuple(found[at : at + n])
        if gram in seen:
            repeated += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return repeated


def duplicates(items: list[str]) -> tuple[int, int]:
    again = [item for i, item in enumerate(items) if item in items[:i]] if len(items) < 200 else None
    if again is None:
        seen: set[str] = set()
        again = [item for item in items if item in seen or seen.add(item)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def plain(text: str) -> dict[str, float]:
    """A row of `pipelines.filter.statistics.measure`."""
    found = tokens(text)
    rows = [line.strip() for line in text.split("\n")]
    lines = [line for line in rows if line]
    paragraphs = [p for p in re.split(r"\n{2,}", "\n".join(rows).strip("\n")) if p]
    n, m, size = max(len(found), 1), max(len(lines), 1), max(len(text), 1)
    again, again_characters = duplicates(lines)
    paragraphs_again, paragraph_characters = duplicates(paragraphs)
    return {
        "words": len(words(text)),
        "characters": len(text),
        "lines": len(lines),
        "paragraphs": len(paragraphs),
        "mean_word_length": sum(map(len, found)) / n,
        "hash_ratio": text.count("#") / n,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / n,
        "bullet_lines": sum(line.startswith(tuple(BULLETS)) for line in lines) / m,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / m,
        "alpha_words": sum(any(map(str.isalpha, word)) for word in found) / n,
        "stop_words": len(set(STOP_WORDS).intersection(found)),
        "terminal_lines": sum(line.endswith(tuple(TERMINALS)) for line in lines) / m,
        "short_lines": sum(len(line) < 30 for line in lines) / m,
        "sentences": sum(word.rstrip(CLOSERS).endswith((".", "!", "?")) for word in found),
        "duplicate_lines": again / m,
        "duplicate_line_characters": again_characters / size,
        "duplicate_paragraphs": paragraphs_again / max(len(paragraphs), 1),
        "duplicate_paragraph_characters": paragraph_characters / size,
        **{f"top_{k}gram": top_ngram(text, k) / size for k in (2, 3, 4)},
        **{f"duplicate_{k}grams": duplicate_ngrams(found, k) / size for k in range(5, 11)},
    }
