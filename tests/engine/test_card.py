"""A model carries its card: what it was made from, under which licences, by which recipe, how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from engine.execution.single import export_artifact
from engine.execution.worker import carry_out
from engine.stage.job import Job
from engine.stage.stage import Stage, port
from engine.store.store import Store
from engine.view.card import card


class Texts(Stage):
    gives = "Document"
    license: str | None = None
    tag: str = "a"

    def run(self, job: Job) -> None:
        import pyarrow as pa

        job.commit(
            "00000", pa.table({"id": [self.tag], "parents": pa.array([[]], pa.list_(pa.string())), "text": ["x"]})
        )


class Learn(Stage):
    takes = {"texts": port("Document", many=True)}
    gives = "Model"
    steps: int = 3

    def run(self, job: Job) -> None:
        (job.output / "config.json").write_text("{}")
        job.summary(loss=1.25)


class Grade(Stage):
    takes = {"models": port("Model", many=True, labelled=True)}
    gives = "Document"

    def run(self, job: Job) -> None:
        (job.output / "table.json").write_text(json.dumps({"mine": {"accuracy": 0.75}, "other": {"accuracy": 0.5}}))
        Texts.run(Texts(tag="v"), job)


def made(store: Store, *licences: str | None) -> Any:
    texts = {f"t{i}": carry_out(store, "texts", Texts(license=name, tag=str(i)), {}) for i, name in enumerate(licences)}
    return carry_out(store, "learn", Learn(), {"texts": texts})


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


def test_a_model_names_its_sources_licences_numbers_and_recipe(store: Store) -> None:
    model = made(store, "cc-by-4.0", "cc-by-4.0")
    text = (model.path / "README.md").read_text()
    assert front(text) == {"license": "cc-by-4.0", "library_name": "transformers", "tags": ["flywheel", "learn"]}
    for artifact in store.artifacts():
        assert f"`{artifact.id}`" in text or f"# {artifact.id}" in text
    recipe = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert recipe[model.id]["steps"] == 3 and len(recipe) == 3
    assert "| loss | 1.25 |" in text and model.digest in text
    assert (
        "README.md" not in model.manifest["files"]
    )  # the same weights are the same artifact, whatever is said of them
    assert str(store.root) not in text


def test_a_licence_that_is_not_known_is_not_made_up(store: Store) -> None:
    text = (made(store, "mit", None).path / "README.md").read_text()
    assert "license" not in front(text) and "| not stated |" in text and "| mit |" in text


def test_what_an_evaluation_found_is_told_on_export(store: Store, tmp_path: Path) -> None:
    model = made(store, "mit")
    carry_out(store, "grade", Grade(), {"models": {"mine": model}})
    told = card(store, model.id, model.manifest)
    assert "| accuracy | 0.75 |" in told and "| accuracy | 0.5 |" not in told


def test_a_dataset_card_and_its_data_load_as_on_a_hub(given: Any, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import DatasetCardData

    rows = [{"id": f"{i:032x}", "parents": [], "messages": [{"role": "user", "content": f"{i}?"}]} for i in range(1200)]
    artifact = given("Conversation", rows)
    export_artifact(artifact, str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    facts = DatasetCardData(**front(text))
    assert facts.size_categories == ["1K<n<10K"] and facts.task_categories == ["text-generation"]
    assert f"# {artifact.id}" in text and "1,200 rows of Conversation" in text
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 1200 and loaded[7]["messages"] == rows[7]["messages"]


def test_a_card_counts_what_did_not_make_it(given: Any, build: Any, tmp_path: Path) -> None:
    texts = [{"id": f"{i:032x}", "parents": [], "text": "word " * i, "source": "s", "offset": i} for i in range(1, 30)]
    made = build("filter", {"documents": given("Document", texts)}, min_words=10)
    export_artifact(made, str(tmp_path))
    lost = sum(made.manifest["rejected"].values())
    assert lost > 0
    assert f"{lost} rows did not make it" in (tmp_path / "README.md").read_text()


def test_a_number_stands_with_its_interval(store: Store) -> None:
    model = made(store, "mit")
    table = {"mine": {"accuracy": 0.75, "accuracy_low": 0.6123, "accuracy_high": 0.9, "n": 40}}

    class Graded(Grade):
        def run(self, job: Job) -> None:
            (job.output / "table.json").write_text(json.dumps(table))
            Texts.run(Texts(tag="v"), job)

    carry_out(store, "graded", Graded(), {"models": {"mine": model}})
    told = card(store, model.id, model.manifest)
    assert "| accuracy | 0.75 (0.6123 to 0.9) |" in told and "accuracy_low" not in told and "| n | 40 |" in told


def test_a_card_of_preferences_tells_who_judged_and_how_far_they_agree(given: Any, build: Any, tmp_path: Path) -> None:
    ranked = [
        {
            "id": f"{i:030x}{a:02x}", "parents": [], "prompt_id": f"p{i}", "prompt": [{"role": "user", "content": f"{i}?"}], "candidates": [f"a{i}", f"b{i}"],
            "completions": ["a", "b"], "ranks": [1, 2] if a < 2 or i % 2 else [2, 1], "shown": [i // 2 % 2, 1 - i // 2 % 2], "annotator": f"ann{a}",
            "annotator_kind": "person",
        }
        for i in range(40) for a in range(3)
    ]  # fmt: skip
    pairs = build("preferences", {"rankings": given("Ranking", ranked)}, validation=0.2)
    export_artifact(pairs, str(tmp_path))
    text = (tmp_path / "README.md").read_text()
    # Two of three annotators prefer a in half of the prompts, all of them in the others.
    assert "3 people; 120 judgements." in text
    agreed = float(text.split(" of those with an opinion")[0].rsplit(" ", 1)[1].rstrip("%"))
    assert abs(agreed - 100 * (1 + 2 / 3) / 2) <= 1 and "95 % interval" in text
    splits = {file.name.partition("-")[0] for file in (tmp_path / "data").iterdir()}
    assert splits == {"train", "validation"} == {e["split"] for e in front(text)["configs"][0]["data_files"]}
    for name in ("chosen", "rejected", "agreement", "split"):
        assert f"| `{name}` |" in text
    assert "pairs of answers to a prompt" in text and "## Limits" in text and "## What it took" in text
    assert (
        "| agreement, alpha | 0.33" in text and " to 0." in text and "ann0" not in text
    )  # people are counted, not named
    assert "Nobody looked whether rows of evaluations stand in it." in text
