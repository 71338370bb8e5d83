"""Our annotation schema as a labeling config of Label Studio.

Each answer has its rank under its heading, as one of the numbers 1 to n: two answers may have the same one. Label
Studio's `Ranker` sorts cards into a list, which has no ties; `Rating` counts stars, of which more are better, where
rank 1 is best; `Number` is typed, and takes 0 and 2.5 unless told otherwise. `Pairwise` has no tie, either.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from engine.errors import UserError
from labeling.tool.task import RATINGS, RankingTask

TIE = "tie"
PROMPT, CORRECTION, FLAGS, BETTER = "prompt", "correction", "flags", "better"  # names of tags
KEYS = ("1234567890", "qwertyuiop", "asdfghjkl;", "zxcvbnm,./")  # a row of the keyboard for each answer
STYLE = """
.flywheel-answers { display: flex; gap: 16px; align-items: stretch; margin-top: 16px; overflow-x: auto; }
.flywheel-answer { flex: 1 1 0; min-width: 240px; padding: 8px 12px; border: 1px solid #d9d9d9; border-radius: 6px; }
.lsf-paragraphs [class*="dialoguetext"] { white-space: pre-wrap; }
.lsf-paragraphs [class*="wrapper_header"], .lsf-paragraphs [class*="time--"], .lsf-paragraphs [class*="selectAllBtn"]
{ display: none; }
"""


def rank_of(label: str) -> str:
    """The name of the tag that asks for an answer's rank."""
    return f"rank-{label}"


def rating_of(aspect: str, label: str) -> str:
    return f"{aspect}-{label}"


def labeling_config(task: RankingTask) -> str:
    """The task as XML. Texts of records are no part of it: they are named (`$a`) and come with each record."""
    root = Element("View")
    SubElement(root, "Style").text = STYLE
    if task.chat:
        SubElement(
            root, "Paragraphs", name=PROMPT, value=f"${PROMPT}", valueType="json", layout="dialogue", nameKey="role",
            textKey="content",
        )  # fmt: skip
    else:
        SubElement(root, "Text", name=PROMPT, value=f"${PROMPT}", valueType="text")
    if task.asked == "ranking":
        best = "Rank the answers: 1 is the best, equal answers share a rank"
        SubElement(root, "Header", value=best if task.top is None else _best_only(task.top), size="5")
    answers = SubElement(root, "View", className="flywheel-answers")
    for place, label in enumerate(task.labels):
        answer = SubElement(answers, "View", className="flywheel-answer")
        SubElement(answer, "Header", value=f"Answer {label.upper()}", size="4")
        if task.asked == "ranking":
            _ranks(answer, task, place)
        for aspect in task.aspects:
            SubElement(answer, "Header", value=aspect.replace("_", " "), size="6")
            SubElement(
                answer, "Rating", name=rating_of(aspect, label), toName=label, maxRating=str(RATINGS[-1]),
                required="true", requiredMessage=f"Rate answer {label.upper()}: {aspect.replace('_', ' ')}",
            )  # fmt: skip
        SubElement(answer, "Text", name=label, value=f"${label}", valueType="text")
    if task.asked == "pairwise":
        SubElement(root, "Header", value="Which answer is better?", size="5")
        better = _choices(root, BETTER, PROMPT, "single-radio", "Say which answer is better, or that they are equal")
        for key, label in zip("12", task.labels, strict=True):
            SubElement(better, "Choice", value=f"Answer {label.upper()} is better", alias=label, hotkey=key)
        SubElement(better, "Choice", value="Equally good", alias=TIE, hotkey="3")
    if task.correction:
        SubElement(root, "Header", value="Write a better answer (optional)", size="5")
        SubElement(
            root, "TextArea", name=CORRECTION, toName=PROMPT, rows="4", maxSubmissions="1", editable="true",
            showSubmitButton="true",
        )  # fmt: skip
    if task.flags:
        SubElement(root, "Header", value="Anything wrong? (optional)", size="5")
        flags = _choices(root, FLAGS, PROMPT, "multiple", None)
        for flag in task.flags:
            # A value that starts with "$" would be looked up in the record.
            SubElement(flags, "Choice", value=flag.replace("$", "\uff04"), alias=flag)
    try:
        written = ElementTree.tostring(root, encoding="unicode")
        ElementTree.fromstring(written)
    except ElementTree.ParseError as error:  # a control character, which no XML may hold
        raise UserError(f"Dataset {task.name!r}: its flags can't be shown in Label Studio ({error}).") from error
    return written


def _best_only(top: int) -> str:
    return f"Rank the best {top}, and give all the others rank {top + 1}"


def _ranks(parent: Element, task: RankingTask, place: int) -> None:
    label = task.labels[place]
    ranks = _choices(parent, rank_of(label), label, "single-radio", f"Rank answer {label.upper()}")
    last = task.answers if task.top is None else task.top + 1
    keys = KEYS[place] if task.answers <= len(KEYS) else ""
    for rank in range(1, last + 1):
        choice = SubElement(ranks, "Choice", value=str(rank))
        if keys:
            choice.set("hotkey", keys[rank - 1])


def _choices(parent: Element, name: str, to: str, choice: str, required: str | None) -> Element:
    made = SubElement(parent, "Choices", name=name, toName=to, choice=choice, showInline="true")
    if required is not None:
        made.set("required", "true")
        made.set("requiredMessage", required)
    return made


def instruction(guidelines: str) -> str:
    """Guidelines as the page shows them: line by line, and no tag of theirs is one."""
    return escape(guidelines).replace("\n", "<br>")


def refuse_other_config(task: RankingTask, present: str) -> None:
    """
    Raises:
        UserError: what the project asks is not the task; headings and styles may differ.
    """
    ours, theirs = _essence(labeling_config(task)), _essence(present)
    differences = [f"{name!r} is not ours" for name in theirs if name not in ours]
    differences += [f"{name!r} is missing" for name in ours if name not in theirs]
    differences += [
        f"{name!r} is {theirs[name]}, expected {ours[name]}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    if differences:
        raise UserError(
            f"Project {task.name!r} asks something else than this task:\n"
            + "\n".join(f"  - {difference}" for difference in differences)
            + "\nIt is left as it is. Choose another dataset name, or delete that project in Label Studio."
        )


def _essence(config: str) -> dict[str, str]:
    """What is shown and asked, by name."""
    try:
        root = ElementTree.fromstring(config or "<View/>")
    except ElementTree.ParseError:
        return {}
    return {
        tag.attrib["name"]: " ".join(_words(tag, [c.get("alias") or c.get("value") or "" for c in tag.iter("Choice")]))
        for tag in root.iter()
        if "name" in tag.attrib
    }


def _words(tag: Element, options: Sequence[str]) -> list[str]:
    words = [tag.tag, *(tag.attrib[key] for key in ("toName", "value", "choice", "maxRating") if key in tag.attrib)]
    return [*words, f"({', '.join(options)})"] if options else words
