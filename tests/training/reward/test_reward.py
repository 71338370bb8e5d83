"""The reward stage against hand-computed losses, transformers' own reading of the model, and known answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import UserError
from engine.store.artifact import Artifact
from engine.store.store import Store
from generators.text.learning_template import learning
from tests.training import killed, tiny_chat
from tests.training.preference_rows import answers_of, preferences
from tests.training.tiny_chat import assistant, one_thread, user
from training.models.answers import EncodedAnswer, encode
from training.models.padding import pad
from training.reward.fit import start_heads
from training.reward.losses import pair_loss, ranking_loss, weights
from training.reward.model import Heads, RewardModel, read_heads
from training.reward.reward_stage import Reward

__all__ = ["one_thread"]  # applies to every test here

Given = Callable[[str, list[dict[str, Any]]], Artifact]
Build = Callable[..., Artifact]


@pytest.fixture
def policy(store: Store, tmp_path: Path) -> Artifact:
    return tiny_chat.artifact(store, tiny_chat.save(tmp_path / "policy"))


def load_scores(folder: Path, answers: list[EncodedAnswer]) -> torch.Tensor:
    return RewardModel.load(str(folder)).score(answers)


def test_an_answer_is_encoded_as_the_chat_template_renders_the_whole_conversation() -> None:
    tokens = tiny_chat.tokenizer()
    answer = encode(learning(tokens), user("what colour ?"), assistant("red blue"))
    whole = tokens.apply_chat_template([*user("what colour ?"), *assistant("red blue")], return_dict=False)
    assert [*answer.prompt, *answer.response] == whole
    assert answer.response[-1] == tokens.eos_token_id == 1


def test_it_learns_a_preference_that_length_does_not_explain(policy: Artifact, given: Given, build: Build) -> None:
    rows = preferences()
    made = build(Reward, {"model": policy, "preferences": given("Preference", rows)}, lr=3e-3, epochs=2)
    summary = made.manifest["summary"]
    assert summary["accuracy"] == 1.0 and summary["accuracy_low"] > 0.9
    assert summary["length_accuracy"] < 0.65 and summary["advantage_over_length_low"] > 0.2
    assert summary["validation_pairs"] == 60 and summary["pairs"] == 240
    train = [row for row in rows if row["split"] == "train"]
    scores = load_scores(made.path, answers_of(train))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert (scores[0::2] > scores[1::2]).float().mean() == 1.0


def test_shuffled_labels_teach_nothing(policy: Artifact, given: Given, build: Build) -> None:
    coin = np.random.default_rng(1).random(400) < 0.5
    given_rows = given("Preference", preferences(400, flip=lambda i: bool(coin[i])))
    made = build(Reward, {"model": policy, "preferences": given_rows}, lr=3e-3)
    summary = made.manifest["summary"]
    assert summary["accuracy_low"] < 0.5 < summary["accuracy_high"]
    assert summary["brier"] == pytest.approx(0.25, abs=0.03)  # calibrated: it knows that it does not know


def mean_loss(stage: Reward, model: Any, pairs: list[Any]) -> float:
    counts = weights(pairs, np.ones((len(pairs), 1)))
    return float(pair_loss(stage, Heads(model), pairs, counts).loss / counts.sum())


def test_the_first_loss_is_ln_2_and_the_losses_are_the_formula() -> None:
    from transformers import AutoModelForSequenceClassification

    from training.preference.pairs import Pair

    tokens = tiny_chat.tokenizer()
    rows = preferences(8)
    pairs = [
        Pair(
            "p",
            encode(learning(tokens), r["prompt"], r["chosen"]),
            encode(learning(tokens), r["prompt"], r["rejected"]),
            0.7,
            0.8,
        )
        for r in rows
    ]
    config = tiny_chat.policy().config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    start_heads(model, 0)
    assert mean_loss(Reward(centre=0), model, pairs) == pytest.approx(math.log(2), abs=1e-7)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    # One answer at a time, without any padding, read by transformers itself.
    r = [model(torch.tensor([[*a.prompt, *a.response]])).logits.item() for a in answers_of(rows)]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def mean(terms: list[float]) -> float:
        return sum(terms) / len(terms)

    gaps = [c - j for c, j in zip(r[0::2], r[1::2], strict=True)]
    plain = mean([-math.log(sigmoid(g)) for g in gaps])
    assert mean_loss(Reward(centre=0), model, pairs) == pytest.approx(plain, abs=1e-5)
    margin = mean([-math.log(sigmoid(g - 0.7)) for g in gaps])
    assert mean_loss(Reward(centre=0, margin=True), model, pairs) == pytest.approx(margin, abs=1e-5)
    soft = mean([-0.8 * math.log(sigmoid(g)) - 0.2 * math.log(sigmoid(-g)) for g in gaps])
    assert mean_loss(Reward(centre=0, soft=True), model, pairs) == pytest.approx(soft, abs=1e-5)
    centred = plain + 0.01 * mean([(c + j) ** 2 for c, j in zip(r[0::2], r[1::2], strict=True)])
    assert mean_loss(Reward(centre=0.01), model, pairs) == pytest.approx(centred, abs=1e-5)


def test_padding_changes_no_score_and_the_end_token_is_what_is_read(tmp_path: Path) -> None:
    """The pad id is the end id here: what makes transformers read one token too early (trl #937, #2758)."""
    from transformers import AutoModelForSequenceClassification

    config = tiny_chat.policy().config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    short, long = EncodedAnswer([5, 6], [7, 1]), EncodedAnswer([5, 6, 7, 8, 9], [10, 11, 12, 13, 1])
    alone = read_heads(model, pad([short])).item()
    for pad_id in (0, 1, 17):
        assert read_heads(model, pad([short, long], pad_id=pad_id))[0].item() == pytest.approx(alone, abs=1e-6)
    # and it depends on the end token: without it, the score is another one
    assert abs(read_heads(model, pad([EncodedAnswer([5, 6], [7])])).item() - alone) > 1e-3
    # the same number that transformers finds where the pad token differs from the end token
    model.config.pad_token_id = 0
    padded = pad([short, long], pad_id=0)
    assert model(padded.ids_BT).logits[:, 0].tolist() == pytest.approx(
        read_heads(model, padded)[:, 0].tolist(), abs=1e-6
    )


def test_an_ensemble_disagrees_more_where_it_was_not_trained(policy: Artifact, given: Given, build: Build) -> None:
    rows = preferences()
    made = build(Reward, {"model": policy, "preferences": given("Preference", rows)}, lr=3e-3, heads=4, epochs=2)
    reward = RewardModel.load(str(made.path))
    known = answers_of(rows[:40])
    strange = [
        encode(learning(reward.tokenizer), user("number ."), assistant("three , three . the the")) for _ in range(1)
    ]
    assert reward.heads(known).shape == (80, 4)
    assert reward.heads(known).mean(0).abs().max() < 1.0
    assert reward.score(known, pessimism=1.0).lt(reward.score(known)).all()
    assert reward.heads(strange).std() > 0
    assert made.manifest["summary"]["accuracy"] == 1.0


def test_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path, policy: Artifact, given: Given, store: Store
) -> None:
    made = given("Preference", preferences(96))
    spec: dict[str, Any] = {
        "store": store.url,
        "stage": "training.reward.reward_stage:Reward",
        "config": {"seed": 3, "epochs": 3, "batch": 8, "lr": 1e-3, "checkpoint_every": 4, "heads": 2},
        "inputs": {"model": {"p": ["Model", str(policy.path)]}, "preferences": {"d": ["", made.id]}},
    }
    killed.start(spec, tmp_path, kill_at=7)
    killed.start(spec, tmp_path, kill_at=18)
    resumed = killed.start(spec, tmp_path, kill_at=None)
    whole = killed.start({**spec, "store": killed.another_store(store, made, tmp_path)}, tmp_path, kill_at=None)
    assert resumed is not None and whole is not None
    assert resumed.id == whole.id and resumed.digest == whole.digest
    assert "model.safetensors" in resumed.manifest["files"]


def test_bad_preferences_are_refused_or_left_out_in_our_own_words(policy: Artifact, given: Given, build: Build) -> None:
    rows = preferences(8)
    equal = [{**row, "rejected": row["chosen"]} for row in rows]
    with pytest.raises(UserError, match=r"none of the 8 preferences can be trained on .*equal answers"):
        build(Reward, {"model": policy, "preferences": given("Preference", equal)})
    nan = [{**rows[0], "margin": float("nan")}]
    with pytest.raises(UserError, match="preference row0: `margin` is nan"):
        build(Reward, {"model": policy, "preferences": given("Preference", nan)})
    with pytest.raises(UserError, match="nothing is left to train on"):
        held = [{**row, "split": "validation"} for row in rows]
        build(Reward, {"model": policy, "preferences": given("Preference", held)})
    with pytest.raises(UserError, match="at most 5 tokens"):
        build(Reward, {"model": policy, "preferences": given("Preference", rows)}, max_length=5)


def rankings(prompts: int = 120, noisy: float = 0.0) -> list[dict[str, Any]]:
    """Lists of four answers, best to worst: yes, good, no, bad; one unranked or tied now and then."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(prompts):
        order = random.permutation(4)
        ranks: list[int | None] = [int(x) + 1 for x in order]
        if i % 5 == 0:
            ranks[int(random.integers(4))] = None
        if random.random() < noisy:
            ranks = [int(x) + 1 for x in random.permutation(4)]
        words = [["yes", "good", "no", "bad"][int(x)] for x in order]
        tail = [str(random.choice(["red", "blue", "green"])) for _ in range(4)]
        texts = [f"{w} {t}" for w, t in zip(words, tail, strict=True)]
        rows.append(
            {
                "id": f"r{i}",
                "prompt_id": f"p{i}",
                "prompt": user(f"what {tail[0]} ?"),
                "candidates": [f"c{i}{j}" for j in range(4)],
                "completions": texts,
                "ranks": ranks,
                "annotator": "a" if i % 2 else "b",
            }
        )
    return rows


def test_whole_rankings_teach_the_whole_order(policy: Artifact, given: Given, build: Build) -> None:
    silent = {**rankings(1)[0], "id": "s", "ranks": [1, None, None, None]}  # one ranked answer says nothing
    made = build(
        Reward,
        {"model": policy, "rankings": given("Ranking", [*rankings(), silent])},
        lr=3e-3,
        epochs=4,
        batch=16,
        held_out=0.25,
    )
    summary = made.manifest["summary"]
    assert summary["rankings"] == 120 and summary["rankings_left_out"] == 1 and summary["accuracy"] > 0.95
    tokens = tiny_chat.tokenizer()
    answers = [
        encode(learning(tokens), user("what red ?"), assistant(f"{w} blue")) for w in ("yes", "good", "no", "bad")
    ]
    scores = load_scores(made.path, answers).tolist()
    assert scores == sorted(scores, reverse=True)


def test_lists_of_two_give_the_loss_of_pairs() -> None:
    from transformers import AutoModelForSequenceClassification

    from training.preference.pairs import Pair
    from training.reward.rankings import Ranked

    tokens = tiny_chat.tokenizer()
    pairs = [
        Pair(
            "p",
            encode(learning(tokens), r["prompt"], r["chosen"]),
            encode(learning(tokens), r["prompt"], r["rejected"]),
        )
        for r in preferences(8)
    ]
    config = tiny_chat.policy().config
    config.num_labels = 2
    model = AutoModelForSequenceClassification.from_config(config).eval()
    lists = [Ranked("p", [p.rejected, p.chosen], [2, 1]) for p in pairs]
    counts = weights(pairs, np.random.default_rng(0).poisson(1.0, size=(8, 2)).astype(float))
    stage = Reward(centre=0, heads=2)
    assert pair_loss(stage, Heads(model), pairs, counts).loss.item() == pytest.approx(
        ranking_loss(stage, Heads(model), lists, counts).loss.item(), rel=1e-5
    )
    assert lists[0].pairs() == [Pair("p", pairs[0].chosen, pairs[0].rejected)]


def test_an_adapter_learns_as_well_and_is_merged_into_an_ordinary_reward_model(
    policy: Artifact, given: Given, build: Build
) -> None:
    rows = preferences()
    made = build(
        Reward,
        {"model": policy, "preferences": given("Preference", rows)},
        lr=1e-2,
        epochs=2,
        lora={"r": 4, "alpha": 8},
    )
    summary = made.manifest["summary"]
    assert summary["accuracy"] > 0.95 and summary["trained"] < 0.3
    assert "model.safetensors" in made.manifest["files"] and "adapter_config.json" not in made.manifest["files"]
    from safetensors.torch import load_file

    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (policy.location, made.path))
    shared = [name for name in after if name in before]
    assert not [name for name in after if "lora" in name] and len(shared) > 10
    moved = {name for name in shared if not torch.equal(before[name], after[name])}
    assert moved and all("proj" in name for name in moved)  # neither embeddings nor norms


def test_objectives_learn_apart_and_add_up_by_their_weights(policy: Artifact, given: Given, build: Build) -> None:
    """Helpful says "good" over "bad"; safe says "no" over "yes"."""
    helpful = preferences(160)
    safe = [
        {
            **row,
            "id": f"s{i}",
            "chosen": assistant(row["chosen"][0]["content"].replace("good", "no")),
            "rejected": assistant(row["rejected"][0]["content"].replace("bad", "yes")),
        }
        for i, row in enumerate(preferences(160))
    ]
    inputs = {
        "model": policy,
        "preferences": {"helpful": given("Preference", helpful), "safe": given("Preference", safe)},
    }
    made = build(Reward, inputs, lr=3e-3, epochs=3, heads=2, objectives={"helpful": 1.0, "safe": 2.0})
    told = made.manifest["summary"]["objectives"]
    assert told["helpful"]["accuracy"] > 0.95 and told["safe"]["accuracy"] > 0.95
    reward = RewardModel.load(str(made.path))
    both = [
        encode(learning(reward.tokenizer), user("what ?"), assistant(text))
        for text in ("good no", "good yes", "bad no")
    ]
    scores_BOH = reward.by_objective(both)
    assert scores_BOH.shape == (3, 2, 2) and reward.heads(both).shape == (3, 2)
    expected = scores_BOH[:, 0] + 2 * scores_BOH[:, 1]
    assert torch.allclose(reward.heads(both), expected, atol=1e-5)
    assert reward.score(both).tolist() == pytest.approx(expected.mean(1).tolist(), abs=1e-5)
    mean_BO = scores_BOH.mean(2)
    assert mean_BO[0, 1] > mean_BO[1, 1] and mean_BO[0, 0] > mean_BO[2, 0]
    assert mean_BO.abs().max() < 15  # log-odds such as 40 pairs can know, not certainty
    with pytest.raises(UserError, match="each objective needs preferences of its name"):
        build(Reward, inputs, objectives={"helpful": 1.0, "honest": 1.0})


def test_rewards_come_in_the_units_asked_for(policy: Artifact, given: Given, build: Build) -> None:
    """Labels that are right four times in five: the log-odds of any difference it is sure of are ln 4."""
    random = np.random.default_rng(3)
    wrong = random.random(400) < 0.2
    rows = preferences(400, flip=lambda i: bool(wrong[i]))
    inputs = {"model": policy, "preferences": given("Preference", rows)}
    train = answers_of([row for row in rows if row["split"] == "train"])
    plain, unit, odds = (
        RewardModel.load(str(build(Reward, inputs, lr=3e-3, normalise=how).path)) for how in (None, "unit", "log_odds")
    )
    assert unit.score(train).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    # the same model in other units, and the temperature keeps what it means
    for other in (unit, odds):
        calibrated = [reward.score(train) / reward.temperature for reward in (plain, other)]
        assert calibrated[0].tolist() == pytest.approx(calibrated[1].tolist(), rel=1e-3, abs=1e-4)
    assert odds.temperature == pytest.approx(1)
    gaps = odds.score(train)[0::2] - odds.score(train)[1::2]
    assert gaps.abs().median().item() == pytest.approx(math.log(4), abs=0.5)


def test_labels_that_follow_the_position_are_told(policy: Artifact, given: Given, build: Build) -> None:
    random = np.random.default_rng(0)
    rows = rankings(80)
    for i, row in enumerate(rows):
        row["shown"] = [int(x) for x in random.permutation(4)]
        if i % 2:  # half of them rank what they see from top to bottom
            row["ranks"] = [place + 1 for place in row["shown"]]
    made = build(Reward, {"model": policy, "rankings": given("Ranking", rows)}, lr=3e-3, held_out=0.5)
    summary = made.manifest["summary"]
    assert summary["shown_first_won_low"] > 0.6 and summary["shown_first_won"] == pytest.approx(0.75, abs=0.06)
    assert summary["shown_first_scores_higher_low"] < 0.5 < summary["shown_first_scores_higher_high"]


def test_annotators_count_as_the_preferences_made_from_their_rankings_say(
    policy: Artifact, given: Given, build: Build
) -> None:
    rows = rankings(90)
    random = np.random.default_rng(1)
    crowd: list[dict[str, Any]] = []
    for row in rows:
        for name in ("ada", "ben", "eve"):
            ranks = row["ranks"] if name != "eve" else [int(x) + 1 for x in random.permutation(4)]
            more = {"id": f"{row['id']}{name}", "annotator": name, "annotator_kind": "person", "ranks": ranks}
            crowd.append({**row, **more})
    ranked = given("Ranking", crowd)
    judged = build("preferences", {"rankings": ranked}, seed=0)
    made = build(Reward, {"model": policy, "rankings": ranked, "preferences": judged}, lr=3e-3)
    weights = made.manifest["summary"]["reliability"]
    assert weights["eve"] < 0.2 < 0.7 < min(weights["ada"], weights["ben"])
    own = build(
        Reward,
        {"model": policy, "rankings": ranked, "preferences": judged},
        lr=3e-3,
        reliability={"ada": 0.0, "eve": 0.0},
    )
    assert own.manifest["summary"]["rankings"] == 90
    with pytest.raises(UserError, match="are to say how reliable each annotator is"):
        build(Reward, {"model": policy, "rankings": ranked, "preferences": given("Preference", preferences(4))})
    with pytest.raises(UserError, match="`reliability` names zoe, none of whom ranked anything"):
        build(Reward, {"model": policy, "rankings": ranked}, reliability={"zoe": 0.5})


def test_a_reward_model_without_labels_or_with_an_adapter_of_its_own_is_refused(policy: Artifact, build: Build) -> None:
    with pytest.raises(UserError, match=r"give a reward model `preferences` .* or `rankings`"):
        build(Reward, {"model": policy})
    with pytest.raises(ValueError, match="leave out `merge` and `quantize`"):
        Reward.model_validate({"lora": {"merge": False}})
