"""How one question with its answer is made from passages, as a draft that asks a model, reads what it says, and asks again."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine import seeds
from engine.text.words import words
from generators.backends.protocol import Sampling
from generators.drafts.drafts import YES_NO, Draft, Made, Query, Rejected, ask, assistant, user, whole, yes
from generators.grounded.citations import statements, without_marks
from generators.grounded.qa_stage import GroundedQa
from generators.grounded.refusal import WORDINGS, declines
from generators.grounded.retrieval import Passage, PassageIndex
from generators.grounded.support import sentences, stands_in, support
from generators.text.prompts import Message
from generators.text.templates import Template, Unrenderable

Claim = tuple[str, Passage]  # a statement, and the passage that it rests on
Asking = Generator[Any, Any, Any]


def _object(*names: str) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    return {
        "type": "object",
        "properties": dict.fromkeys(names, text),
        "required": [*names],
        "additionalProperties": False,
    }


ONE = _object("question", "answer", "quote")
TWO = _object("question", "first", "first_quote", "second", "second_quote")
QUESTION = _object("question")
# A question that only makes sense beside the passage.
LEANS = re.compile(
    r"\b(?:this|the|these|above|given|following) (?:passages?|texts?|documents?|excerpts?|sentences?)\b", re.IGNORECASE
)
FEWEST, MOST = 6, 40  # words of a sentence that is an answer
COMMON = frozenset(
    words(
        "a an and are as at be by can do does for from how in is it of on or that the this to was what when where which who why with you"
    )
)
TRIED = 8  # passages that are looked at, to find the one that bears an answer out


@dataclass(frozen=True)
class GroundedMade(Made):
    """A finished draft, with what it was shown.

    Attributes:
        shown: the passages in the user's message, or those that it would show.
        gold: of those, the ones that bear the answer out.
        worse: an answer to the same, given without the passages.
    """

    shown: tuple[Passage, ...] = ()
    gold: tuple[Passage, ...] = ()
    worse: str | None = None


@dataclass(frozen=True)
class KnownQuestion:
    """A question whose answer is known.

    Attributes:
        id: of the row it is from. before: what was said before it, a system message, say.
    """

    id: str
    before: list[Message]
    text: str
    answer: str
    reference: str | None


@dataclass
class QaWorld:
    """What drafts look at. Nothing in it changes.

    Attributes:
        shown, reply: templates of the user's message, and of the answer.
    """

    stage: GroundedQa
    index: PassageIndex
    questions: list[KnownQuestion]
    seed: int
    shown: Template
    reply: Template
    _orders: dict[int, list[int]] = field(default_factory=lambda: dict[int, list[int]]())

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.stage.temperature, self.stage.top_p, max_tokens=self.stage.max_tokens, logprobs=False)

    @property
    def certain(self) -> Sampling:
        return replace(self.sampling, temperature=0.0)

    def passage(self, number: int) -> Passage:
        """The passage of a draft: all of them in an order of the seed's, then all in another."""
        lap, place = divmod(number, len(self.index.passages))
        if lap not in self._orders:
            self._orders = {lap: seeds.shuffled(range(len(self.index.passages)), self.seed, "lap", lap)}
        return self.index.passages[self._orders[lap][place]]

    def draft(self, number: int) -> Draft:
        """Begin draft `number`."""
        if self.questions:
            return self._known(number, self.questions[number])
        random = seeds.generator(self.seed, "form", number)
        forms = list(self.stage.forms)
        form = forms[int(random.choice(len(forms), p=[self.stage.forms[one] for one in forms]))]
        make = {"one_hop": self._one_hop, "multi_hop": self._multi_hop, "conversation": self._conversation}
        return self._unanswerable(number) if form == "unanswerable" else make[form](number)

    # -- forms ---------------------------------------------------------------------------------------------------------

    def _one_hop(self, number: int) -> Draft:
        passage = self.passage(number)
        if self.stage.answers == "extracted":
            question, claims = yield from self._backward(number, passage)
        else:
            question, claims = yield from self._asked("question", passage, text=passage.text)
        return (yield from self._finished(number, "one_hop", [(question, claims)]))

    def _multi_hop(self, number: int) -> Draft:
        first = self.passage(number)
        near = [one for one, _ in self.index.search(first.text, TRIED) if not _overlap(one, first)]
        if not near:
            raise Rejected("no_second", "no other passage has a word in common with this one")
        second = next((one for one in near if one.document != first.document), near[0])
        answer = yield ask("grounded_qa/several", self.sampling, TWO, passages=[first.text, second.text])
        said = json.loads(answer.text)
        claims = [
            *self._claims(said["question"], said["first"], said["first_quote"], first),
            *self._claims(said["question"], said["second"], said["second_quote"], second),
        ]
        if any(all(support(claim, [one.text]) for claim, _ in claims) for one in (first, second)):
            raise Rejected("one_is_enough", f"one passage bears out both statements: {said['question'][:200]}")
        yield from self._judged(claims)
        return (yield from self._finished(number, "multi_hop", [(_asks(said["question"]), claims)]))

    def _conversation(self, number: int) -> Draft:
        passage = self.passage(number)
        question, claims = yield from self._asked("question", passage, text=passage.text)
        turns, said = [(question, claims)], [user(question), assistant(_plain(claims))]
        while len(turns) < self.stage.turns:
            question, claims = yield from self._asked("follow_up", passage, text=passage.text, messages=said)
            turns.append((question, claims))
            said += [user(question), assistant(_plain(claims))]
        return (yield from self._finished(number, "conversation", turns))

    def _unanswerable(self, number: int) -> Draft:
        passage = self.passage(number)
        near = [passage, *(one for one, _ in self.index.search(passage.text, TRIED) if not _overlap(one, passage))][:3]
        answer = yield ask("grounded_qa/beyond", self.sampling, QUESTION, passages=[one.text for one in near])
        question = _asks(json.loads(answer.text)["question"])
        found = self._distractors(question, [])
        answer = yield ask(
            "grounded_qa/answerable",
            self.certain,
            YES_NO,
            question=question,
            passages=[one.text for one in found or near],
        )
        if yes(answer):
            raise Rejected("answerable", question[:200])
        return (yield from self._finished(number, "unanswerable", [(question, [])]))

    def _known(self, number: int, one: KnownQuestion) -> Draft:
        """A question with its answer: the passage is looked for that bears all of it out."""
        made = [sentence.text for sentence in statements(one.answer)]
        for passage, _ in self.index.search(f"{one.text} {one.answer}", TRIED):
            if one.reference and not stands_in(one.reference, [passage.text]):
                continue
            if made and all(support(sentence, [passage.text], one.text) for sentence in made):
                claims = [(sentence, passage) for sentence in made]
                yield from self._judged(claims)
                return (yield from self._finished(number, "one_hop", [(one.text, claims)], one))
        raise Rejected("no_passage", f"none of the {TRIED} nearest passages bears it out: {one.answer[:200]}")

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _asked(self, prompt: str, passage: Passage, **values: Any) -> Asking:
        """A question about a passage and its claims, as the model writes them."""
        answer = yield ask(f"grounded_qa/{prompt}", self.sampling, ONE, **values)
        said = json.loads(answer.text)
        claims = self._claims(said["question"], said["answer"], said["quote"], passage)
        yield from self._judged(claims)
        return _asks(said["question"]), claims

    def _backward(self, number: int, passage: Passage) -> Asking:
        """The question that a sentence of a passage answers."""
        there = [one for one in sentences(passage.text) if FEWEST <= len(words(one)) <= MOST and one[-1] in ".!。"]
        if not there:
            raise Rejected("no_sentence", f"no sentence of {FEWEST} to {MOST} words: {passage.text[:200]}")
        sentence = " ".join(there[int(seeds.generator(self.seed, "sentence", number).integers(len(there)))].split())
        answer = yield ask("grounded_qa/backward", self.sampling, text=passage.text, sentence=sentence)
        question = re.sub(r"^\W*question\W+", "", whole(answer).partition("\n")[0], flags=re.IGNORECASE).strip(' "“”*')
        if question[-1:] not in ("?", "？"):
            raise Rejected("no_question", question[:200])
        if len(set(words(question)) & set(words(passage.text)) - COMMON) < 2:
            raise Rejected("off_the_subject", f"it has no two words in common with the passage: {question[:200]}")
        claims = [(sentence, passage)]
        yield from self._judged(claims)
        return _asks(question), claims

    def _claims(self, question: str, answer: str, quote: str, passage: Passage) -> list[Claim]:
        """The statements of an answer, if they follow from the passage.

        Raises:
            Rejected: they don't; or what should prove them isn't there.
        """
        if declines(answer):
            raise Rejected("refusal", answer[:200])
        if not stands_in(quote, [passage.text]):
            raise Rejected("no_quote", f"the passage does not say “{quote[:200]}”")
        made = [one.text for one in statements(answer)]
        if not made:
            raise Rejected("empty", "the answer says nothing")
        for one in made:
            if not (found := support(one, [passage.text], question)):
                raise Rejected("unsupported", f"“{one[:200]}”: {found.reason}: {found.detail}")
        return [(one, passage) for one in made]

    def _judged(self, claims: Sequence[Claim]) -> Asking:
        """Raises: Rejected, if the model says that a statement does not follow."""
        for statement, passage in claims if self.stage.judged else ():
            answer = yield ask(
                "grounded_qa/follows", self.certain, YES_NO, statement=statement, passages=[passage.text]
            )
            if not yes(answer):
                raise Rejected("not_entailed", statement[:200])

    def _distractors(self, question: str, claims: Sequence[Claim]) -> list[Passage]:
        """Passages that retrieval finds for a question, and that don't bear its answer out."""
        gold = [passage for _, passage in claims]
        found = [one for one, _ in self.index.search(question, self.stage.distractors + len(gold) + TRIED)]
        bare = [one for one in found if not any(_overlap(one, other) for other in gold)]
        return [one for one in bare if not any(support(claim, [one.text]) for claim, _ in claims)][
            : self.stage.distractors
        ]

    def _finished(
        self, number: int, form: str, turns: list[tuple[str, list[Claim]]], known: KnownQuestion | None = None
    ) -> Asking:
        """The conversation of a draft, as the stage gives it."""
        stage, random = self.stage, seeds.generator(self.seed, "row", number)
        refusal = WORDINGS[int(random.integers(len(WORDINGS)))]
        left_out = form != "unanswerable" and float(random.random()) < stage.left_out
        turns = turns[:1] if left_out else turns
        claims = [claim for _, some in turns for claim in some]
        gold = tuple(dict.fromkeys(passage for _, passage in claims))
        others = self._distractors(" ".join(question for question, _ in turns), claims)
        shown = [*(() if left_out else gold), *others]
        shown = [shown[i] for i in random.permutation(len(shown))]
        answerable = bool(claims) and not left_out
        asked_with = [] if stage.passages == "hidden" else shown
        said = list(known.before) if known else list[Message]()
        bare = list(said)  # the same without passages
        for turn, (question, some) in enumerate(turns):
            answer = assistant(_rendered(self.reply, answer=_cited(some, asked_with) if answerable else refusal))
            first = turn == 0 and stage.passages == "shown" and stage.give != "prompts"
            texts = [one.text for one in asked_with]
            said += [user(_rendered(self.shown, question=question, passages=texts) if first else question), answer]
            bare += [user(question), assistant(_plain(some) or refusal)]
        worse = None
        if stage.give == "preferences":
            reply = yield Query(bare[:-1], self.sampling)
            worse = whole(reply)
            same = all(support(one.text, [passage.text for passage in gold]) for one in statements(worse))
            if same if answerable else declines(worse):
                raise Rejected("no_contrast", f"without the passages, too: {worse[:200]}")
        known_answer = known.reference if known else None
        reference = (known_answer or _plain(turns[-1][1])) if answerable else None
        return GroundedMade(
            said,
            turns[0][0],
            [*([known.id] if known else []), *dict.fromkeys(one.document for one in (*gold, *shown))],
            reference,
            {"form": form, "answerable": answerable, "question": turns[-1][0]},
            shown=tuple(shown),
            gold=tuple(one for one in gold if one in shown),
            worse=worse,
        )


def _rendered(used: Template, **values: Any) -> str:
    """Raises: Rejected, where a template of the recipe's own asks for what there is not."""
    try:
        return used.render(values)
    except Unrenderable as error:
        raise Rejected("unrenderable", str(error), failed=True) from None


def _asks(question: str) -> str:
    """A question, if it makes sense by itself.

    Raises:
        Rejected: it does not.
    """
    question = without_marks(question.strip())
    if len(words(question)) < 3:
        raise Rejected("no_question", question[:200])
    if LEANS.search(question):
        raise Rejected("leans_on_the_passage", question[:200])
    return question


def _plain(claims: Sequence[Claim]) -> str:
    return " ".join(statement for statement, _ in claims)


def _cited(claims: Sequence[Claim], shown: Sequence[Passage]) -> str:
    """The statements, each with the number of the passage it rests on, where passages are shown."""
    if not shown:
        return _plain(claims)
    return " ".join(_marked(statement, shown.index(passage) + 1) for statement, passage in claims)


def _marked(statement: str, number: int) -> str:
    body, end = (statement[:-1], statement[-1]) if statement[-1] in ".!?。" else (statement, ".")
    return f"{body} [{number}]{end}"


def _overlap(one: Passage, other: Passage) -> bool:
    """Whether two passages are of the same stretch of a document, in part."""
    ends = one.start + len(one.text), other.start + len(other.text)
    return one.document == other.document and one.start < ends[1] and other.start < ends[0]
