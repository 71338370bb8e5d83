"""What says nothing, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators.drafts.content import echo, emptiness, fault, loop


@pytest.mark.parametrize(
    "text",
    [
        "_reduce_sum" * 8, "tf._reduce_sum" + "_reduce_sum" * 5 + "_redu", "I am a cat. " * 10, "是的" * 30,
        "1. Eat well\n2. Eat well\n3. Eat well\n4. Eat well\n5. Eat well", "Sure: " + "ab" * 30 + " done",
        "A fine start that says much, as one does, in a long sentence. " + "and then " * 8,
        "".join(f"Fact {i}: rivers run to sea number {i * 7}. " for i in range(60)) + "over and " * 12,
    ],
)  # fmt: skip
def test_loops(text: str) -> None:
    assert loop(text) and fault(text) == ("loop", loop(text))


@pytest.mark.parametrize(
    "text",
    [
        "ha ha ha ha", "0.142857142857142857142857142857142857142857142857", "1" + "0" * 60, "Paris.", "7", "+", "👍",
        "-" * 80 + "\nTitle\n" + "-" * 80, "|a|b|\n|---|---|\n|1|2|\n|3|4|", "[" + "0, " * 40 + "0]",
        "7 x 1 = 7\n7 x 2 = 14\n7 x 3 = 21\n7 x 4 = 28\n7 x 5 = 35", "He said that the the war ended.", "東京です。",
        "for i in range(3):\n        print(i)\n        print(i)\n    return i",
    ],
)  # fmt: skip
def test_answers(text: str) -> None:
    assert fault(text, "What is it?") is None


@pytest.mark.parametrize("text", ["...", "", " - ", "```\n```", "?!", "…", "。。。", "\u200b"])
def test_no_content(text: str) -> None:
    assert emptiness(text) and fault(text, "?") == ("no_content", emptiness(text))


def test_echoes() -> None:
    asked = "Name three rivers of Peru."
    for text in (
        asked,
        "name three rivers of peru",
        f"Instruction: {asked}",
        f"**{asked}**",
        f"Sure! Here is the task: {asked}",
    ):
        assert fault(text, asked) and fault(text, f"{asked}\n\nAmazon, Rhine")
    assert not echo(f"{asked} The Amazon, for one.", asked) and not echo("Amazon, Rhine", f"{asked}\n\nAmazon, Rhine")
    assert not echo("yes", "yes")  # "Say yes."


@given(st.text(min_size=1, max_size=30).filter(lambda unit: any(c.isalpha() for c in unit)), st.integers(4, 9))
def test_anything_with_a_letter_that_is_all_repetition_is_a_loop(unit: str, times: int) -> None:
    times = max(times, 80 // len(unit))
    assert loop((unit + ".") * times)
