"""`grounded_qa`: questions and answers made from documents, each answer citing the passages it rests on, to train or examine a model that
answers from documents.

A passage is drawn, and a model writes what one could ask of it, the answer, and the words of the passage that bear the answer out. What
these rows are like:

    one_hop        one passage answers
    multi_hop      two passages of different places are needed, and each statement cites its own
    conversation   further questions that lean on what was said before
    unanswerable   a question that the documents seem to be about and do not answer; the answer says so

An answer is kept if every one of its statements is borne out by the passages it cites (`support.py`), and, with `judged`, if the model says so,
too. Beside the passages that answer a question stand `distractors`, found by the same retrieval that will find them later (RAFT; Zhang
et al., 2024, arXiv:2403.10131); of a share of the rows the right ones are left out, and the answer says that it is not there.

A small writer keeps to neither JSON nor a passage: with `answers: extracted` a sentence of the passage is the answer, and the model writes the
question alone (as in back-translation; Li et al., 2023, arXiv:2308.06259).

With `questions`, whose answers are known, no model writes: the passages that bear their answers out are looked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.stage import Stage, port
from generators.backends.answerer import check_answerer
from generators.backends.protocol import EngineName, NucleusShare
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings
from generators.text import own_templates
from generators.text.own_templates import OwnTemplates

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight
    from generators.text.templates import Template

Form = Literal["one_hop", "multi_hop", "conversation", "unanswerable"]
SAID = "messages with `role` and `content`"
PASSAGES = "texts of passages"


class GroundedQa(Stage):
    """Make questions and answers with citations from documents: for SFT, for preferences, or as an exam."""

    takes = {
        "documents": port("Document", many=True),
        "questions": port("Conversation", many=True, optional=True),
        "model": port("Model", optional=True),
    }
    gives = "Conversation"
    phase = "generation"
    version = 2
    work = "generators.grounded.qa:make"
    whole = ("documents",)
    residents = ("model",)
    random = True
    template_variables = {
        "question": {"text": "the passage to ask about"},
        "backward": {"text": "the passage", "sentence": "the sentence of it that is the answer"},
        "several": {"passages": "texts of the two passages that the question needs"},
        "follow_up": {"text": "the passage to ask about", "messages": f"what was said so far: {SAID}"},
        "beyond": {"passages": f"{PASSAGES} that the question should sound like, and that don't answer it"},
        "answerable": {"question": "what is asked", "passages": PASSAGES},
        "follows": {"statement": "one sentence of an answer", "passages": f"{PASSAGES} that it cites"},
        "shown": {
            "question": "what the user says",
            "passages": f"{PASSAGES} that the user's message shows; may be none",
        },
        "reply": {"answer": "the answer, with its citations"},
    }

    give: Literal["conversations", "preferences", "prompts"] = Field(
        "conversations",
        description="conversations: for SFT. preferences: beside each answer one that the model gives without the passages. prompts: an "
        "exam, the question alone with its answer as the reference.",
    )
    count: int | None = Field(
        None, ge=1, description="Rows to deliver; with `questions` all that can be made if left out."
    )
    forms: dict[Form, float] = Field(
        {"one_hop": 0.5, "multi_hop": 0.2, "conversation": 0.15, "unanswerable": 0.15},
        description="Share of each form among the drafts; they add up to 1.",
    )
    answers: Literal["written", "extracted"] = Field(
        "written",
        description="extracted: a sentence of the passage is the answer to `one_hop`, and the model writes the question alone.",
    )
    turns: int = Field(3, ge=2, description="Questions of a conversation.")
    words: int = Field(150, ge=1, description="Words of a passage, by white space.")
    overlap: int = Field(30, ge=0, description="Words that a passage has in common with the one before.")
    distractors: int = Field(3, ge=0, description="Passages shown beside those that answer.")
    left_out: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of rows without the passages that answer; the answer then says that it is not there.",
    )
    passages: Literal["shown", "hidden"] = Field(
        "shown", description="hidden: the question alone, to be answered from memory, without citations."
    )
    judged: bool = Field(
        False, description="Have the model say, too, whether each statement follows from what it cites."
    )
    tries: float = Field(4, gt=0, description="Most drafts, as a multiple of `count`.")
    temperature: float = Field(0.7, ge=0, le=10, description="0 is greedy.")
    top_p: NucleusShare = 1.0
    max_tokens: int = Field(512, ge=1, description="Longest thing the model says in one step, in tokens.")
    partition: int = Field(64, ge=1, description="Drafts in one batch of the engine, and one file.")
    engine: EngineName = Field("vllm", description="vllm, or transformers: slow, but runs anywhere.")
    server: ServerSettings | None = Field(
        None, description="An OpenAI-compatible server that writes instead of a model."
    )
    template: OwnTemplates = {}

    @model_validator(mode="after")
    def _check(self) -> GroundedQa:
        if self.overlap >= self.words:
            raise ValueError(f"`overlap: {self.overlap}` should be less than `words: {self.words}`")
        if any(share < 0 for share in self.forms.values()) or not math.isclose(sum(self.forms.values()), 1):
            raise ValueError(f"`forms` needs shares that add up to 1, found {self.forms}")
        if self.answers == "extracted" and any(self.forms.get(one) for one in ("multi_hop", "conversation")):
            raise ValueError("`answers: extracted` is for the forms one_hop and unanswerable: give `forms`")
        if self.passages == "hidden" and (self.give == "prompts" or self.left_out):
            raise ValueError("`passages: hidden` is for conversations and preferences, and leaves nothing to leave out")
        own_templates.check_inline(self.template, list(self.template_variables), self.template_variables)
        return self

    def asks(self) -> bool:
        return self.server is not None

    def output(self, given: dict[str, list[str]]) -> str:
        return {"conversations": "Conversation", "preferences": "Preference", "prompts": "Prompt"}[self.give]

    def identity(self) -> dict[str, Any]:
        identity = {**super().identity(), "server": self.server.identity() if self.server else None}
        identity.pop("template")
        return {**identity, **own_templates.identity(self.template, list(self.template_variables))}

    def sources(self, base: str) -> dict[str, str]:
        return own_templates.sources(self.template, list(self.template_variables), base)

    def check(self, known: Preflight) -> None:
        self.templates(known.base)
        self.require({port: len(inputs) for port, inputs in known.inputs.items()})
        check_servers(known, self.server)

    def require(self, given: dict[str, int]) -> bool:
        """Whether a model is asked. `given`: inputs by port.

        Raises:
            UserError: one is needed and there is none, or there are two; or nobody says how many rows to make.
        """
        asked = int(bool(given.get("model"))) + int(self.server is not None)
        if not given.get("questions"):
            if self.count is None:
                raise UserError("how many? Give `count`, or `questions` with known answers.")
        elif not asked:
            if self.judged or self.give == "preferences":
                what = "`judged`" if self.judged else "`give: preferences`"
                raise UserError(f"{what} asks a model: name one (`from: {{model: ...}}`), or a `server`.")
            return False
        check_answerer(int(bool(given.get("model"))), int(self.server is not None))
        return True

    def templates(self, base: str | Path) -> dict[str, Template]:
        """The recipe's own templates, by the names that drafts ask by."""
        own = own_templates.load(self.template, list(self.template_variables), self.template_variables, base)
        return {f"grounded_qa/{name}": one for name, one in own.items()}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.count
