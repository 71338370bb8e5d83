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
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import StageFailed
from generators.backends import adapters
from generators.backends.process.watched import die_with_parent, import_path, spawn
from generators.backends.protocol import Answer, Completion, Failure, Sampling
from generators.backends.server.answers_cache import RequestCache
from generators.backends.server.chat_completions import Server
from generators.backends.server.delivery import Delivery
from generators.backends.vllm.engine import ENVIRONMENT, check_options, end_ids, model_config

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
        import torch

        check_options(options)
        config = model_config(model)
        self.ends = end_ids(model)
        self._model, self._say, self._log = model, say, scratch / "serve.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        if dtype == "auto":
            dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
        arguments: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": int(self._url.rpartition(":")[2]),
            "served_model_name": model,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": not torch.cuda.is_available(),
            "logprobs_mode": "processed_logprobs",
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
            "disable_log_stats": True,
            "disable_uvicorn_access_log": True,
        }
        if not torch.cuda.is_available():
            arguments["enable_chunked_prefill"] = False  # as in `VllmEngine`
        if adapter:
            arguments |= {"enable_lora": True, "max_lora_rank": adapters.room_for(adapter)}
            arguments["lora_modules"] = f"{adapter}={adapter}"
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        self._command += flags({**arguments, **options})
        environment = {**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib)}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")
        self._environment = {**environment, **os.environ, "PYTHONPATH": import_path()}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._max_model_len = 0
        self.deaths = 0
        self._answered, self._answered_then = 0, 0  # now, and when it died last
        self._barren = 0  # deaths without an answer in between
        asked = {"model": adapter or model, "url": f"{self._url}/v1", "timeout_s": 3600, "concurrency": 1024}
        server = Server.model_validate(asked)
        cache = RequestCache(scratch / "served.sqlite")
        self._delivery = Delivery(server, cache, _send, self._read, revive=self._revive)

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

    def _read(self, response: Any) -> Answer:
        choice = response.choices[0]
        ids, logprobs = list(choice.token_ids), choice.logprobs and choice.logprobs.token_logprobs
        self._answered += 1
        reason = "stop" if choice.finish_reason == "stop" else "length"
        return Answer("", reason, None, ids, logprobs and list(map(float, logprobs)), 0, len(ids))

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
        with self._log.open("ab") as log:
            self._process = spawn(
                [sys.executable, "-m", "generators.backends.vllm.server_process", str(os.getpid()), *self._command],
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
        with urllib.request.urlopen(self._url + path, timeout=10) as response:
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
    return await client.completions.create(**request)


def flags(options: dict[str, Any]) -> list[str]:
    """Options of `vllm.LLM` as `vllm serve` takes them."""
    told = list[str]()
    for name, value in options.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                pass
            case True:
                told.append(f"--{flag}")
            case False:
                told.append(f"--no-{flag}")
            case dict() | list():
                told += [f"--{flag}", json.dumps(value)]
            case _:
                told += [f"--{flag}", str(value)]
    return told


def supervise(parent: int, command: list[str]) -> int:
    """Run the server, which has processes of its own, and end all of them when the parent is gone, even by SIGKILL."""

    def end(*_: object) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    die_with_parent(parent, signal.SIGTERM)
    return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
