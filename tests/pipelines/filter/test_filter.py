from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from engine.errors import StageFailed, UserError
from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.filter.language import model
from pipelines.filter.language_codes import LANGUAGES
from pipelines.filter.stage import Filter

Build = Callable[..., Artifact]
Given = Callable[[str, list[dict[str, Any]]], Artifact]
PROSE = "The people of the town have to be with the river and that is what they said of it all winter. " * 4


def documents(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "parents": [], "text": text} for i, text in enumerate(texts)]


def test_gopher_quality_removes_by_the_rule_that_was_broken(build: Build, given: Given) -> None:
    broken = {
        "gopher_words": "too short to be of use and that is it",
        "gopher_mean_word_length": "of the a b c d e f g h i j " * 10,
        "gopher_hash_ratio": PROSE + "# " * 20,
        "gopher_ellipsis_ratio": PROSE.replace("river", "river...").replace("town", "town…").replace("be", "be..."),
        "gopher_bullet_lines": PROSE.replace("The", "\n- the").strip(),
        "gopher_ellipsis_lines": PROSE.replace(". ", "...\n"),
        "gopher_alpha_words": PROSE + "12345 " * 40,
        "gopher_stop_words": "der schnelle braune Fuchs springt über den faulen Hund " * 8,
    }
    texts = [PROSE, *broken.values()]
    clean = build("filter", {"documents": given("Document", documents(texts))}, rules=["gopher_quality"])
    assert clean.to_table().column("text").to_pylist() == [PROSE]
    rejected = clean.rejected()
    assert rejected is not None
    assert rejected.column("reason").to_pylist() == list(broken)
    assert rejected.column("text").to_pylist() == texts[1:]
    assert rejected.column("detail").to_pylist()[0] == "10"
    assert not any(rejected.column("failed").to_pylist())
    assert clean.manifest["rejected"] == dict.fromkeys(sorted(broken), 1)


def test_the_other_sets(build: Build, given: Given) -> None:
    lines = [" ".join(f"w{i}x{k}" for k in range(8)) + "." for i in range(20)]
    good = "\n".join(lines)
    texts = {
        "good": good,
        "again": "\n".join(lines[:12] + lines[:8]),
        "phrase": " ".join(f"see here now then word{i}" for i in range(40)),
        "short": "\n".join(line[:28] + "." for line in lines),
        "open": good.replace(".", ""),
        "code": good + " {",
        "latin": good + " Lorem IPSUM.",
        "brief": "One. Two.",
    }
    rows = given("Document", [{"id": name, "parents": [], "text": text} for name, text in texts.items()])

    def reasons(*rules: str) -> dict[str, str]:
        rejected = build("filter", {"documents": rows}, rules=list(rules)).rejected()
        assert rejected is not None
        return dict(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True))

    repetition = reasons("gopher_repetition")
    assert repetition["again"] == "gopher_duplicate_lines"
    assert repetition["phrase"] == "gopher_top_2gram" and "good" not in repetition
    fineweb = reasons("fineweb")
    assert (fineweb["again"], fineweb["short"], fineweb["open"]) == (
        "fineweb_duplicate_line_characters", "fineweb_short_lines", "fineweb_terminal_lines",
    )  # fmt: skip
    assert "good" not in fineweb
    c4 = reasons("c4")
    assert (c4["brief"], c4["code"], c4["latin"]) == ("c4_sentences", "c4_curly_brackets", "c4_lorem_ipsum")
    assert "good" not in c4


def test_bounds_and_rules_of_ones_own(build: Build, given: Given) -> None:
    rows = given("Document", documents(["one two three", "one", "ONE two", "one two three four five"]))
    clean = build(
        "filter", {"documents": rows}, min_words=2, max_words=4,
        keep={"lower": "text = LOWER(text)", "has_three": "STRPOS(text, 'three') > 0 AND words < 9"},
    )  # fmt: skip
    assert clean.to_table().column("id").to_pylist() == ["d0"]
    rejected = clean.rejected()
    assert rejected is not None
    assert dict(zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True)) == {
        "d1": "min_words", "d2": "lower", "d3": "max_words",
    }  # fmt: skip
    easy = build("filter", {"documents": rows}, rules=["gopher_quality"], bounds={
        name: [None, None] for name in ("gopher_words", "gopher_mean_word_length", "gopher_stop_words")
    })  # fmt: skip
    assert easy.rows == 4


CHINESE = (
    "昨天下午我和朋友一起去了城市中心的图书馆，我们在那里读了很多有趣的书，然后在附近的咖啡馆喝了咖啡，并且讨论了关于历史和科学的许多问题，"
    "最后我们决定下个星期再去一次，因为那里的环境非常安静，适合学习和思考。量子计算机利用叠加和纠缠来处理信息，研究人员认为它将来可以解决"
    "传统计算机无法解决的难题，例如药物设计、密码分析以及材料模拟，但是目前仍然面临着误差率高和稳定性差等重大挑战。"
)
THAI = "เมื่อวานนี้ฉันไปห้องสมุดกับเพื่อนเราอ่านหนังสือที่น่าสนใจมากมายแล้วไปดื่มกาแฟที่ร้านใกล้ๆและคุยกันเรื่องประวัติศาสตร์"
JAPANESE = (
    "村のパン屋さんが毎日十四個のパンを売り、日曜日には二十個のパンを売るとすると、一週間に全部で何個売りますか。"
)


def test_texts_without_spaces_have_words(build: Build, given: Given) -> None:
    texts = [CHINESE, THAI, JAPANESE, "我们在读书。", "Two words", "hyphen-ated words, don’t count as one-two-three"]
    clean = build("filter", {"documents": given("Document", documents(texts))}, min_words=20)
    assert clean.to_table()["text"].to_pylist() == [CHINESE, THAI, JAPANESE]
    gone = clean.rejected()
    assert gone is not None
    assert gone["detail"].to_pylist() == ["5", "2", "10"] and set(gone["reason"].to_pylist()) == {"min_words"}
    lines = build("filter", {"documents": given("Document", documents([f"{CHINESE}\n我们\n{THAI}"]))}, lines="fineweb")
    assert lines.to_table()["text"].to_pylist() == [f"{CHINESE}\n{THAI}"]
    heuristics = build("filter", {"documents": given("Document", documents(texts[:3]))}, rules=["gopher_repetition"])
    assert heuristics.rows == 3


def test_messages(build: Build, given: Given) -> None:
    rows = given("Document", documents(["one"]))
    with pytest.raises(ValidationError, match="Did you mean `gopher_words`"):
        build("filter", {"documents": rows}, rules=["gopher_quality"], bounds={"gopher_wrods": [1, 2]})
    with pytest.raises(UserError, match=r"keep\.long.*expected true or false"):
        build("filter", {"documents": rows}, keep={"long": "LENGTH(text)"})
    with pytest.raises(UserError, match="Did you mean `text`"):
        build("filter", {"documents": rows}, keep={"long": "LENGTH(txet) > 3"})
    with pytest.raises(StageFailed, match=r"no row came out: min_words \(1\)"):
        build("filter", {"documents": rows}, min_words=5)


PAGE = """Home
The first sentence of the article ends here.[1]
The second line has no full stop at its end

Please enable Javascript to see all of this page.
We use cookies, as our cookie policy says at length.
Too short.
"A quotation may well end a line, too."

The end[edit] of it all is here, my friend!
"""


def test_c4_and_fineweb_remove_lines_and_say_how_many(build: Build, given: Given) -> None:
    rows = given(
        "Document", documents([PAGE, "No line of this one stays\nnot one", "This one stays as it was, I think."])
    )
    ends = '"A quotation may well end a line, too."\n\nThe end of it all is here, my friend!'
    clean = build("filter", {"documents": rows}, lines="c4")
    one, two = clean.to_table().to_pylist()
    assert one["text"] == f"The first sentence of the article ends here.\n\n{ends}"
    assert (one["parents"], two["id"], two["parents"]) == (["d0"], "d2", []) and one["id"] != "d0"
    gone = clean.rejected()
    assert gone is not None
    assert gone.select(["id", "reason", "detail"]).to_pylist() == [
        {"id": "d1", "reason": "no_lines", "detail": "2 lines, none left"}
    ]
    assert clean.manifest["summary"]["lines_removed"] == {
        "c4_terminal": 4, "c4_citation": 2, "c4_javascript": 1, "c4_policy": 1, "c4_short_line": 1,
    }  # fmt: skip
    fine = build("filter", {"documents": rows}, lines="fineweb").to_table().to_pylist()
    assert (
        [r["id"] for r in fine[1:]] != []
        and "no full stop at its end" in fine[0]["text"]
        and "Home" not in fine[0]["text"]
    )


def test_the_languages_that_a_recipe_may_name_are_the_models() -> None:
    labels, _ = model().predict("", k=-1, threshold=-1.0)
    assert {label.removeprefix("__label__") for label in labels} == LANGUAGES


# One sentence in fifteen languages, in six scripts.
SENTENCES = {
    "en": "The government said on Monday that it would not change the law before the next election.",
    "de": "Die Regierung erklärte am Montag, dass sie das Gesetz vor der nächsten Wahl nicht ändern werde.",
    "fr": "Le gouvernement a déclaré lundi qu'il ne modifierait pas la loi avant les prochaines élections.",
    "es": "El gobierno dijo el lunes que no cambiaría la ley antes de las próximas elecciones.",
    "it": "Il governo ha detto lunedì che non avrebbe cambiato la legge prima delle prossime elezioni.",
    "nl": "De regering zei maandag dat ze de wet niet zou veranderen voor de volgende verkiezingen.",
    "pt": "O governo disse na segunda-feira que não mudaria a lei antes das próximas eleições.",
    "sv": "Regeringen sade på måndagen att den inte skulle ändra lagen före nästa val.",
    "pl": "Rząd powiedział w poniedziałek, że nie zmieni prawa przed następnymi wyborami.",
    "ru": "Правительство заявило в понедельник, что не изменит закон до следующих выборов.",
    "zh": "政府周一表示,在下次选举之前不会修改法律。",
    "ja": "政府は月曜日、次の選挙まで法律を変えないと述べた。",
    "ar": "قالت الحكومة يوم الاثنين إنها لن تغير القانون قبل الانتخابات القادمة.",
    "tr": "Hükümet pazartesi günü bir sonraki seçimden önce yasayı değiştirmeyeceğini söyledi.",
    "fi": "Hallitus sanoi maanantaina, ettei se muuta lakia ennen seuraavia vaaleja.",
}


def test_languages(build: Build, given: Given) -> None:
    rows = given("Document", [{"id": k, "parents": [], "text": t} for k, t in {**SENTENCES, "none": "12 34"}.items()])
    clean = build("filter", {"documents": rows}, languages=["en", "de", "ja"])
    kept = clean.to_table().to_pylist()
    assert [(r["id"], r["language"]) for r in kept] == [("en", "en"), ("de", "de"), ("ja", "ja")]
    assert all(0.65 <= r["language_score"] <= 1 for r in kept)
    gone = clean.rejected()
    assert gone is not None
    told = {r["id"]: (r["reason"], r["detail"]) for r in gone.to_pylist()}
    assert told.pop("none")[0] == "language_score"
    for code, (reason, detail) in told.items():
        assert reason == "language" and detail.split()[0] == code
    assert clean.manifest["summary"]["languages_found"]["fr"] == 1
    many = build(
        "filter", {"documents": rows}, languages=["en"], keep={"sure": "language_score > 0.5"}, min_language_score=0
    )
    assert many.to_table()["id"].to_pylist() == ["en"]
    with pytest.raises(ValidationError, match=r"`english` is no language"):
        build("filter", {"documents": rows}, languages=["english"])


def test_personal_data_is_masked_counted_or_reason_to_go(build: Build, given: Given) -> None:
    card = "4111 1111 1111 1111"
    texts = [
        "Nothing here.",
        "Write to x@y.org or z@y.org.",
        "From 8.8.8.8 it came.",
        f"Pay {card}, x@y.org.",
        "Ring +49 30 901820.",
    ]
    rows = given("Document", documents(texts))
    actions = {"email": "mask", "ip": "count", "card": "remove", "phone": "mask"}
    clean = build("filter", {"documents": rows}, pii=actions)
    kept = clean.to_table().to_pylist()
    assert [r["text"] for r in kept] == [texts[0], "Write to <EMAIL> or <EMAIL>.", texts[2], "Ring <PHONE>."]
    assert [r["parents"] for r in kept] == [[], ["d1"], [], ["d4"]]
    gone = clean.rejected()
    assert gone is not None
    assert gone.select(["id", "reason", "detail", "text"]).to_pylist() == [
        {"id": "d3", "reason": "pii_card", "detail": "1 found", "text": texts[3]}
    ]
    assert clean.manifest["summary"]["pii_found"] == {
        "email": {"action": "mask", "found": 3, "documents": 2},
        "ip": {"action": "count", "found": 1, "documents": 1},
        "card": {"action": "remove", "found": 1, "documents": 1},
        "phone": {"action": "mask", "found": 1, "documents": 1},
    }
    with pytest.raises(ValidationError, match="`ZZ` is no country"):
        build("filter", {"documents": rows}, pii={"phone": "mask"}, phone_region="ZZ")


def test_what_is_told_adds_up_whatever_was_killed(store: Store, given: Given) -> None:
    texts = ["one " * (i % 9 + 1) + ("x@y.org" if i % 5 == 0 else "") for i in range(25_000)]
    rows = given("Document", documents(texts))
    stage = Filter(min_words=3, max_words=7, pii={"email": "count"}, keep={"not_five": "words <> 5"})

    def killed(event: dict[str, Any]) -> None:
        if event["event"] == "commit" and event["part"].startswith("00001"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(store, "filter", stage, {"documents": {"rows": rows}}, emit=killed)
    made = carry_out(store, "filter", stage, {"documents": {"rows": rows}})
    count = [i % 9 + 1 + 3 * (i % 5 == 0) for i in range(len(texts))]  # an address is three words
    summary = made.manifest["summary"]
    assert summary["documents"] == len(texts) == made.rows + sum(made.manifest["rejected"].values())
    assert summary["break_rule"] == {
        "min_words": sum(c < 3 for c in count), "max_words": sum(c > 7 for c in count), "not_five": sum(c == 5 for c in count),
    }  # fmt: skip
    assert summary["pii_found"]["email"]["found"] == sum(
        "@" in t for t, c in zip(texts, count, strict=True) if 3 <= c <= 7 and c != 5
    )
    drawn = json.loads(store.read("artifacts", made.id, "histograms.json"))["words"]
    assert drawn["bounds"] == [3, 7] and drawn["edges"][:5] == [0, 1, 2, 4, 8]
    expected = np.histogram(count, drawn["edges"])[0]
    assert (np.array(drawn["kept"]) + drawn["removed"]).tolist() == expected.tolist()
    assert sum(drawn["kept"]) == made.rows and drawn["kept"][:2] == [0, 0]
