"""Training on one NVIDIA GPU: model FLOPs utilisation of a 350M and a 1.3B Llama at 2,048 tokens in bfloat16, and what
training all weights, LoRA and QLoRA of the larger one take.

    python -m benchmarks.gpu --json            (--dry: tiny shapes on whatever is here, to see that it runs)

The peak it is taken against is measured on the same device (the fastest of large bfloat16 products), not a data sheet's.
Needs torch, transformers and peft, and for QLoRA bitsandbytes; nothing else of the project's dependencies.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from training.hardware import flops
from training.hardware.memory import FineTuning, Shape, parameters, pretraining
from training.pretrain.llama import Llama, initial_model
from training.pretrain.optim import build

GIB = 2**30
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


def config(layers: int, width: int, inner: int, heads: int, length: int, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads, max_position_embeddings=length,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, rms_norm_eps=1e-6,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip


SIZES = {
    "350M": (config(24, 1024, 2752, 16, 2048, 32_000), 16),
    "1.3B": (config(24, 2048, 5504, 16, 2048, 32_000), 8),
}
DRY = {"350M": (config(2, 64, 192, 2, 64, 500), 2), "1.3B": (config(2, 64, 192, 2, 64, 500), 2)}


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def start_anew() -> None:
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measured(step: Callable[[], Any], tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of the middle one of some steps, and the most memory."""
    for _ in range(3):
        step()
    took: list[float] = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        step()
        wait()
        took.append(time.perf_counter() - started)
    return {
        "tokens_per_s": round(tokens / sorted(took)[repeats // 2]),
        "memory_gib": round(flops.peak_memory(DEVICE) / GIB, 2),
    }


def pretrain(shape: LlamaConfig, batch: int, compiled: bool, peak: float, repeats: int) -> dict[str, Any]:
    """`pretrain`'s own step: forward, loss, backward, clipping, AdamW."""
    start_anew()
    length, counted = shape.max_position_embeddings, cast(Shape, shape)
    model: Llama = initial_model(shape, 0, torch.bfloat16).to(DEVICE)
    forward: Any = torch.compile(model) if compiled else model
    (optimizer,) = build(model, "adamw", 1e-4, 0.1, (0.9, 0.95), 0.95)
    tokens_BT = torch.randint(0, shape.vocab_size, (batch, length), device=DEVICE)

    def step() -> None:
        (forward(tokens_BT, tokens_BT) / tokens_BT.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found = measured(step, tokens_BT.numel(), repeats)
    mfu = flops.by_token(counted, length) * found["tokens_per_s"] / peak
    need = pretraining(counted, batch, length).total / GIB
    return {"batch": batch, "compiled": compiled, **found, "mfu": round(mfu, 4), "counted_memory_gib": round(need, 2)}


def fine_tune(shape: LlamaConfig, method: str, batch: int, repeats: int) -> dict[str, Any]:
    """A step as `sft` takes it on a GPU: float32 weights, bfloat16 products, activations recomputed by layer."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    start_anew()
    length = shape.max_position_embeddings
    if method == "qlora":
        if not GPU or importlib.util.find_spec("bitsandbytes") is None:
            return {"skipped": "needs a GPU and bitsandbytes"}
        model = quantized(shape)
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model: Any = AutoModelForCausalLM.from_config(shape, trust_remote_code=False).to(DEVICE)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if method != "full":
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(model, lora)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    tokens_BT = torch.randint(0, shape.vocab_size, (batch, length), device=DEVICE)
    half: AbstractContextManager[Any] = torch.autocast(DEVICE.type, torch.bfloat16)

    def step() -> None:
        with half:
            loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    found = measured(step, tokens_BT.numel(), repeats)
    share = sum(p.numel() for p in trained) / parameters(cast(Shape, shape))
    need = FineTuning(cast(Shape, shape), length, method).memory(batch).total / GIB  # pyright: ignore[reportArgumentType]
    return {"batch": batch, "trainable_share": round(share, 5), **found, "counted_memory_gib": round(need, 2)}


def quantized(shape: LlamaConfig) -> Any:
    """Random weights in 4 bits: they have to be on disk first."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16, trust_remote_code=False).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**options), device_map={"": 0}, trust_remote_code=False
        )


def tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What does not fit is a result, too."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error).splitlines()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object (the only form there is)")
    parser.add_argument(
        "--dry", action="store_true", help="tiny shapes, on a CPU as well: proves nothing but that it runs"
    )
    options = parser.parse_args()
    if not GPU and not options.dry:
        reason = "there is no NVIDIA GPU here"
        claims = [{"id": f"MFU, {name}", "value": None, "bar": 0.55, "holds": False, "why": reason} for name in SIZES]
        print(json.dumps({"skipped": reason, "claims": claims}))
        return
    torch.set_float32_matmul_precision("high")
    repeats = 3 if options.dry else 20
    peak = flops.measured_peak(DEVICE, torch.bfloat16, repeats)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if GPU else platform.processor(),
        "torch": torch.__version__,
        "peak_tflops": round(peak / 1e12, 1),
    }
    claims: list[dict[str, Any]] = []
    for name, (shape, batch) in (DRY if options.dry else SIZES).items():
        ways = [
            tried(lambda c=compiled, s=shape, b=batch: pretrain(s, b, c, peak, repeats)) for compiled in (False, GPU)
        ]
        result[name] = ways
        mfu = max((way["mfu"] for way in ways if "mfu" in way), default=None)
        claims.append({"id": f"MFU, {name}", "value": mfu, "bar": 0.55, "holds": mfu is not None and mfu >= 0.55})
    shape, _ = (DRY if options.dry else SIZES)["1.3B"]
    result["fine-tuning, 1.3B"] = {
        method: tried(lambda m=method: fine_tune(shape, m, 4, repeats)) for method in ("full", "lora", "qlora")
    }
    print(json.dumps({**result, "claims": claims}))


if __name__ == "__main__":
    main()
