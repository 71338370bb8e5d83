from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.store import Artifact

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]


def test_rows_that_share_a_passage_go_and_name_it(build: Build, given: Given) -> None:
    passage = "the quick brown fox jumps over the lazy dog near the old river bank"  # 14 words
    evaluation = given("Prompt", [
        {"id": "long", "parents": [], "prompt": [{"role": "user", "content": f"Say: {passage} today."}]},
        {"id": "short", "parents": [], "prompt": [{"role": "user", "content": "What is the capital of Peru?"}]},
        {"id": "tiny", "parents": [], "prompt": [{"role": "user", "content": "Why?"}]},
    ])  # fmt: skip
    texts = {
        "copy": f"So he wrote: THE QUICK, brown fox jumps over the lazy dog near the old river {'x ' * 5}",  # 13 of them
        "less": " ".join(passage.split()[:12]) + " and more",
        "asks": "Quiz. What is the capital of Peru? Lima.",
        "why": "Why? Because.",
    }
    rows = [{"id": name, "parents": [], "text": text} for name, text in texts.items()]
    clean = build("decontaminate", {"documents": given("Document", rows), "against": evaluation})
    assert clean.kind == "Document"
    assert clean.to_table(["id"])["id"].to_pylist() == ["less", "why"]
    rejected = clean.rejected()
    assert rejected is not None
    assert dict(zip(rejected["id"].to_pylist(), rejected["touched"].to_pylist(), strict=True)) == {
        "copy": "long", "asks": "short",
    }  # fmt: skip
    assert rejected["detail"].to_pylist()[0] == "long: the quick brown fox jumps over the lazy dog near the old river"

    chats = given("Conversation", [{"id": "c", "parents": [], "messages": [
        {"role": "user", "content": "What is the capital"}, {"role": "assistant", "content": "of Peru? is Lima"}]},
        {"id": "d", "parents": [], "messages": [{"role": "user", "content": "Hello"}]}])  # fmt: skip
    left = build("decontaminate", {"documents": chats, "against": evaluation})
    assert left.kind == "Conversation" and left.to_table(["id"])["id"].to_pylist() == ["d"]
