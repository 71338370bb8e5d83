"""Conversations as a model sees them, and which of their tokens are learnt.

Conversations are rendered and masked here, so that what is learnt can be looked at before anything is: only what the
assistant says is scored, its end-of-turn token included, since a model that never learns that token never stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from engine.errors import UserError
from generators.text.chat_template import Unusable
from generators.text.learning_template import LearningTemplate, learning
from generators.text.thoughts import Reasoning, apart
from training.models.shown import shown
from training.models.splits import check_split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from engine.stage.job import Job

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
END = "<|end|>"
IGNORE = -100
EXAMPLE = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
TURNS = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """A conversation as the model sees it. `labels` is `input_ids` where a token is learnt and `IGNORE` elsewhere."""

    id: str
    input_ids: list[int]
    labels: list[int]

    @property
    def learnt(self) -> int:
        return sum(label != IGNORE for label in self.labels)


def give_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a chat template the project's, and `<|end|>` as the end of a sequence.

    Raises:
        UserError: it has no tokens for turns.
    """
    if tokenizer.chat_template is not None:
        return
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (END, *(f"<|{role}|>" for role in TURNS)) if token not in vocabulary]
    if missing:
        raise UserError(
            f"the model's tokenizer has no chat template, and no {' '.join(missing)} to use the project's with. "
            "Make the tokenizer with the `tokenize` stage, or start from a model with a chat template."
        )
    tokenizer.chat_template = TEMPLATE.read_text()
    tokenizer.eos_token = END


def teach_to_end(model: Any, tokenizer: PreTrainedTokenizerBase) -> LearningTemplate:
    """Make the token that ends a turn of the chat template the one that ends generation, in model and tokenizer.

    A tokenizer without a chat template is given the project's, and `<|end|>`. Returns what shows what is learnt.

    Raises:
        UserError: there is no template and no `<|end|>`, or a model could not learn from the template where to stop.
    """
    bare = tokenizer.chat_template is None
    give_template(tokenizer)
    if bare:
        end = cast(int, tokenizer.eos_token_id)
        model.config.eos_token_id = end
        model.generation_config.eos_token_id = end
        model.generation_config._from_model_config = False
    template = learning(tokenizer)
    if template.end and template.end != tokenizer.eos_token:
        tokenizer.eos_token = template.end
        end = cast(int, tokenizer.eos_token_id)
        model.config.eos_token_id = end
        known = model.generation_config.eos_token_id
        others = cast(list[int], known) if isinstance(known, list) else [] if known is None else [cast(int, known)]
        model.generation_config.eos_token_id = [end, *(i for i in others if i != end)]
        model.generation_config._from_model_config = False
    return template


def prepare(job: Job, template: LearningTemplate, length: int, reasoning: Reasoning = "learn") -> tuple[Path, int, int]:
    """Render and mask all conversations, show the first, and set aside those from which nothing would be learnt.

    Returns:
        an Arrow file of `id`, `input_ids` and `labels`, in the order of the inputs and memory-mapped when it is trained
        on; how many rows it has, and how many tokens are learnt.

    Raises:
        UserError: no row is left.
    """
    reasons: Counter[str] = Counter()
    kept = cut = learnt = 0
    shown: list[str] = []
    first = ""
    file = job.scratch / "examples.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, EXAMPLE) as writer:
        for index, rows in enumerate(_batches(job)):
            examples: list[Example] = []
            rejected: list[dict[str, Any]] = []
            for row in rows:
                fault, example = None, None
                try:
                    check_split(row)
                    example = render(template, row["id"], row["messages"], row.get("tools"), reasoning)
                except Unusable as error:
                    fault = error.reason, error.detail
                if example and len(example.input_ids) > length:
                    cut += 1
                    example = Example(example.id, example.input_ids[:length], example.labels[:length])
                    if not example.learnt:
                        fault = "too_long", f"the first answer begins after {length} tokens (`max_length`)"
                if fault:
                    rejected.append({**row, "reason": fault[0], "detail": fault[1], "failed": False})
                elif example:
                    examples.append(example)
            writer.write_table(to_table(examples))
            shown += [show(template.tokenizer, example) for example in examples[: 3 - len(shown)]]
            kept, learnt = kept + len(examples), learnt + sum(example.learnt for example in examples)
            reasons.update(str(row["reason"]) for row in rejected)
            if rejected:
                first = first or str(rejected[0]["detail"])
                job.reject(f"{index:05d}", pa.Table.from_pylist(rejected))
    told = ", ".join(sorted(reasons))
    if not kept:
        raise UserError(
            f"nothing would be learnt: of {reasons.total()} conversations none has an assistant turn that can be learnt "
            f"within {length} tokens ({told or 'there are none'})."
            + (f" The first: {first}." if first else " What the assistant says is what is learnt.")
        )
    if reasons:
        job.say(f"{reasons.total()} of {reasons.total() + kept} conversations left out: {told}")
    if cut:
        job.say(f"{cut} conversations cut to {length} tokens; their last turn has no end to learn")
    job.say("what is learnt stands in «»:")
    for line in shown:
        job.say(line)
    return file, kept, learnt


def row_ids(examples: Path, batch: list[list[int]]) -> list[str]:
    """The ids of the rows that have these token ids."""
    wanted = {tuple(ids) for ids in batch}
    with pa.memory_map(str(examples)) as source:
        batches = pa.ipc.open_stream(source)
        rows = ((i.as_py(), ids) for part in batches for i, ids in zip(part["id"], part["input_ids"], strict=True))
        return [name for name, ids in rows if tuple(ids.as_py()) in wanted]


def _batches(job: Job) -> Iterator[list[dict[str, Any]]]:
    for artifact in job.all("conversations"):
        for batch in artifact.batches(columns=["id", "messages", "tools", "split"], rows=1000):  # of those that it has
            yield batch.to_pylist()


def render(
    template: LearningTemplate,
    row: str,
    messages: list[dict[str, Any]] | None,
    tools: str | None = None,
    reasoning: Reasoning = "learn",
) -> Example:
    """Token ids of a conversation, and the labels of its assistant turns.

    Raises:
        Unusable: the assistant says nothing, the template refuses the conversation, or what is learnt can't be told.
    """
    spoken = [message for message in messages or [] if message["role"] == "assistant"]
    if not spoken:
        raise Unusable("no_assistant_turn", "what the assistant says is what is learnt")
    ids, mask = template.encode(messages or [], tools, reasoning)
    for message in spoken:
        thought = message.get("reasoning_content") if reasoning == "learn" else None
        text = message["content"] or ""
        if not (thought or message.get("tool_calls") or (text if reasoning == "learn" else apart(text)[1]).strip()):
            raise Unusable("empty_answer", "the assistant says nothing in one of its turns")
    if not any(mask):
        raise Unusable("empty_answer", "the chat template marks nothing of what the assistant says")
    return Example(row, ids, [i if learnt else IGNORE for i, learnt in zip(ids, mask, strict=True)])


def show(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The conversation on one line, with what is learnt in «»."""
    return shown(tokenizer, example.input_ids, [label != IGNORE for label in example.labels])


def to_table(examples: list[Example]) -> pa.Table:
    return pa.Table.from_pylist([vars(example) for example in examples], EXAMPLE)
