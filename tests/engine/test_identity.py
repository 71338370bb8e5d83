"""Every field of every stage kind either is part of the identity or stands in a list here, with the reason.

A field that changes the bytes and is not in the key gives a wrong artifact from the cache, silently: the worst fault a
store can have. So whoever marks a field `NotIdentity` has to come by this list.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.stage import NotIdentity, Stage, kinds, load

# What says how the work is done, how it is watched or cut short; and places, whose contents are in `sources()`.
NOT_IDENTITY = {
    "max_failed", "patience", "checkpoint_every", "validation_every", "log_every", "keep", "processes", "sharding", "prompts", "gpu_share",
    "paths", "exclude", "tokenizer",
}  # fmt: skip
OWN = {"server"}  # a part with an identity of its own: which model answers, not where or how fast
DRAWS = {"judge": {"pairwise": True}}  # rules alone draw nothing, so the seed would not count
INSTALLED = [kind for kind in kinds() if not kind.startswith("toy_")]


def stage_of(kind: str) -> Stage:
    stage = load(kind)
    values = {
        name: "given" if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in stage.model_fields.items()
    }
    return stage.model_construct(**{**values, **DRAWS.get(kind, {})})


@pytest.mark.parametrize("kind", INSTALLED)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_each_field_is_in_the_key_or_in_the_list(kind: str) -> None:
    stage = stage_of(kind)
    for name, field in type(stage).model_fields.items():
        if name in OWN:
            continue
        before: Any = getattr(stage, name)
        after = None if before is not None else {"mutated": 1}
        changed = stage.model_copy(update={name: after})
        marked = NotIdentity in field.metadata
        assert not marked or name in NOT_IDENTITY, f"`{kind}.{name}` left the key: does it change no byte, ever?"
        counts = not marked and (name != "seed" or type(stage).random)
        assert (changed.identity() != stage.identity()) == counts, f"{kind}.{name}"
