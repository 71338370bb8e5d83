"""A `vllm serve` of Flywheel's own: started, watched, and started again when it dies.

Worth its start where vLLM should share requests out among engines by itself (`data_parallel_size`), and where answers
differ so much in length that a batch's last ones would keep an engine waiting: the server's batch never ends. Requests
hold token ids and so do answers; nothing is tokenised twice. In which order requests come together is up to the server,
so the last bits of a log-probability are not repeatable, and where two tokens are that close, tokens neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import StageFailed
from engine.redaction import open_log
from generators.backends.process.spawn import environment, python, spawn
from generators.backends.protocol import Answer, Completion, Failure, Sampling
from generators.backends.server.answers_cache import AnswersCache
from generators.backends.server.checked_answer import Notice, checked_logprobs, first_choice, parsed, token_ids
from generators.backends.server.delivery import Delivery
from generators.backends.server.settings import ServerSettings
from generators.backends.vllm.model_files import end_ids, model_config
from generators.backends.vllm.options import ENVIRONMENT, check_options, common

LONGEST_START = 1800.0  # seconds a model may take to load
DEATHS = 8  # with no answer in between, after which the server is given up


class ServedEngine:
    """A `TokenEngine` behind a server on the loopback interface.

    Args:
        model: a folder in the Hugging Face layout, or a hub name.
        scratch: a folder for the log and for the answers so far.
        say: told about deaths, in one line each.
        options: of `vllm serve` (`data_parallel_size`), and as for `VllmEngine`.
    """

    def __init__(
        self,
        model: str,
        scratch: Path,
        say: Callable[[str], None] = lambda text: None,
        *,
        dtype: str = "float32",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        kv_cache_gib: int = 2,
        adapter: str | None = None,
        **options: Any,
    ) -> None:
        check_options(options)
        self.ends = end_ids(model)
        self._model, self._say, self._log = model, say, scratch / "serve.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        arguments = {
            "host": "127.0.0.1",
            "port": int(self._url.rpartition(":")[2]),
            "model": model,
            "served_model_name": model,
            "disable_uvicorn_access_log": True,
            **common(model_config(model), dtype, max_model_len, gpu_memory_utilization, adapter),
        }
        if adapter:
            arguments["lora_modules"] = f"{adapter}={adapter}"
        self._command = python("vllm.entrypoints.openai.api_server", *flags({**arguments, **options}))
        ours = {**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
        ours.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        self._key = secrets.token_urlsafe(32)  # others on this machine reach the port, too
        self._environment = {**ours, **environment(), "VLLM_API_KEY": self._key}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._max_model_len = 0
        self.deaths = 0
        self._answered, self._answered_then = 0, 0  # now, and when it died last
        self._barren = 0  # deaths without an answer in between
        settings = {"model": adapter or model, "url": f"{self._url}/v1", "timeout_s": 3600, "concurrency": 1024}
        server = ServerSettings.model_validate(settings)
        cache = AnswersCache(scratch / "served.sqlite")
        self._delivery = Delivery(server, cache, _send, self._read, revive=self._revive, say=say, key=self._key)

    @property
    def pid(self) -> int | None:
        """The server's process id, while there is one."""
        return self._process.pid if self._process else None

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus completion, in tokens. Starts the server.

        Raises:
            StageFailed: it does not start.
        """
        with self._lock:
            if not self._max_model_len:
                self._start()
                models: Any = json.loads(self._get("/v1/models"))
                self._max_model_len = int(models["data"][0]["max_model_len"])
        return self._max_model_len

    @property
    def address(self) -> tuple[str, str]:
        """Its base URL, for clients of OpenAI's, and the key that they send. Starts the server.

        Raises:
            StageFailed: it does not start.
        """
        assert self.max_model_len
        return f"{self._url}/v1", self._key

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion | Failure]:
        """As `TokenEngine.generate`; a row that kills the server comes back as a `Failure`."""
        assert self.max_model_len
        sampling = replace(sampling, stop_token_ids=tuple(sorted({*self.ends, *sampling.stop_token_ids})))
        requests = [self._request(ids, sampling, seed) for ids, seed in zip(prompts, seeds, strict=True)]
        return [
            answer
            if isinstance(answer, Failure)
            else Completion(answer.token_ids or [], answer.logprobs, answer.finish_reason)
            for answer in self._delivery.deliver(requests, seeds)
        ]

    def close(self) -> None:
        """End the server."""
        self._delivery.close()
        self._stop()

    def __enter__(self) -> ServedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, ids: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        extra: dict[str, Any] = {
            "top_k": sampling.top_k or -1,
            "min_tokens": sampling.min_tokens,
            "stop_token_ids": list(sampling.stop_token_ids),
            "return_token_ids": True,
        }
        if sampling.json_schema:
            extra["structured_outputs"] = {"json": json.loads(sampling.json_schema)}
        return {
            "model": self._delivery.server.model,
            "prompt": list(ids),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
            "logprobs": 0 if sampling.logprobs else None,  # 0: of the sampled token alone
            "extra_body": extra,
        }

    def _read(self, body: dict[str, Any], request: dict[str, Any], notice: Notice) -> Answer:
        choice = first_choice(body)
        ids, told = token_ids(choice, "token_ids") or [], choice.get("logprobs")
        logprobs = checked_logprobs(told["token_logprobs"], len(ids), len(ids)) if told else None
        self._answered += 1
        reason = "stop" if choice.get("finish_reason") == "stop" else "length"
        return Answer("", reason, None, ids, logprobs, 0, len(ids))

    def _revive(self) -> int:
        """Start the server again if it is dead. Returns how often it has died.

        Raises:
            StageFailed: it dies again and again, and answers nothing in between.
        """
        with self._lock:
            if self._healthy():
                return self.deaths
            self.deaths += 1
            self._barren = self._barren + 1 if self._answered == self._answered_then else 1
            self._answered_then = self._answered
            code = self._process.poll() if self._process else None
            if self._barren >= DEATHS:
                raise StageFailed(
                    f"the server of {self._model} dies whatever it is asked; its log ends: {self._tail()}"
                )
            self._say(f"vLLM's server died (exit code {code}); starting another.")
            self._stop()
            self._start()
            return self.deaths

    def _healthy(self) -> bool:
        for _ in range(3):
            if self._process is None or self._process.poll() is not None:
                return False
            try:
                self._get("/health")
                return True
            except OSError:
                time.sleep(0.5)  # it may be about to go
        return False

    def _start(self) -> None:
        with open_log(self._log) as log:
            self._process = spawn(
                python("generators.backends.process.supervisor", str(os.getpid()), *self._command),
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment, start_new_session=True,
            )  # fmt: skip
        began = time.monotonic()
        while True:
            try:
                self._get("/health")
                return
            except OSError:
                time.sleep(0.2)
            if self._process.poll() is not None or time.monotonic() - began > LONGEST_START:
                self._stop()
                raise StageFailed(f"`vllm serve {self._model}` does not start; its log ends: {self._tail()}")

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self._url + path, headers={"authorization": f"Bearer {self._key}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read()

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        errors = [line for line in lines if "Error" in line]
        return " | ".join((errors or lines)[-3:])

    def _stop(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


async def _send(client: Any, request: dict[str, Any]) -> Any:
    return parsed((await client.completions.with_raw_response.create(**request)).content)


def flags(options: dict[str, Any]) -> list[str]:
    """Options of `vllm.LLM` as `vllm serve` takes them."""
    arguments = list[str]()
    for name, value in options.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                pass
            case True:
                arguments.append(f"--{flag}")
            case False:
                arguments.append(f"--no-{flag}")
            case dict() | list():
                arguments += [f"--{flag}", json.dumps(value)]
            case _:
                arguments += [f"--{flag}", str(value)]
    return arguments
