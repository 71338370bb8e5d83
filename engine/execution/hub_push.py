"""An export to a hub: what `flywheel export` writes into a folder, as a repository of Hugging Face's hub or of one that speaks its language.

The token is the environment's, and no file's: what a machine is logged in with has not been meant for this. Private unless one says otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.redaction import declare_value, redacted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "hub://"
TOKEN = "HF_TOKEN"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# What an export writes a varying number of: files of an earlier one would be read with those of this one.
_OURS = ["data/*", "rejected/*", "*.safetensors", "*.gguf"]


def repository_of(to: str) -> str:
    """OWNER/NAME of `hub://OWNER/NAME`.

    Raises:
        UserError: it is something else.
    """
    name = to.removeprefix(HUB).rstrip("/")
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise UserError(
            f"`--to {redacted(to)}` names no repository of a hub: expected hub://OWNER/NAME, as in hub://ann/notes."
        )
    return name


class HubRepository:
    """A repository to push to. `open_repository` finds out whether one may, before anything is written.

    Attributes:
        url: where people find it.
    """

    def __init__(self, api: HfApi, name: str, kind: str, private: bool) -> None:
        self._api, self.name, self.kind, self.private = api, name, kind, private
        self.url = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"

    def push(self, folder: Path, message: str) -> str:
        """Have the repository hold what is in the folder; returns its address. What else is in it stays, but for rows and weights of an
        earlier push.

        Raises:
            UserError: the hub refuses, or does not answer.
        """
        with _faults(self._api.endpoint, self.name):
            self._api.create_repo(self.name, repo_type=self.kind, private=self.private, exist_ok=True)
            self._api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                repo_type=self.kind,
                commit_message=message,
                delete_patterns=_OURS,
            )
        return self.url


def open_repository(to: str, kind: str, public: bool) -> HubRepository:
    """The repository that `hub://OWNER/NAME` names, on the hub at HF_ENDPOINT; it need not be there yet.

    Args:
        kind: dataset or model.

    Raises:
        UserError: there is no token in the environment, the hub does not answer or does not take it, or the repository is public where
            nobody said that it may be, or private where it should not.
    """
    name = repository_of(to)
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise UserError(
            f"pushing to a hub takes a token that may write: set {TOKEN} (one in a file is not read). "
            "Without, `--to FOLDER` writes the same files, for you to push."
        )
    declare_value(token)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    with _faults(api.endpoint, name):
        try:
            seen = api.repo_info(name, repo_type=kind).private
        except RepositoryNotFoundError:
            seen = None
    if seen is False and not public:
        raise UserError(f"{name} is there already, and public: say `--public` if all may read this, or name another.")
    if seen and public:
        raise UserError(f"{name} is there already, and private: leave `--public` out, or change that on the hub.")
    return HubRepository(api, name, kind, private=not public)


@contextmanager
def _faults(endpoint: str, name: str) -> Generator[None]:
    """What the hub says no to, in words."""
    try:
        yield
    except Exception as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        told = " ".join(redacted(getattr(error, "server_message", None) or str(error)).split())[:300]
        if status == 401:
            raise UserError(f"the hub at {endpoint} does not take the token in {TOKEN}: {told}") from None
        if status == 403:
            raise UserError(f"the token in {TOKEN} may not write to {name} at {endpoint}: {told}") from None
        if status is not None:
            raise UserError(f"the hub at {endpoint} refuses {name} (HTTP {status}): {told}") from None
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "huggingface_hub", "hf_xet") or isinstance(
            error, ConnectionError | TimeoutError
        ):
            raise UserError(
                f"the hub at {endpoint} can't be reached ({told or type(error).__name__}). `--to FOLDER` writes the same files; "
                "the same command pushes them when there is a network (HF_ENDPOINT names another hub)."
            ) from None
        raise
