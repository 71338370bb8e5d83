"""What `sft` can know before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generators.text.learning_template import LearningTemplate, learning
from generators.text.thoughts import Reasoning
from training.models.template_check import say_example, template_of
from training.sft.examples import IGNORE, give_template, render

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


def check(known: Preflight, reasoning: Reasoning) -> None:
    """Open the model's chat template, and say the first conversation as the model will see it.

    Raises:
        UserError: the model could not learn from its template.
    """

    def read(tokenizer: Any) -> LearningTemplate:
        give_template(tokenizer)
        return learning(tokenizer)

    template = template_of(known, "model", read)
    if template is None:
        return

    def encode(row: Any) -> tuple[list[int], list[bool]]:
        example = render(template, row["id"], row["messages"], row.get("tools"), reasoning)
        return example.input_ids, [label != IGNORE for label in example.labels]

    say_example(known, "conversations", template, encode)
