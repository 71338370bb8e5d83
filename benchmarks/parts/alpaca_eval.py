"""AlpacaEval's real answers: reward models against length alone, and length-controlled win rates."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.parts.claims import Claim, artifact, claim
from benchmarks.parts.word_world import SPECIAL, assistant, model, user, wrapped
from engine.execution.worker import carry_out
from engine.statistics import bootstrap
from engine.store.store import Store
from training.evaluate import length_control

Floats = NDArray[np.float64]
DATA = Path(os.environ.get("FLYWHEEL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def judged(data: Path) -> Any:
    """AlpacaEval's judgements with the answers they are about: instruction, model_2, share (0 to 1), output."""
    import polars as pl

    outputs = pl.read_parquet(data / "alpaca_eval" / "outputs.parquet").unique(
        ["instruction", "model"], keep="first", maintain_order=True
    )
    return (
        pl.read_parquet(data / "alpaca_eval" / "preferences.parquet")
        .filter(pl.col("model_1") != pl.col("model_2"))
        .join(outputs, left_on=["instruction", "model_2"], right_on=["instruction", "model"], how="inner")
        .with_columns(share=pl.col("preference") - 1)
        .sort("instruction", "model_2")
    )


Answered = tuple[str, str, float, str]  # model, its family, log-odds of beating the baseline, answer


def alpaca_pairs(data: Path) -> tuple[list[tuple[str, Answered, Answered]], list[tuple[str, Answered, Answered]]]:
    """(instruction, better, worse): to learn from, and to be judged on: other instructions and other families of models.

    Two answers to one instruction, one of which the judge thinks much likelier to beat the baseline (log-odds 1 apart).
    """
    rows: dict[str, list[Answered]] = {}
    for instruction, name, share, output in (
        judged(data).select("instruction", "model_2", "share", "output").iter_rows()
    ):
        share = min(max(share, 1e-4), 1 - 1e-4)
        family = name.lower().replace("_", "-").split("-")[0]
        rows.setdefault(instruction, []).append((name, family, math.log(share / (1 - share)), output))
    rng = random.Random(0)
    instructions = sorted(rows)
    families = sorted({answered[1] for own in rows.values() for answered in own})
    unseen = set(rng.sample(instructions, len(instructions) * 3 // 10))
    strangers = set(rng.sample(families, len(families) // 3))

    def pairs(instructions: Sequence[str], strange: bool, each: int) -> list[tuple[str, Answered, Answered]]:
        found: list[tuple[str, Answered, Answered]] = []
        for instruction in instructions:
            own = [answered for answered in rows[instruction] if (answered[1] in strangers) == strange]
            for _ in range(each if len(own) > 1 else 0):
                a, b = rng.sample(own, 2)
                if abs(a[2] - b[2]) >= 1:
                    found.append((instruction, *((a, b) if a[2] > b[2] else (b, a))))
        return found

    return pairs([i for i in instructions if i not in unseen], False, 40), pairs(sorted(unseen), True, 40)


def ngrams(text: str, size: int = 1 << 14) -> list[int]:
    """Which words and pairs of words stand in a text, as numbers."""
    tokens: list[str] = re.findall(r"\w+|[^\w\s]|\n", text.lower())[:400]
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
    return sorted({zlib.crc32(token.encode()) % size for token in [*tokens, *pairs]})


def by_ngrams(learn: Sequence[Any], judge: Sequence[Any], epochs: int) -> Floats:
    """Bradley-Terry over words, pairs of words and length: r(better) - r(worse) of each pair that is judged."""
    import torch
    from torch.nn.functional import logsigmoid

    torch.manual_seed(0)
    numbers_of: dict[str, list[int]] = {}
    for _, a, b in [*learn, *judge]:
        for text in (a[3], b[3]):
            if text not in numbers_of:
                numbers_of[text] = ngrams(text) or [0]
    bag = torch.nn.EmbeddingBag(1 << 14, 1, mode="sum")
    torch.nn.init.zeros_(bag.weight)
    length = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam(
        [{"params": bag.parameters(), "lr": 3e-3, "weight_decay": 1e-4}, {"params": [length], "lr": 1e-2}]
    )

    def score(texts: Sequence[str]) -> Any:
        ids = [numbers_of[text] for text in texts]
        counts = torch.tensor([len(one) for one in ids])
        starts = torch.cumsum(counts, 0) - counts
        flat = torch.tensor([i for one in ids for i in one])
        log_length = torch.tensor([math.log1p(len(text)) for text in texts])
        return bag(flat, starts)[:, 0] / counts.float().sqrt() + length * log_length

    order = list(range(len(learn)))
    for epoch in range(epochs):
        random.Random(epoch).shuffle(order)
        for at in range(0, len(order), 64):
            batch = [learn[i] for i in order[at : at + 64]]
            loss = -logsigmoid(score([a[3] for _, a, _ in batch]) - score([b[3] for _, _, b in batch])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return (score([a[3] for _, a, _ in judge]) - score([b[3] for _, _, b in judge])).double().numpy()


def by_transformer(learn: Sequence[Any], judge: Sequence[Any], pairs: int) -> tuple[Floats, float]:
    """The `reward` stage on a small Llama from random weights, which reads the first 256 tokens of an answer. Also its
    CPU seconds."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from generators.text.learning_template import learning
    from training.models.answers import encode_all
    from training.reward.model import RewardModel
    from training.reward.reward_stage import Reward

    torch.set_num_threads(1)
    inner = Tokenizer(models.BPE(unk_token="<|unk|>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator([a[3][:600] for _, a, _ in learn[:3000]], trainer)
    tokenizer = wrapped(inner)

    def cut(text: str) -> str:
        return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)[:256])

    rng = random.Random(1)
    rows = [
        {
            "id": f"{i}",
            "prompt_id": instruction,
            "prompt": user(instruction[:120]),
            "chosen": assistant(cut(a[3])),
            "rejected": assistant(cut(b[3])),
            "split": "train",
        }
        for i, (instruction, a, b) in enumerate(rng.sample(list(learn), min(pairs, len(learn))))
    ]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        start = model(store, Path(folder) / "start", tokenizer, 64, 1, 512)
        config: dict[str, Any] = {"seed": 0, "lr": 2e-3, "batch": 32, "max_length": 384, "checkpoint_every": 10**6}
        made = carry_out(
            store,
            "reward",
            Reward(**config),
            {"model": {"m": start}, "preferences": {"p": artifact(store, "Preference", rows)}},
        )
        reward = RewardModel.load(str(made.path))
        answers = [
            answer
            for instruction, a, b in judge
            for answer in encode_all(learning(tokenizer), user(instruction[:120]), [cut(a[3]), cut(b[3])])
        ]
        scores = reward.score(answers).double().numpy()
    return scores[0::2] - scores[1::2], time.process_time() - started


def alpaca(quick: bool) -> list[Claim]:
    learn, judge = alpaca_pairs(DATA)
    if quick:
        learn, judge = learn[::6], judge[::4]
    prompts = [instruction for instruction, _, _ in judge]
    longer = np.sign(np.array([len(a[3]) - len(b[3]) for _, a, b in judge], np.float64))

    def against_length(difference: Floats) -> dict[str, Any]:
        right, by_length = (np.sign(difference) + 1) / 2, (longer + 1) / 2
        model, baseline = bootstrap.mean(right, prompts, "model"), bootstrap.mean(by_length, prompts, "length")
        more = bootstrap.mean(right - by_length, prompts, "more")
        return {
            "accuracy": [round(v, 4) for v in (model.value, model.low, model.high)],
            "length_alone": [round(v, 4) for v in (baseline.value, baseline.low, baseline.high)],
            "advantage": [round(v, 4) for v in (more.value, more.low, more.high)],
        }

    bag = against_length(by_ngrams(learn, judge, 2 if quick else 4))
    difference, seconds = by_transformer(learn, judge, 600 if quick else 5000)
    stage = against_length(difference)
    facts = {
        "pairs_learnt": len(learn),
        "pairs_judged": len(judge),
        "prompts_judged": len(set(prompts)),
        "models_judged": len({answered[0] for _, a, b in judge for answered in (a, b)}),
    }
    better = stage["advantage"][1] > 0
    return [
        claim("alpaca_reward_stage", stage["advantage"][0], "beats length alone on unseen prompts and models: interval above 0",
              better, **stage, **facts, cpu_s=round(seconds, 1),
              note="a one-layer Llama from random weights, first 256 tokens of an answer; pretrained weights can't be had here"),
        claim("alpaca_reward_ngrams", bag["advantage"][0], "beats length alone on unseen prompts and models: interval above 0",
              bag["advantage"][1] > 0, **bag, note="Bradley-Terry over hashed words and pairs of words, and length: not a stage"),
    ]  # fmt: skip


# -- length control -------------------------------------------------------------------------------------------------

# The leaderboard's length-controlled win rates (percent, 805 instructions; tatsu-lab/alpaca_eval, AlpacaEval 2, weighted
# GPT-4 Turbo), of the models that are in the data.
PUBLISHED = {
    "claude-2": 28.16, "claude": 27.29, "claude-instant-1.2": 25.61, "claude-2.1": 25.25,
    "Mixtral-8x7B-Instruct-v0.1_concise": 22.96, "gpt-3.5-turbo-1106_verbose": 22.00, "OpenHermes-2.5-Mistral-7B": 16.25,
    "gpt-3.5-turbo-0301": 18.09, "gpt4_0613_concise": 21.58, "claude-2.1_concise": 18.21, "gpt-3.5-turbo-1106": 19.30,
    "humpback-llama2-70b": 16.25, "openbuddy-llama2-70b-v10.1": 12.57, "Qwen-14B-Chat": 12.38,
    "gpt35_turbo_instruct": 17.73, "gpt-3.5-turbo-1106_concise": 15.77, "vicuna-13b-v1.5": 10.48, "jina-chat": 15.87,
    "gemma-7b-it": 10.43, "vicuna-13b-v1.5-togetherai": 11.69, "oasst-rlhf-llama-33b": 7.97,
    "openbuddy-llama-30b-v7.1": 10.21, "wizardlm-13b": 9.83, "vicuna-13b": 9.22, "openbuddy-llama2-13b-v11.1": 9.16,
    "openbuddy-falcon-40b-v9": 8.99, "nous-hermes-13b": 9.72, "ultralm-13b": 7.11, "minotaur-13b": 11.47,
    "vicuna-7b-v1.5": 7.62, "vicuna-7b-v1.3": 7.16, "oasst-sft-llama-33b": 9.87, "baize-v2-13b": 7.01, "vicuna-7b": 6.28,
    "phi-2-sft": 5.85, "alpaca-farm-ppo-human": 6.42, "alpaca-farm-ppo-sim-gpt4-20k": 7.12, "gemma-2b-it": 5.44,
    "chatglm2-6b": 4.36, "gpt4_gamed": 12.19, "minichat-3b": 5.73, "falcon-40b-instruct": 5.61, "phi-2": 4.40,
    "alpaca-7b": 5.88, "text_davinci_001": 9.03, "alpaca-7b_verbose": 6.82, "oasst-sft-pythia-12b": 3.27,
    "pythia-12b-mix-sft": 4.22, "falcon-7b-instruct": 4.04, "alpaca-7b_concise": 4.47,
}  # fmt: skip


def ranks(values: Sequence[float]) -> Floats:
    return np.argsort(np.argsort(np.asarray(values))).astype(np.float64)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def length(quick: bool) -> list[Claim]:
    import polars as pl

    rows = judged(DATA)
    base = pl.read_parquet(DATA / "alpaca_eval" / "outputs.parquet").filter(model="gpt4_1106_preview")
    base = dict(base.select("instruction", pl.col("output").str.len_chars()).iter_rows())
    names, instructions = sorted(rows["model_2"].unique()), sorted(rows["instruction"].unique())
    place, column = {m: i for i, m in enumerate(names)}, {x: i for i, x in enumerate(instructions)}
    preference, long = np.full((len(names), len(instructions)), np.nan), np.zeros((len(names), len(instructions)))
    for name, instruction, share, output in rows.select("model_2", "instruction", "share", "output").iter_rows():
        preference[place[name], column[instruction]] = share
        long[place[name], column[instruction]] = len(output)
    started = time.process_time()
    found = length_control.fit(preference, long, [base[x] for x in instructions])
    seconds = time.process_time() - started
    raw, controlled = 100 * found.raw_M, 100 * found.win_rate_M
    known = [i for i, name in enumerate(names) if name in PUBLISHED]
    published = np.array([PUBLISHED[names[i]] for i in known])
    # The same model, told to be brief or to go on at length: what should differ less once length is controlled for.
    gaps: list[tuple[float, float]] = []
    for name in names:
        if name.endswith("_concise") and (other := name.removesuffix("_concise")) in place:
            i, j = place[name], place[other]
            gaps.append((abs(math.log(raw[i] / raw[j])), abs(math.log(controlled[i] / controlled[j]))))
    shorter = np.array([np.nanmean(long[i]) - np.mean(list(base.values())) for i in range(len(names))])
    agreement, error = (
        spearman(controlled[known].tolist(), published.tolist()),
        float(np.sqrt(np.mean((controlled[known] - published) ** 2))),
    )
    added = np.log(controlled / (100 - controlled)) - np.log(raw / (100 - raw))
    both, moved = spearman(raw.tolist(), controlled.tolist()), float(np.corrcoef(added, shorter)[0, 1])
    return [
        claim("length_controlled_follows_raw", round(both, 4), "Spearman over models >= .8", both >= 0.8, models=len(names), cpu_s=round(seconds, 2)),
        claim("length_controlled_differs_where_length_does", round(moved, 4), "correlation of the log-odds added with how much longer a model writes < -.5", moved < -0.5,
              models_moved_by_a_point_or_more=int((np.abs(controlled - raw) >= 1).sum()),
              gap_of_a_model_and_its_concise_self={"log_raw": round(float(np.mean([g[0] for g in gaps])), 3),
                                                   "log_controlled": round(float(np.mean([g[1] for g in gaps])), 3)} if gaps else None),
        claim("length_controlled_as_published", round(agreement, 4), "Spearman >= .95 with the leaderboard's", agreement >= 0.95,
              models=len(known), rms_points=round(error, 3),
              rms_points_of_raw=round(float(np.sqrt(np.mean((raw[known] - published) ** 2))), 3),
              note="500 of the leaderboard's 805 instructions, and its own difficulties of them not used"),
    ]  # fmt: skip
