"""Imported last by the process that tests fork from: what each of its children would do once more."""

from __future__ import annotations

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")  # some 700 patterns are compiled when the first model is loaded
gc.freeze()  # a million objects, each of which a collection would copy into the child
