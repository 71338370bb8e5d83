"""Kernels as machine code that is kept: numba compiles each once; later processes load it and leave numba alone.

To import numba and to load its own cache takes 2.5 CPU seconds, as much as to sign 1.5 GB of text. What it compiled is
an ordinary function, though: LLVM, which comes as `llvmlite`, links it in a few milliseconds, and `ctypes` calls it.

    sign = kernel("pipelines.kernels.hash_minima", "sign")
    sign(texts.data, texts.offsets, 5, ...)

A kernel takes C-contiguous arrays, integers and floats, gives back an integer or nothing, allocates nothing and raises
nothing. Its code is kept under a digest of the sources of all kernels, the versions of numba and LLVM and the processor,
beside the sources or, where those are read-only, in `$XDG_CACHE_HOME/flywheel`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from engine.store.whole_file import whole_file

SOURCES = Path(__file__).parent
OK = (0, -2)  # numba's codes for a value and for None
ENTRY = "kernel"
# What counting references to a kernel's arrays would end in, if they owned their memory: they don't.
NEVER = "declare void @llvm.trap() define void @NRT_MemInfo_call_dtor(ptr %i) { call void @llvm.trap() unreachable }"


def kernel(module: str, name: str) -> Callable[..., int]:
    """A function that runs the jitted function of this name; the module, and numba with it, is imported to compile it only.

    Raises (when it is called):
        ValueError: an array is not C-contiguous.
        RuntimeError: the function raised, which a kernel must not.
    """
    made: dict[str, Any] = {}

    def run(*args: Any) -> int:
        kinds, flat = "", list[Any]()
        for arg in args:  # as numba takes them: arrays apart (owner, parent, items, bytes of an item, address, ...)
            if isinstance(arg, np.ndarray):
                if not arg.flags.c_contiguous:
                    raise ValueError(f"a kernel takes C-contiguous arrays; this one has strides {arg.strides}")
                kinds += f"{arg.dtype.char}{arg.ndim} "
                flat += (None, None, arg.size, arg.itemsize, arg.__array_interface__["data"][0])
                flat += (*arg.shape, *arg.strides)
            else:
                kinds += "d " if isinstance(arg, float) else "l "
                flat.append(arg)
        if kinds not in made:
            made[kinds] = _load(_code(module, name, kinds, args), kinds)
        result, raised = ctypes.c_int64(0), ctypes.c_void_p()
        if made[kinds](ctypes.byref(result), ctypes.byref(raised), *flat) not in OK:
            raise RuntimeError(f"the kernel {module}.{name} raised")
        return result.value

    return run


def _machine() -> Any:
    """LLVM's description of this processor; an engine owns the one it is given, so each gets its own."""
    import llvmlite.binding as llvm

    cpu, features = _processor()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


@functools.cache
def _processor() -> tuple[str, str]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = ""
    with contextlib.suppress(RuntimeError):  # LLVM can't tell on every processor
        features = llvm.get_host_cpu_features().flatten()
    return llvm.get_host_cpu_name(), features


@functools.cache
def origin() -> bytes:
    """A digest of everything that machine code depends on."""
    digest = hashlib.sha256(" ".join([version("numba"), version("llvmlite"), *_processor()]).encode())
    for file in sorted(SOURCES.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()


def cache_folders() -> list[Path]:
    """Where machine code is kept: in the first of these that can be written."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [SOURCES / "__pycache__", home / "flywheel"]


def _code(module: str, name: str, kinds: str, args: tuple[Any, ...]) -> bytes:
    """The object file of a kernel for arguments of these kinds: the one that was kept, else made and kept now."""
    digest = hashlib.sha256(origin() + f"{module} {name} {kinds}".encode()).hexdigest()[:24]
    files = [folder / f"{name}-{digest}.o" for folder in cache_folders()]
    for file in files:
        with contextlib.suppress(OSError):
            checksum, code = file.read_bytes().split(b"\n", 1)
            if hashlib.sha256(code).hexdigest().encode() == checksum:
                return code
    code = _compile(module, name, args)
    for file in files:
        with contextlib.suppress(OSError):
            with whole_file(file, shared=True) as partial:
                partial.write_bytes(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
            break
    return code


def _compile(module: str, name: str, args: tuple[Any, ...]) -> bytes:
    import llvmlite.binding as llvm
    import numba
    from numba import types

    def kind(arg: Any) -> Any:
        if isinstance(arg, np.ndarray):
            return types.Array(numba.from_dtype(arg.dtype), arg.ndim, "C")
        return types.float64 if isinstance(arg, float) else types.int64

    plain = getattr(importlib.import_module(module), name).py_func
    compiled: Any = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, nogil=True)(plain)
    compiled.compile(tuple(map(kind, args)))
    (made,) = compiled.overloads.values()
    code = llvm.parse_assembly(made.library.get_llvm_str())
    code.link_in(llvm.parse_assembly(NEVER))
    needs = [f.name for f in code.functions if f.is_declaration and not f.name.startswith(("llvm.", "mem"))]
    if needs:
        raise RuntimeError(f"the kernel {module}.{name} does not stand alone, it needs {', '.join(needs)}")
    code.get_function(made.fndesc.llvm_func_name).name = ENTRY
    return _machine().emit_object(code)


def _load(code: bytes, kinds: str) -> Any:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    run: Any = ctypes.CFUNCTYPE(ctypes.c_int32)(engine.get_function_address(ENTRY))
    word, address = ctypes.c_int64, ctypes.c_void_p
    run.argtypes = [address, address]
    for kind in kinds.split():
        array = [address, address, word, word, address, *[word] * 2 * int(kind[1:] or 0)]
        run.argtypes += array if len(kind) > 1 else [ctypes.c_double if kind == "d" else word]
    run.engine = engine  # the code lives as long as the engine
    return run
