"""The work of `candidates`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from engine.errors import UserError
from engine.stage.job import Job, Part
from engine.store.digest import digest_json
from engine.store.schema import DATASETS, Message, ToolMessage, row_id, table
from generators.backends import json_answers
from generators.backends.answerer import check_answerers
from generators.backends.in_flight import in_flight
from generators.backends.open import open_model, open_server
from generators.backends.protocol import Answer, Backend, Failure, Sampling
from generators.candidates.dealing import COUNTED, PartitionAnswers, Share, read_prompts, repeated_ids, totals
from generators.candidates.stage import Candidates


def sample(stage: Candidates, job: Job) -> None:
    """Commit the answers of all who answer, one after another."""
    answerers = _answerers(stage, job)
    repeated, done = repeated_ids(job), job.committed()
    for place, (name, open_) in enumerate(answerers):
        share = Share(name, place, range(place, stage.n, len(answerers)), stage.temperature, len(answerers))

        def ask(part: Part, share: Share, backend: Backend) -> PartitionAnswers:
            asked, rejected = read_prompts(part, stage.partition, repeated)
            return _ask(stage, job, share, backend, asked, [] if share.place else rejected)

        def unanswered(share: Share) -> Iterator[Part]:
            for part in job.parts("prompts", rows=stage.partition):
                if share.part(part) in done:
                    part.skip()
                else:
                    yield part

        with contextlib.closing(open_()) as backend:
            for part, batch in in_flight(
                unanswered(share), backend.width, lambda part, share=share, backend=backend: ask(part, share, backend)
            ):
                made, failed = _rows(stage, batch, share)
                rejected = batch.rejected + failed
                job.commit(
                    share.part(part),
                    made,
                    pa.Table.from_pylist(rejected) if rejected else None,
                    consumed=len(part.table),
                )
    job.summary(asked=stage.n * job.rows("prompts"), **totals(job))


def _answerers(stage: Candidates, job: Job) -> list[tuple[str, Callable[[], Backend]]]:
    """Who answers: the name that goes into the rows, and how to begin.

    Raises:
        UserError: nobody does, or `n` is too small for all of them to.
    """
    options: dict[str, Any] = {"dtype": stage.dtype, "max_model_len": stage.max_model_len, "options": stage.options}
    if stage.engine == "transformers":
        options.pop("options")
    models = job.all("model")
    check_answerers(len(models), len(stage.server), stage.n, len(stage.temperature))
    names = [model.name for model in models]
    who = list[tuple[str, Callable[[], Backend]]]()
    for model, name in zip(models, names, strict=True):
        part = model.id if names.count(name) > 1 else ""  # two folders may end in the same name
        opened = partial(open_model, job, model, stage.engine, stage.replicas, part=part, **options)
        who.append((part or name, opened))
    who += [(server.model, partial(open_server, job, server)) for server in stage.server]
    if len({name for name, _ in who}) < len(who):
        raise UserError(f"who answers? One is named twice: {', '.join(name for name, _ in who)}.")
    return who


def _ask(
    stage: Candidates,
    job: Job,
    share: Share,
    backend: Backend,
    asked: list[dict[str, Any]],
    rejected: list[dict[str, Any]],
) -> PartitionAnswers:
    """Have the prompts of a partition answered."""
    sampling = Sampling(
        0.0,
        stage.top_p,
        stage.top_k,
        stage.max_tokens,
        min_tokens=stage.min_tokens,
        logprobs=stage.logprobs,
    )
    seeds = [job.derive("candidates", row["id"], sample) for row in asked for sample in share.samples]
    conversations: list[list[dict[str, Any]]] = [row["prompt"] for row in asked for _ in share.samples]
    hot = [(share.temperature(sample), row.get("tools")) for row in asked for sample in share.samples]
    answers: list[Answer | Failure] = [Failure("", "")] * len(seeds)
    repaired = set[int]()
    for temperature, tools in dict.fromkeys(hot):
        mine = [i for i, one in enumerate(hot) if one == (temperature, tools)]
        drawn = replace(sampling, temperature=temperature, tools=tools)
        some, some_seeds = [conversations[i] for i in mine], [seeds[i] for i in mine]
        if stage.json_schema is None:
            made = backend.complete(some, drawn, some_seeds)
        else:
            made, mended = json_answers.complete(backend, some, drawn, some_seeds, stage.json_schema)
            repaired |= {mine[i] for i in mended}
        for i, one in zip(mine, made, strict=True):
            answers[i] = one
    return PartitionAnswers(asked, rejected, seeds, answers, repaired)


def _parameters(stage: Candidates, temperature: float, repaired: bool) -> str:
    """How a row was drawn, as JSON."""
    parameters: dict[str, Any] = {"temperature": temperature}
    parameters |= {name: getattr(stage, name) for name in ("top_p", "top_k", "max_tokens", "min_tokens")}
    if stage.json_schema is not None:
        parameters["json_schema"] = digest_json(stage.json_schema)
    return json.dumps({**parameters, "repaired": True} if repaired else parameters)


def _rows(stage: Candidates, batch: PartitionAnswers, share: Share) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The Candidate rows of one batch, and those that did not make it. A prompt that fails is one row."""
    asked, answers, seeds, model = batch.asked, batch.answers, batch.seeds, share.model
    n = len(share.samples)
    parameters = {
        (t, mended): _parameters(stage, t, mended) for t in stage.temperature for mended in (False, True)
    }  # fmt: skip
    kept, ids, drawn, failed = list[int](), list[str](), list[str](), list[dict[str, Any]]()
    first: dict[tuple[str, str], str] = {}
    for index, (answer, seed) in enumerate(zip(answers, seeds, strict=True)):
        prompt, sample = asked[index // n], share.samples[index % n]
        if isinstance(answer, Failure):
            why = {"reason": answer.reason, "detail": answer.detail, "failed": True}
            if not (failed and failed[-1] == {**prompt, **why}):
                failed.append({**prompt, **why})
            continue
        sampling = parameters[share.temperature(sample), index in batch.repaired]
        spoken = answer.text + answer.calls
        content = spoken if answer.token_ids is None else repr(answer.token_ids)
        one = row_id("Candidate", prompt["id"], model, sampling, seed, sample, content)
        earlier = first.setdefault((prompt["id"], spoken), one) if stage.distinct else one
        if earlier == one:
            kept.append(index)
            ids.append(one)
            drawn.append(sampling)
        else:
            why = {"reason": "duplicate", "detail": f"says what {earlier} says", "failed": False}
            failed.append({**prompt, "id": one, **why})
    # Column by column: building rows of nested lists one by one took most of the time that is not the engine's.
    schema = DATASETS["Candidate"]
    prompts = table("Prompt", asked, [("tools", pa.string())]).select(["id", "prompt", "reference", "tools"])
    prompts = prompts.take(pa.array([index // n for index in kept], pa.int64()))
    given = [answer for index in kept if isinstance(answer := answers[index], Answer)]
    prompt_ids = prompts["id"].combine_chunks()
    lists = pa.ListArray.from_arrays(pa.array(range(len(kept) + 1), pa.int32()), prompt_ids)
    said: dict[str, list[str | None]] = {
        "role": ["assistant"] * len(kept),
        "content": [answer.text for answer in given],
    }
    form = Message
    if any(answer.thought or answer.calls for answer in given):
        said["reasoning_content"], form = [answer.thought or None for answer in given], ToolMessage
        said["tool_calls"] = [answer.calls or None for answer in given]
    texts = [pa.array(said.get(part.name, [None] * len(kept)), part.type) for part in form]
    columns: dict[str, Any] = {
        "id": ids,
        "parents": lists,
        "prompt_id": prompt_ids,
        "prompt": prompts["prompt"],
        "completion": pa.ListArray.from_arrays(
            pa.array(range(len(kept) + 1), pa.int32()), pa.StructArray.from_arrays(texts, fields=list(form))
        ),
        "prompt_token_ids": [answer.prompt_token_ids for answer in given],
        "token_ids": [answer.token_ids for answer in given],
        "logprobs": [answer.logprobs for answer in given],
        "finish_reason": [answer.finish_reason for answer in given],
        "model": [model] * len(kept),
        "sampling": drawn,
        "seed": [seeds[index] for index in kept],
        "sample": [share.samples[index % n] for index in kept],
        "reference": prompts["reference"],
    }
    rows = pa.table({
        field.name: value if isinstance(value := columns[field.name], pa.Array | pa.ChunkedArray)
        else pa.array(value, field.type)
        for field in schema
    })  # fmt: skip
    # Counted, not derived: a server that tells no ids tells how many there were.
    for name in COUNTED:
        rows = rows.append_column(name, pa.array([getattr(answer, name) for answer in given], pa.int32()))
    if prompts["tools"].null_count < len(prompts):
        rows = rows.append_column("tools", prompts["tools"])
    return rows, failed
