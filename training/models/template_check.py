"""What can be known of a model's chat template before a run: whether there is a usable one, and what the model will see."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engine.store.artifact import MANIFEST
from generators.text.chat_template import ChatTemplate, Unusable
from generators.text.prompts import load_tokenizer
from training.models.shown import shown

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

Template = TypeVar("Template", bound=ChatTemplate)
Encode = Callable[[Mapping[str, Any]], tuple[Sequence[int], Sequence[bool]]]


def template_of(known: Preflight, port: str, read: Callable[[Any], Template]) -> Template | None:
    """The chat template of a model that people bring, as `read` gives it for a tokenizer.

    None where there is no folder yet, or where a stage has made the model: loading a tokenizer costs seconds, and that
    stage has looked at it.

    Raises:
        UserError: there is no tokenizer, or its template can't be used.
    """
    given = known.first(port)
    if given is None or given.model is None or not Path(given.model).is_dir():
        return None
    return None if (Path(given.model) / MANIFEST).exists() else read(load_tokenizer(given.model))


def say_example(known: Preflight, port: str, template: ChatTemplate, encode: Encode) -> None:
    """Say the first row of a port that the template can show the model, as the model will see it.

    Args:
        encode: token ids of a row, and which of them are learnt.
    """
    for given in known.inputs.get(port, []):
        first: Unusable | None = None
        rows = given.rows.to_pylist() if given.rows is not None else []
        for row in rows:
            try:
                ids, learnt = encode(row)
            except Unusable as fault:
                first = first or fault
                continue
            known.say(f"{given.name}: {shown(template.tokenizer, ids, learnt, dim=sys.stdout.isatty())}")
            return
        if first:
            known.say(f"{given.name}: none of the first {len(rows)} rows can be shown to the model: {first.detail}")
            return
