"""A method with a real engine: whatever random weights say, every draft is a row or has its reason, twice the same."""

from __future__ import annotations

from typing import Any

from generators.backend import Local
from generators.instructions import Instructions
from generators.prompting import load_tokenizer


def test_a_random_model_writes_instructions(
    given: Any, build: Any, monkeypatch: Any, tiny_wide: Any, wide: Any, tmp_path: Any
) -> None:
    class Kept(Local):
        def close(self) -> None:  # the engine is the session's
            pass

    monkeypatch.setattr(
        "generators.synthesis.open_backend", lambda *a, **k: (Kept(wide, load_tokenizer(str(tiny_wide))), "random")
    )
    pages = [{"id": f"{i:032x}", "parents": [], "text": f"Page {i}.", "source": "w", "offset": i} for i in range(12)]
    config: dict[str, Any] = {"max_tokens": 48, "temperature": 1.0, "max_failed": 1.0, "partition": 5}
    made = build(
        Instructions,
        {"records": given("Document", pages)},
        method={"name": "backtranslation", "threshold": 1},
        **config,
    )
    reasons = made.manifest["summary"]["reasons"]
    assert made.rows + sum(reasons.values()) == 12 and made.rows
    assert set(reasons) <= {"cut_off", "empty", "not_novel", "invalid_json"}
    again = build(
        Instructions, {"records": given("Document", pages)}, method={"name": "backtranslation", "threshold": 1},
        **{**config, "tries": 21},
    )  # fmt: skip
    assert again.to_polars().equals(made.to_polars())
