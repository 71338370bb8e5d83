"""`candidates`: n sampled answers to every prompt, with the token ids and log-probabilities as they were sampled.

Prompts are cut into partitions; each is one batch of the engine and one file. A sample's seed is derived from its
prompt and its number, and a batch depends on nothing that ran before it, so a run that was killed goes on at the next
partition and ends with the same bytes. While one batch is sampled, another is tokenised or written.

Several models, servers and temperatures are mixed by dealing: sample s of a prompt comes from who answers s modulo their
number, and each of them goes through the temperatures in turn. One after another is loaded, and answers everything
that is its.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.stage.stage import NotIdentity, Stage, port
from generators.backends.answerer import check_answerers
from generators.backends.protocol import EngineName, NucleusShare
from generators.backends.replica_bounds import ReplicaCount, bounds
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

# Options of an engine that say where it runs: they are no part of what is made.
HARDWARE = {
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization", "kv_cache_gib",
    "kv_cache_memory_bytes", "distributed_executor_backend", "data_parallel_backend", "enforce_eager", "swap_space",
}  # fmt: skip


def listed(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


class Candidates(Stage):
    """Sample n answers to every prompt from a model, or from several."""

    takes = {
        "model": port("Model", "Adapter", optional=True, many=True),
        "prompts": port("Prompt", "Conversation", many=True),
    }
    gives = "Candidate"
    phase = "generation"
    work = "generators.candidates.work:sample"
    residents = ("model",)
    random = True
    version = 4

    n: int = Field(4, ge=1, description="Answers a prompt.")
    temperature: Annotated[list[Annotated[float, Field(ge=0, le=10)]], BeforeValidator(listed)] = Field(
        [1.0], min_length=1, description="0 is greedy. Several are taken in turn."
    )
    top_p: NucleusShare = 1.0
    top_k: int = Field(0, ge=0, description="0 keeps every token.")
    max_tokens: int = Field(64, ge=1, description="Longest answer, in tokens.")
    min_tokens: int = Field(0, ge=0, description="Shortest answer, in tokens.")
    distinct: bool = Field(
        False, description="Drop an answer that says what an earlier one of the same model to the same prompt says."
    )
    logprobs: bool = Field(True, description="Keep the log-probability of every sampled token.")
    json_schema: dict[str, Any] | None = Field(None, description="A JSON Schema that every answer must follow.")
    partition: int = Field(64, ge=1, description="Prompts a partition: one batch of the engine, one file.")
    engine: EngineName = Field(
        "vllm", description="vllm; serve: a `vllm serve` of its own; transformers: slow, but runs anywhere."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the checkpoint's own.")
    max_model_len: int | None = Field(
        None, ge=2, description="Longest prompt plus answer; the model's own if left out."
    )
    options: dict[str, Any] = Field(
        {}, description="Further options of vLLM, by its names: speculative_config, tensor_parallel_size, quantization."
    )
    replicas: Annotated[ReplicaCount, NotIdentity] = Field(
        1, description="Engines that share the partitions: a number, or `{min: 1, max: 8}`, as there is work."
    )
    server: Annotated[list[ServerSettings], BeforeValidator(listed)] = Field(
        [], description="An OpenAI-compatible server that answers, or several; beside or instead of models."
    )

    @field_validator("json_schema")
    @classmethod
    def _check_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        from generators.backends.json_answers import checked_schema

        return value if value is None else checked_schema(value)

    @model_validator(mode="after")
    def _check_engine(self) -> Candidates:
        if self.options and self.engine == "transformers":
            raise ValueError("`options` are vLLM's; `engine: transformers` has none")
        if bounds(self.replicas)[1] > 1 and self.engine == "serve":
            raise ValueError("`engine: serve` shares requests out by itself: `options: {data_parallel_size: ...}`")
        return self

    def check(self, known: Preflight) -> None:
        check_answerers(len(known.inputs.get("model", [])), len(self.server), self.n, len(self.temperature))
        check_servers(known, *self.server)

    def asks(self) -> bool:
        return bool(self.server)

    def identity(self) -> dict[str, Any]:
        options = {name: value for name, value in self.options.items() if name not in HARDWARE}
        return {**super().identity(), "server": [one.identity() for one in self.server], "options": options}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return None if self.distinct else self.n * rows["prompts"]
