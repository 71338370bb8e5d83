"""Which rows may be trained on, where rows say of which split they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from generators.text.chat_template import Unusable


def check_split(row: Mapping[str, Any], *others: str) -> None:
    """Let a row of the training split pass, and one that says nothing.

    Args:
        others: splits beside `train` that the caller has a use for.

    Raises:
        Unusable: the row is of another split: what is measured on is not trained on.
    """
    split = row.get("split")
    if split not in (None, "", "train", *others):
        taken = " and ".join(f"`{name}`" for name in ("train", *others))
        raise Unusable(f"split_{split}", f"the row is of the split `{split}`; what is learnt from is {taken}")
