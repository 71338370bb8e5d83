"""Statements, their citations, and whether passages bear them out: cases worked out by hand."""

from __future__ import annotations

import pytest

from generators.grounded.attribution import attribution, refusals
from generators.grounded.citations import citations, statements
from generators.grounded.refusal import WORDINGS, declines
from generators.grounded.support import first_unsupported, stands_in, support

SHOP = (
    "# The shop\n\nThe shop is open on Wednesdays from 10:00 to 16:30. Staff pay 35 percent less, twice a\nyear up to 1,500 krone. "
    "Dagny Rook keeps it, and nobody else has the key. It may hold a piece for seven days."
)
FERRY = (
    "The first boat leaves before dawn, at 6:50. The crossing takes 55 minutes. Dogs are not allowed on the upper deck."
)


def test_statements_and_their_marks() -> None:
    said = "It opens at 10.30 a.m. on weekdays [2]. Ask Dr. Rook, e.g. by post. [1, 3]\nNo. 4 jams [1][9]!\n- [2]\n..."
    assert [(one.text, one.cited) for one in statements(said)] == [
        ("It opens at 10.30 a.m. on weekdays.", (2,)),
        ("Ask Dr. Rook, e.g. by post.", (1, 3)),
        ("No. 4 jams!", (1, 9, 2)),
    ]
    assert statements(" [1] ...") == [] and citations("So [2], and [1, 3]. Also [2] and [9].", 3) == [2, 1, 3]
    assert [one.text for one in statements("第一句。第二句 [1]。")] == ["第一句。", "第二句。"]


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("The shop closes at 16:30.", ""),
        ("The shop opens on Wednesdays at 10:00.", ""),
        ("Staff can save 35 percent.", ""),
        ("It is up to 1500 krone a year.", ""),
        ("A piece is held for 7 days.", ""),
        ("The page says that “nobody else has the key”.", ""),
        ("The page says that “everybody else has the key”.", "quote"),
        ("The shop closes at 17:30.", "number"),
        ("A piece is held for eight days.", "number"),
        ("A piece is held for 7 weeks.", "number"),
        ("The shop is kept by Fergus Mallow.", "name"),
        ("Puffins breed on cliffs near glaciers.", "words"),
        ("The shop is not open on Wednesdays.", "polarity"),
        ("The shop is closed on Wednesdays from 10:00 to 16:30.", "opposite"),
    ],
)
def test_what_a_passage_bears_out(statement: str, reason: str) -> None:
    assert support(statement, [SHOP]).reason == reason


def test_a_clause_is_held_to_the_clause_it_is_about() -> None:
    assert support("The first boat leaves at 6:50.", [FERRY]) and support(
        "Dogs are not allowed on the upper deck.", [FERRY]
    )
    assert support("Dogs are allowed on the upper deck.", [FERRY]).reason == "polarity"
    assert support("The first boat leaves after dawn.", [FERRY]).reason == "opposite"
    assert support("The shop closes at 16:30, and the crossing takes 55 minutes.", [SHOP, FERRY])
    assert support("The shop closes at 16:30, and the crossing takes 55 minutes.", [SHOP]).reason == "number"


def test_letters_of_any_spelling_are_the_same() -> None:
    assert stands_in("Ｄａｇｎｙ  rook", [SHOP]) and not stands_in("", [SHOP]) and not stands_in("Dagny Mallow", [SHOP])
    assert support("Le forêt compte 12 chênes.", ["Le fore\u0302t compte 12 che\u0302nes."])
    assert support("Le forêt compte 13 chênes.", ["Le fore\u0302t compte 12 che\u0302nes."]).reason == "number"


def test_the_first_thing_wrong_with_an_answer() -> None:
    passages = [SHOP, FERRY]
    assert not first_unsupported("The shop closes at 16:30 [1]. The crossing takes 55 minutes [2].", passages).reason
    for answer, reason in (
        ("The shop closes at 16:30.", "uncited"),
        ("The shop closes at 16:30 [3].", "unresolved"),
        ("The shop closes at 16:30 [0].", "unresolved"),
        ("The shop closes at 16:30 [2].", "number"),
        (" [1]", "empty"),
    ):
        assert first_unsupported(answer, passages).reason == reason


def test_refusals_are_told_from_answers() -> None:
    refused = [
        *WORDINGS,
        "I'm sorry, but the passages do not mention any dog.",
        "The handbook doesn’t say when.",
        "I cannot answer this from the given text.",
    ]
    answers = [
        "The shop is not open on Sundays [1].",
        "No dogs are allowed.",
        "The documents say that it opens at nine [1].",
        "You can't take a dog [2]. The documents do not say why.",
        "",
    ]
    assert all(map(declines, refused)) and [one for one in answers if declines(one)] == [answers[3]]


def test_citation_recall_and_precision_are_alces() -> None:
    """Three statements: one borne out by the first of two citations, one that needs both, one by neither; entailment is set by hand."""
    holds = {("P1", "S one."), ("P1\nP2", "S one."), ("P1\nP2", "S two.")}

    def entails(premise: str, statement: str) -> bool:
        return (premise, statement) in holds

    found = attribution("S one [1][2]. S two [1][2]. S three [1].", ["P1", "P2"], {1}, entails)
    assert found.recall == pytest.approx(2 / 3)
    # S one: [1] bears it out, [2] is in vain. S two: both are needed. S three: not borne out at all.
    assert found.precision == pytest.approx(3 / 5)
    assert found.faithful == pytest.approx(2 / 3) and found.resolved == 1.0 and found.distracted is True
    assert attribution("S one [1].", ["P1", "P2"], {1}, entails).distracted is False
    beyond = attribution("S one [1][7].", ["P1", "P2"], None, entails)
    assert beyond.resolved == 0.5 and beyond.precision == 0.5 and beyond.distracted is None
    uncited = attribution("S two.", ["P1", "P2"], None, entails)
    assert (uncited.recall, uncited.precision, uncited.faithful, uncited.resolved) == (0.0, None, 1.0, None)
    refused = attribution(WORDINGS[0], ["P1"], {1}, entails)
    assert refused.refused and refused.recall is refused.precision is refused.faithful is None


def test_refusing_has_precision_and_recall() -> None:
    found = refusals([True, True, False, False, True], [False, True, False, True, False])
    assert (found.precision, found.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert refusals([False], [True]).precision is None and refusals([False], [True]).recall is None
