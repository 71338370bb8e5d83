"""Wrong programs that go for their grade, and programs that go for the world outside. The long form: `python -m benchmarks.forgeries`."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.parts.escapes_to_try import escapes, settled, world
from benchmarks.parts.forgeries_to_try import RIGHT, TESTS, TRICKS
from generators.rules.sandbox.programs import Limits, grade, run, together
from generators.rules.verify import verify

LIMITS = Limits(cpu_s=1, wall_s=1.5, memory_mb=256)


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nf = sys._getframe()\nwhile f:\n    token = f.f_locals.get('order', {}).get('token') or f.f_globals.get('token')\n"
        "    f = f.f_back\nimport os\nfor fd in range(3, 64):\n    try: os.write(fd, str(token).encode())\n    except OSError: pass\nos._exit(0)",
        "import builtins\nreal = builtins.compile\nbuiltins.compile = lambda source, *a, **k: real('pass', *a, **k)\ndef add(a, b): return 0",
        "class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    ],
    ids=["frames to the token", "compile replaced", "always equal"],
)
def test_the_verifier_gives_nothing_to_a_wrong_program(program: str) -> None:
    tests = "assert add(2, 3) == 5"
    assert verify("code", [f"```python\n{program}\n```", "def add(a, b): return a + b"], [tests, tests]) == [0.0, 1.0]


def test_no_trick_forges_a_grade() -> None:
    tricks = [(f"{family}: {trick}", program) for family, ones in TRICKS.items() for trick, program in ones.items()]
    kinds = list(TESTS.values())
    jobs = [partial(grade, program, kinds[place % len(kinds)], LIMITS) for place, (_, program) in enumerate(tricks)]
    outcomes = together([*(partial(grade, RIGHT, tests) for tests in kinds), *jobs])
    right, wrong = outcomes[: len(kinds)], outcomes[len(kinds) :]
    assert all(made.ok for made in right) and len(tricks) > 70
    assert [name for (name, _), made in zip(tricks, wrong, strict=True) if made.ok] == []


def test_no_program_leaves_the_sandbox() -> None:
    with world() as outside:
        attempts = escapes(outside.told())
        chosen = attempts[::2]
        outcomes = together([partial(run, program, LIMITS) for *_, program in chosen])
        settled()
        assert [one[:2] for one, made in zip(chosen, outcomes, strict=True) if "GOT" in made.stdout] == []
        assert outside.harm() == []


def test_nor_do_the_tests_of_one() -> None:
    with world() as outside:
        chosen = escapes(outside.told())[1::6]
        outcomes = together([partial(grade, "", program, LIMITS) for *_, program in chosen])
        settled()
        assert [one[:2] for one, made in zip(chosen, outcomes, strict=True) if "GOT" in made.stdout] == []
        assert outside.harm() == []
