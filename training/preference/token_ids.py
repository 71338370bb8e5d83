"""TRL's trainers, fed token ids."""

from __future__ import annotations

from typing import Any


def on_token_ids(trainer: type[Any]) -> type[Any]:
    """TRL's trainer, fed the token ids that are there instead of making them anew from text.

    What follows the end of the turn in a chat template (a line feed, say) would otherwise be trained as an answer.
    """

    class OnTokenIds(trainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
            """The same, of the trainers without a reference."""
            return feature

    return OnTokenIds
