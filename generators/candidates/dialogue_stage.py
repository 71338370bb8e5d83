"""`dialogue`: a model talks with a simulated user for several turns.

Token-exact: what was sampled stays as it was sampled. The next turn is asked with the ids of all that came before, plus
the ids of what stands between two answers (the end of the turn, the user's message, the assistant's header), which are
tokenised once, when they are made. So the ids of a row are, one for one, those that the model saw and gave.

The user is played by a model, too: it sees the conversation with the roles exchanged, and a word on whom to play.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from engine.stage.stage import NotIdentity, Stage, port
from generators.backends.answerer import check_answerer
from generators.backends.protocol import EngineName, NucleusShare
from generators.backends.replica_bounds import ReplicaCount
from generators.backends.server.server_check import check_servers
from generators.backends.server.settings import ServerSettings

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

PLAY = (
    "You play a person who talks with an assistant. Write the person's next message and nothing else: react to what the "
    "assistant said, ask what is still open, and stay with the subject. Begin."
)


class Dialogue(Stage):
    """Have a model talk with a simulated user, several turns, with the ids of every turn as they were sampled."""

    takes = {
        "model": port("Model", "Adapter", optional=True),
        "user": port("Model", "Adapter", optional=True),
        "prompts": port("Prompt", "Conversation", many=True),
    }
    gives = "Candidate"
    phase = "generation"
    work = "generators.candidates.dialogue:converse"
    residents = ("model", "user")
    random = True
    version = 3

    turns: int = Field(3, ge=1, description="Answers of the model in one conversation.")
    n: int = Field(1, ge=1, description="Conversations a prompt.")
    play: str = Field(PLAY, min_length=1, description="What the simulated user is told.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy.")
    top_p: NucleusShare = 1.0
    max_tokens: int = Field(256, ge=1, description="Longest answer, in tokens.")
    user_temperature: float = Field(1.0, ge=0, le=10, description="Of the one who plays the user; 0 is greedy.")
    user_max_tokens: int = Field(128, ge=1, description="Longest message of the user, in tokens.")
    logprobs: bool = Field(True, description="Keep the log-probability of every sampled token.")
    partition: int = Field(64, ge=1, description="Prompts a partition.")
    replicas: Annotated[ReplicaCount, NotIdentity] = Field(
        1, description="Engines that share the partitions: a number, or `{min: 1, max: 8}`, as there is work."
    )
    engine: EngineName = Field("vllm", description="What runs the models: vllm, serve or transformers.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: the checkpoint's own.")
    max_model_len: int | None = Field(None, ge=2, description="Longest conversation, in tokens.")
    server: ServerSettings | None = Field(
        None, description="An OpenAI-compatible server that answers instead of a model."
    )
    user_server: ServerSettings | None = Field(
        None, description="One that plays the user. Without: the model itself does."
    )

    def check(self, known: Preflight) -> None:
        check_answerer(len(known.inputs.get("model", [])), int(self.server is not None))
        check_servers(known, self.server, self.user_server)

    def asks(self) -> bool:
        return self.server is not None or self.user_server is not None

    def identity(self) -> dict[str, Any]:
        servers = {name: getattr(self, name) for name in ("server", "user_server")}
        return {**super().identity(), **{name: one.identity() if one else None for name, one in servers.items()}}

    def expected_rows(self, rows: dict[str, int]) -> int | None:
        return self.n * rows["prompts"]
