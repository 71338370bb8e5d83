"""What the stages that learn from preferences can know before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generators.text.learning_template import learning
from generators.text.thoughts import Reasoning
from training.models.answers import encode
from training.models.template_check import say_example, template_of

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight


def check(known: Preflight, model: str, reasoning: Reasoning = "learn") -> None:
    """Open a model's chat template, and say the first answer of each kind of input as the model will see it.

    Args:
        model: the port of the model that learns.

    Raises:
        UserError: the model could not learn from its template.
    """
    template = template_of(known, model, learning)
    if template is None:
        return
    for port in ("preferences", "candidates", "rankings"):

        def read(row: Any, port: str = port) -> tuple[list[int], list[bool]]:
            said = row["chosen"] if port == "preferences" else row.get("completion")
            if port == "rankings":
                said = [{"role": "assistant", "content": text or ""} for text in (row["completions"] or [])[:1]]
            answer = encode(template, row["prompt"] or [], said or [], row.get("tools"), reasoning)
            return [*answer.prompt, *answer.response], [False] * len(answer.prompt) + [True] * len(answer.response)

        say_example(known, port, template, read)
