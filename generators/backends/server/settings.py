"""Where a server is, and how much may be asked of it: what recipes say under `server:`."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from engine.errors import UserError
from engine.redaction import declare, redacted


class ServerSettings(BaseModel):
    """Where to ask, and how much. Only `model` and `dialect` are part of a stage's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    model: str = Field(description="The model's name on the server.")
    dialect: Literal["openai", "vllm"] = Field("openai", description="vllm: also sends top_k and min_tokens, gets ids.")
    url: str | None = Field(None, description="Base URL, e.g. http://127.0.0.1:8000/v1; $OPENAI_BASE_URL if left out.")
    key: str = Field("OPENAI_API_KEY", description="The environment variable that holds the key.")
    batch: bool = Field(
        False, description="Use the provider's batch API (cheaper, within a day): a partition is one batch."
    )
    concurrency: int = Field(256, ge=1, description="The most requests under way; how many is found out by asking.")
    timeout_s: float = Field(300, gt=0, description="Longest wait for one answer.")
    attempts: int = Field(10, ge=1, description="Times one request is tried.")
    budget_tokens: int | None = Field(None, ge=1, description="Stop when this many tokens are spent, in and out.")
    price_in: float = Field(0, ge=0, description="Price of a million tokens in.")
    price_out: float = Field(0, ge=0, description="Price of a million tokens out.")
    budget: float | None = Field(
        None,
        gt=0,
        description="Stop when this much is spent, in the unit of the prices. What is under way then is still paid.",
    )

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        if url and redacted(url) != url:
            raise ValueError(
                f"found a secret in {redacted(url)}, which manifests and cards would tell. Expected the bare URL; set the "
                "environment variable that `key` names to the key."
            )
        return url

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "dialect": self.dialect}


def client_of(server: ServerSettings) -> tuple[str, str | None]:
    """The key and the base URL for the official client.

    Raises:
        UserError: there is no key, and no server that could do without; or it stands in the URL.
    """
    declare(server.key)
    key, url = os.environ.get(server.key), server.url or os.environ.get("OPENAI_BASE_URL")
    if not key and not url:
        raise UserError(f"no key: set ${server.key}, or `url` to a server that needs none.")
    if not server.url and url and redacted(url) != url:
        raise UserError(
            f"$OPENAI_BASE_URL is {redacted(url)}, with a secret in it. Expected the bare URL; set ${server.key} to the key."
        )
    return key or "none", url
