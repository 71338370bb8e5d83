"""Evaluation rows hidden in training text by how it is written: does curation find them, and nothing else?

Ten rows of each kind. In one half of the kinds the same words are spelt in another way (`HIDINGS`); in the other the row stands in
a text of a script without spaces, or with marks and directions of its own, broken into lines wherever a page ends.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

from benchmarks.parts.claims import Claim, artifact, claim
from engine.execution.worker import carry_out
from engine.store.artifact import Artifact
from engine.store.store import Store
from pipelines.decontaminate.stage import Decontaminate
from pipelines.dedup.stage import Dedup

ENGLISH = (
    "How many loaves of bread does the baker sell in a week if she sells fourteen each day?",
    "Which river flows past the old customs house before it reaches the harbour of the city?",
    "A train leaves the station at nine and arrives at noon; how far does it travel at forty miles an hour?",
    "What did the astronomer write in her diary on the night when the comet was first seen?",
    "Why does a glass of cold water gather drops on its outside during a warm summer afternoon?",
    "Name three metals that are found in the mountains north of the lake and say what each is used for.",
    "If a rectangle is twice as long as it is wide and its area is fifty, what is its perimeter?",
    "Who painted the ceiling of the small chapel that stands behind the market square of the village?",
    "Explain in two sentences why the moon seems to follow a car that drives along a straight road.",
    "How would you convince a friend who fears heights to cross the narrow bridge over the gorge?",
)
ACCENTED = (
    "Où se trouve la célèbre forêt évoquée par le poète dans ses mémoires écrites après son départ précipité ?",
    "Pourquoi l'été dernier a-t-il été jugé si sévère par les maraîchers de la vallée près de la rivière ?",
    "Wie viele Bäcker gab es früher in der größten Straße der schönen Stadt an der Mündung des Flüsschens?",
    "Welche Gründe führten dazu, dass die Brücke über den Fluß erst später für Fußgänger geöffnet wurde?",
    "¿Cuántos años tenía el niño cuando comenzó a dibujar los pájaros que veía en el jardín de su abuelo?",
    "¿Por qué dejó la señora Núñez su pequeña casa del campo y volvió después a la región de su niñez?",
    "Tại sao người dân trong làng lại chọn ngày đầu tiên của tháng giêng để bắt đầu mùa gieo trồng?",
    "Jak często żołnierze pisali listy do swoich żon, gdy stali przez całą zimę nad brzegiem Wisły?",
    "Kolik let už stojí ten starý dům u řeky, kde bydlel slavný český skladatel se svou početnou rodinou?",
    "Hvilke fugle så børnene på øen, da de gik langs stranden efter den første stærke efterårsstorm?",
)
CHINESE = (
    "如果村里的面包师每天卖出十四个面包，那么她在一个星期里一共可以卖出多少个面包？",
    "请说明为什么夏天的午后装着冷水的玻璃杯外面会出现许多小水珠。",
    "那位天文学家在第一次看见彗星的晚上在日记里写了些什么内容？",
    "火车上午九点从车站出发，中午到达海边的小城，它一共行驶了多少公里？",
    "长方形的长是宽的两倍，面积是五十平方米，请计算它的周长。",
    "谁为集市广场后面那座小教堂的天花板画了那幅著名的壁画？",
    "哪一条河流经过旧海关大楼之后才流入这座城市的港口？",
    "请列举湖泊以北的山区出产的三种金属，并说明各自的用途。",
    "为什么沿着笔直的公路开车时月亮看起来总是跟着我们走？",
    "你会怎样劝说一位怕高的朋友走过峡谷上面那座狭窄的吊桥？",
)
JAPANESE = (
    "村のパン屋さんが毎日十四個のパンを売るとすると、一週間に全部で何個のパンを売ることになりますか。",
    "夏の午後に冷たい水を入れたガラスのコップの外側に水滴がつくのはなぜですか。",
    "天文学者は初めて彗星を見た夜の日記にどのようなことを書き残しましたか。",
    "列車は午前九時に駅を出発して正午に到着します。時速六十キロメートルなら何キロ走りますか。",
    "縦が横の二倍で面積が五十平方メートルの長方形の周りの長さを求めなさい。",
    "市場の広場の裏にある小さなチャペルの天井画を描いたのは誰ですか。",
    "古い税関の建物のそばを流れてから港に注ぐ川の名前を答えなさい。",
    "湖の北にある山地で採れる金属を三つ挙げ、それぞれの使い道を説明しなさい。",
    "まっすぐな道路をドライブしているとき、月がついてくるように見えるのはなぜでしょうか。",
    "高い所が苦手な友だちに谷の上の狭いつり橋を渡ってもらうにはどう話しかけますか。",
)
THAI = (
    "คนทำขนมปังในหมู่บ้านขายขนมปังวันละสิบสี่ก้อน ในหนึ่งสัปดาห์เธอจะขายได้ทั้งหมดกี่ก้อน",
    "ทำไมแก้วที่ใส่น้ำเย็นจึงมีหยดน้ำเกาะอยู่ด้านนอกในช่วงบ่ายของฤดูร้อน",
    "นักดาราศาสตร์เขียนอะไรไว้ในบันทึกประจำวันของคืนที่เห็นดาวหางเป็นครั้งแรก",
    "รถไฟออกจากสถานีตอนเก้าโมงเช้าและถึงเมืองชายทะเลตอนเที่ยง รถไฟวิ่งได้กี่กิโลเมตร",
    "สี่เหลี่ยมผืนผ้ามีความยาวเป็นสองเท่าของความกว้างและมีพื้นที่ห้าสิบตารางเมตร จงหาความยาวรอบรูป",
    "ใครเป็นผู้วาดภาพบนเพดานของโบสถ์เล็กที่อยู่ด้านหลังลานตลาดของหมู่บ้าน",
    "แม่น้ำสายใดไหลผ่านอาคารศุลกากรเก่าก่อนที่จะลงสู่ท่าเรือของเมือง",
    "จงบอกโลหะสามชนิดที่พบในภูเขาทางเหนือของทะเลสาบและอธิบายประโยชน์ของแต่ละชนิด",
    "เหตุใดดวงจันทร์จึงดูเหมือนตามเราไปเมื่อขับรถบนถนนที่ตรงยาว",
    "คุณจะชักชวนเพื่อนที่กลัวความสูงให้เดินข้ามสะพานแขวนแคบเหนือหุบเขาได้อย่างไร",
)
KOREAN = (
    "마을의 제빵사가 매일 빵을 열네 개씩 판다면 일주일 동안 모두 몇 개의 빵을 팔게 됩니까?",
    "여름 오후에 차가운 물을 담은 유리컵 바깥쪽에 물방울이 맺히는 까닭은 무엇입니까?",
    "천문학자는 혜성을 처음 본 날 밤의 일기에 어떤 이야기를 적어 두었습니까?",
    "기차가 아침 아홉 시에 역을 떠나 정오에 바닷가 도시에 닿았다면 모두 몇 킬로미터를 달렸습니까?",
    "가로가 세로의 두 배이고 넓이가 오십 제곱미터인 직사각형의 둘레를 구하시오.",
    "시장 광장 뒤에 있는 작은 예배당의 천장에 그림을 그린 사람은 누구입니까?",
    "오래된 세관 건물 옆을 지나 도시의 항구로 흘러드는 강의 이름은 무엇입니까?",
    "호수 북쪽 산에서 나는 금속 세 가지를 들고 저마다 어디에 쓰이는지 설명하시오.",
    "곧은 길을 따라 차를 몰 때 달이 우리를 따라오는 것처럼 보이는 이유를 설명하시오.",
    "높은 곳을 무서워하는 친구에게 골짜기 위의 좁은 다리를 건너자고 어떻게 말하겠습니까?",
)
ARABIC = (
    "كم رغيفا تبيع الخبازة في الأسبوع إذا كانت تبيع أربعة عشر رغيفا كل يوم في قريتها الصغيرة؟",
    "لماذا تظهر قطرات الماء على السطح الخارجي لكأس الماء البارد في يوم صيفي حار؟",
    "ماذا كتبت عالمة الفلك في مذكراتها في الليلة التي ظهر فيها المذنب أول مرة؟",
    "غادر القطار المحطة في الساعة التاسعة ووصل عند الظهر، فكم كيلومترا قطع في الطريق؟",
    "مستطيل طوله ضعف عرضه ومساحته خمسون مترا مربعا، فما هو محيطه؟",
    "من رسم سقف الكنيسة الصغيرة التي تقع خلف ساحة السوق في القرية؟",
    "أي نهر يمر بجانب مبنى الجمارك القديم قبل أن يصل إلى ميناء المدينة؟",
    "اذكر ثلاثة معادن توجد في الجبال شمال البحيرة وبين فائدة كل واحد منها.",
    "لماذا يبدو القمر كأنه يتبعنا عندما نسير بالسيارة على طريق مستقيم طويل؟",
    "كيف تقنع صديقا يخاف من المرتفعات بأن يعبر الجسر الضيق فوق الوادي العميق؟",
)


def every(text: str, step: int, mark: str) -> str:
    """The text with a mark after every so many characters."""
    return mark.join(text[i : i + step] for i in range(0, len(text), step))


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " else c for c in text)


def half_width(text: str) -> str:
    """Katakana as the half-width forms that NFKC undoes."""
    halves = {unicodedata.normalize("NFKC", chr(point)): chr(point) for point in range(0xFF66, 0xFF9E)}
    return "".join(halves.get(c, c) for c in unicodedata.normalize("NFD", text).replace("\u3099", "\uff9e"))


ROWS = {
    "english": ENGLISH, "accented": ACCENTED, "chinese": CHINESE, "japanese": JAPANESE, "thai": THAI, "korean": KOREAN,
    "arabic": ARABIC,
}  # fmt: skip
# Kind -> the rows that are hidden, and how a training text writes them.
HIDINGS: dict[str, tuple[str, Callable[[str], str]]] = {
    "nfd": ("accented", lambda text: unicodedata.normalize("NFD", text)),
    "full_width": ("english", full_width),
    "zero_width": ("english", lambda text: every(text, 4, "\u200b").replace("e", "e\u2060") + "\ufeff"),
    "soft_hyphens": ("accented", lambda text: every(text, 3, "\u00ad")),
    "case": ("accented", str.upper),
    "line_breaks": ("english", lambda text: text.replace(" ", "\r\n    ", 3).replace(" the ", " \u2028the\u00a0\t")),
    "chinese": ("chinese", lambda text: every(text, 7, "\n")),
    "japanese": ("japanese", lambda text: every(half_width(text), 9, "\n")),
    "thai": ("thai", lambda text: every(text.replace("น้ำ", "น้\u0e4d\u0e32"), 11, "\n")),
    "korean": ("korean", lambda text: unicodedata.normalize("NFD", text).replace(" ", "\n", 4)),
    "arabic": ("arabic", lambda text: "\u202b" + text.replace("لا", "\ufefb").replace(" ", " \u200f", 5) + "\u202c"),
}
# Before and after a row; the two without a row are a text of their own, which should stay.
FRAMES = {
    "english": ("Exercise: ", " Thank you all for reading this page of the workbook to its very end."),
    "accented": ("Übung. ", " Merci d'avoir lu cette page du cahier jusqu'à la fin, et à demain."),
    "chinese": ("练习题：", "谢谢大家认真阅读这一页的全部说明。"),
    "japanese": ("練習問題：", "お疲れさまでした。今日はここまでにしましょう。"),
    "thai": ("แบบฝึกหัด: ", " ขอบคุณที่อ่านหน้านี้จนจบแล้วพบกันใหม่พรุ่งนี้"),
    "korean": ("연습 문제: ", " 오늘은 여기까지 하고 내일 다시 만나서 이야기합시다."),
    "arabic": ("تمرين: ", " شكرا لكم على قراءة هذه الصفحة كلها حتى النهاية."),
}


def hidden_rows(store: Store) -> dict[str, Any]:
    """Curate the hidden rows in this store: by method and kind how many of its rows were found; and the claims.

    `exact` and `minhash` should remove each hidden row for the row itself, `near` nine of ten rows in one text for all ten.
    """
    cells = [(kind, i) for kind in HIDINGS for i in range(len(ROWS[HIDINGS[kind][0]]))]
    clean = {f"{language} clean": before + after for language, (before, after) in FRAMES.items()}
    found, lost = {"decontaminate": _touched(store, cells, clean)}, set[str]()
    for method in ("exact", "minhash"):
        found[method] = _copies(store, method, cells, clean)
    claims = list[Claim]()
    for method, gone in found.items():
        lost |= gone.keys() & clean.keys()
        right = sum(gone.get(f"hidden {kind} {i}") == f"{HIDINGS[kind][0]} {i}" for kind, i in cells)
        claims.append(claim(f"hidden_rows_{method}", f"{right} of {len(cells)}", "all", right == len(cells)))
    near = sum(
        found["minhash"].get(f"hidden {kind} nine") == f"{language} ten" for kind, (language, _) in HIDINGS.items()
    )
    claims.append(claim("hidden_rows_near", f"{near} of {len(HIDINGS)}", "all", near == len(HIDINGS)))
    claims.append(claim("hidden_rows_clean_lost", len(lost), "0", not lost))
    kinds = {
        method: {kind: sum(f"hidden {kind} {i}" in gone for other, i in cells if other == kind) for kind in HIDINGS}
        for method, gone in found.items()
    }
    return {"kinds": kinds, "claims": claims}


def _touched(store: Store, cells: list[tuple[str, int]], clean: dict[str, str]) -> dict[str, str]:
    """Training text -> the evaluation row for which `decontaminate` removed it."""
    exam = [
        {"id": f"{language} {i}", "parents": [], "prompt": [{"role": "user", "content": row}]}
        for language, rows in ROWS.items()
        for i, row in enumerate(rows)
    ]
    training = dict(clean)
    for kind, i in cells:
        language, hide = HIDINGS[kind]
        before, after = FRAMES[language]
        training[f"hidden {kind} {i}"] = before + hide(ROWS[language][i]) + after
    inputs = {"documents": {"t": _documents(store, training)}, "against": {"e": artifact(store, "Prompt", exam)}}
    rejected = carry_out(store, "decontaminate", Decontaminate.model_validate({}), inputs).rejected()
    return {row["id"]: row["touched"] for row in rejected.to_pylist()} if rejected is not None else {}


def _copies(store: Store, method: str, cells: list[tuple[str, int]], clean: dict[str, str]) -> dict[str, str]:
    """Text -> the one that `dedup` kept in its place."""
    texts = {f"{language} {i}": row for language, rows in ROWS.items() for i, row in enumerate(rows)}
    texts |= {f"{language} ten": "\n".join(rows) for language, rows in ROWS.items()} | clean
    for kind, i in cells:
        language, hide = HIDINGS[kind]
        texts[f"hidden {kind} {i}"] = hide(ROWS[language][i])
        texts[f"hidden {kind} nine"] = hide("\n".join(ROWS[language][:-1]))
    stage = Dedup.model_validate({"method": method, "keep": "first"})
    rejected = carry_out(store, "dedup", stage, {"documents": {"d": _documents(store, texts)}}).rejected()
    return {row["id"]: row["kept_id"] for row in rejected.to_pylist()} if rejected is not None else {}


def _documents(store: Store, texts: dict[str, str]) -> Artifact:
    return artifact(store, "Document", [{"id": name, "parents": [], "text": text} for name, text in texts.items()])
