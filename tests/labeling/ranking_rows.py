"""Rows for tests of labelling: candidates, rankings of them, and the pairs that came out."""

from __future__ import annotations

from typing import Any

from engine.store.schema import row_id


def candidates(prompts: int, answers: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"p{p}-{a}",
            "parents": [],
            "prompt_id": f"p{p}",
            "prompt": [{"role": "user", "content": f"q{p}"}],
            "completion": [{"role": "assistant", "content": f"answer {a}"}],
            "sample": a,
        }
        for p in range(prompts)
        for a in range(answers)
    ]


def ranking(
    prompt_id: str, annotator: str, order: dict[str, int | None], kind: str = "person", **more: Any
) -> dict[str, Any]:
    texts = list(order)
    row = {
        "id": row_id("Ranking", prompt_id, annotator, str(order)),
        "parents": [],
        "prompt_id": prompt_id,
        "prompt": [{"role": "user", "content": f"What about {prompt_id}?"}],
        "candidates": [f"{prompt_id}-{text}" for text in texts],
        "completions": texts,
        "ranks": list(order.values()),
        "shown": list(range(len(texts))),
        "annotator": annotator,
        "annotator_kind": kind,
        "flags": [],
    }
    return {**row, **more}


def kept(artifact: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["chosen_id"], r["rejected_id"]): r for r in artifact.to_table().to_pylist()}
