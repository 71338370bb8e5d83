"""Files of other programs are told by what they begin with, and read in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from engine.errors import UserError
from engine.plan.importers import bring_in, importer_of
from engine.plan.inputs import resolve
from engine.store.store import Store
from tests.training.models.test_gguf import SHAPE, load, logits, save
from training.models.gguf.to_gguf import write


def test_a_gguf_is_known_whatever_it_is_called(tmp_path: Path) -> None:
    save(tmp_path / "given", LlamaConfig(**SHAPE))
    file = tmp_path / "blob"
    write(tmp_path / "given", file, "mine")
    importer = importer_of(file)
    assert importer == "training.models.gguf.from_gguf:read"
    facts = bring_in(importer, file, tmp_path / "back")
    assert (facts["kind"], facts["name"]) == ("Model", "mine")
    assert (tmp_path / "back" / "model.safetensors").exists() and (tmp_path / "back" / "tokenizer.json").exists()


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "rows.gguf").write_text('{"text": "GGUF"}')
    assert importer_of(tmp_path / "rows.gguf") is None


def test_a_damaged_file_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "it.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(UserError, match=r"it\.gguf is damaged or incomplete"):
        bring_in("training.models.gguf.from_gguf:read", tmp_path / "it.gguf", tmp_path / "back")


def test_a_process_that_dies_is_told_with_the_end_of_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended with code 1\.\n(.*\n)*.*no_such_module"):
        bring_in("no_such_module:read", tmp_path / "it", tmp_path / "back")


def test_a_gguf_is_an_input_like_any_model(tmp_path: Path, store: Store) -> None:
    given = save(tmp_path / "given", LlamaConfig(**SHAPE))
    write(tmp_path / "given", tmp_path / "it.gguf", "mine")
    said: list[str] = []
    source = resolve("./it.gguf", tmp_path, ("Model", "Adapter"), store)
    made = source.adopt(store, said.append)
    assert (made.kind, made.name, made.id) == ("Model", "it", source.folder) and "name mine" in said[0]
    torch.testing.assert_close(logits(load(made.path)), logits(given), rtol=0, atol=0)
    assert set(made.files()) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert resolve("./it.gguf", tmp_path, ("Model",), store).adopt(store).id == made.id
    with pytest.raises(UserError, match="can't tell the format"):
        resolve("./it.gguf", tmp_path, ("Prompt",), store)
