from __future__ import annotations

import polars as pl
import pytest

from engine.errors import UserError
from engine.expression import column

FRAME = pl.DataFrame({"text": ["a" * 30, "b" * 50], "n": [1, 2]})


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 10_000 + "1" + ")" * 10_000, "NOT " * 10_000 + "true", "+".join(["1"] * 20_000), " AND ".join(["n > 0"] * 20_000),
        "LPAD(text, 1000000000, 'x')", "rpad ( text, 1000 * 1000000, 'x')", "LPAD(text, n, 'x')", "REGEXP_LIKE(text, '(((a{1000}){1000}){1000})')",
        f"REPLACE(text, 'a', REPLACE('{'a' * 5000}', 'a', '{'b' * 5000}'))", "'" + "a" * 1_000_000 + "'", "n\ud800", "\x00", "", "n; DROP",
        "read_csv('/etc/passwd')", "n IN (SELECT n FROM x)",
    ],
    ids=lambda text: text[:40].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_an_expression_without_bounds_is_refused_in_words(expression: str) -> None:
    """Polars ends the process (SIGSEGV) at 20,000 terms, and pads to a gigabyte a row."""
    with pytest.raises(UserError) as error:
        column(expression, FRAME, "`keep`")
    assert str(error.value).startswith("`keep`: ") and len(str(error.value)) < 1000


def test_what_is_honest_is_taken() -> None:
    assert column("LPAD(text, 60, 'x')", FRAME).to_list() == ["x" * 30 + "a" * 30, "x" * 10 + "b" * 50]
    assert column("REPLACE(REPLACE(text, 'a', 'x, (y)'), 'b', '')", FRAME)[1] == ""
    assert column(" OR ".join(f"n = {i}" for i in range(400)), FRAME).to_list() == [True, True]
