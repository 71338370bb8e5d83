import json
from fractions import Fraction
from pathlib import Path

import pytest

from generators.rules.mathematics.equality import is_right
from generators.rules.mathematics.numbers import agrees, final, parse

WRITTEN = [
    ("42", 42), ("The answer is 42.", 42), ("$1,234.50", Fraction("1234.5")), ("-3", -3), ("−3", -3), ("it is 25%", 25),
    ("1/2 of it", Fraction(1, 2)), ("1 1/2 cups", Fraction(3, 2)), (".5", Fraction(1, 2)), ("3 + 4 = 7", 7),
    ("1,000,000", 10**6), ("-$5", -5), ("$-5", -5), ("5-3=2", 2), ("from 10 to 12 apples", 12), ("1/0", None), ("no", None),
    ("x2y", None), ("version 1.2.3", None), ("18.0", 18), ("costs $2.", 2),
    (r"1{,}200", 1200), (r"1\,200", 1200), (r"1,\!200", 1200), (r"\frac12", Fraction(1, 2)), (r"1\frac{1}{2}", Fraction(3, 2)),
    ("1.5e3", 1500), (r"3 \times 10^{-2}", Fraction(3, 100)), ("3 × 10^8", 3 * 10**8), ("2 * 10", 10),
    (r"\frac{3}{4}", Fraction(3, 4)), (r"\$1,200", 1200), ("12 1/2%", Fraction(25, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), WRITTEN)
def test_numbers_are_read_as_people_write_them(text: str, value: Fraction | int | None) -> None:
    assert parse(text) == value


def test_the_marked_answer_counts_not_the_last_number() -> None:
    assert final("so 7.\n#### 7\nThat is 100 sure.") == 7
    assert final(r"\boxed{1/2} because 3 of 6") == Fraction(1, 2)
    assert final(r"\boxed{\dfrac{1}{2}}, not 7") == Fraction(1, 2)
    assert final(r"\boxed{\frac{\text{about {1}}}{2}} or 7") == 2  # braces are counted, however deep
    assert agrees("It is $18.00 a day.", "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18")
    assert not agrees("I don't know", "#### 18") and not agrees("18", "none")


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("25%", "25", True), ("25 %", "0.25", True), ("25 percent", "1/4", True), ("25%", "25%", True),
        ("25", "0.25", False), ("2500", "25%", False), ("0.5%", "50", False),
        ("25%", "2500%", False), ("25%", r"\boxed{\frac{1}{4}}", True),
    ],
)  # fmt: skip
def test_a_percentage_is_its_number_and_its_share(ours: str, theirs: str, same: bool) -> None:
    assert agrees(ours, theirs) is same and agrees(theirs, ours) is same


def test_a_tolerance_is_relative_to_the_reference() -> None:
    assert agrees("3.14", "3.14159", 1e-3) and not agrees("3.14", "3.14159", 1e-4) and not agrees("3.14", "3.14159")


def gsm8k() -> list[Path]:
    for folder in Path(__file__).resolve().parents:
        if found := sorted((folder / "shared" / "data" / "gsm8k").glob("*")):
            return found
    return []


@pytest.mark.skipif(not gsm8k(), reason="the GSM8K files are not on this machine")
def test_every_answer_of_gsm8k_is_read_as_the_file_says() -> None:
    rows = [json.loads(line) for file in gsm8k() if file.suffix == ".jsonl" for line in file.read_text().splitlines()]
    assert len(rows) >= 7473
    for row in rows:
        written = row["answer"].split("####")[1].strip()
        assert final(row["answer"]) == Fraction(written.replace(",", "").replace("$", ""))
        value = Fraction(written.replace(",", ""))
        assert is_right(row["answer"], row["answer"]) and is_right(f"It is {written}.", row["answer"])
        assert not is_right(f"It is {value + 1}.", row["answer"]) and not is_right("I don't know.", row["answer"])
        assert agrees(f"The answer is ${float(value):,.2f}.", row["answer"]) and not agrees(
            f"It is {value + 1}.", row["answer"]
        )
