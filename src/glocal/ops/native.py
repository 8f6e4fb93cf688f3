"""Builds kernels.cpp with the machine's compiler, once, and loads it.

Without a compiler, on processors other than x86 with AVX2, where a first product comes out wrong, or with
GLOCAL_OPS=plain, `load` returns None and every operation takes one of torch's implementations.
"""

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O2", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
AVX2 = ("-mavx2", "-mfma", "-mf16c")

POINTER, LONG, INT, FLOAT, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_double
SIGNATURES = {
    "glocal_linear": [POINTER, LONG, POINTER, POINTER, INT, POINTER, INT],
    "glocal_attend": [
        *[POINTER, LONG, LONG, LONG],
        *[POINTER, POINTER, LONG, LONG, LONG],
        *[POINTER, LONG, POINTER, INT, POINTER],
        *[LONG] * 5,
        FLOAT,
        INT,
    ],
    "glocal_decode": [POINTER, LONG, POINTER, POINTER, INT],
    "glocal_encode": [POINTER, POINTER, POINTER, POINTER, INT],
}


class Layer(ctypes.Structure):
    """Weights of a linear layer in panels; the fields are those of kernels.cpp."""

    _fields_ = (
        *((name, POINTER) for name in ("panels", "scales", "sums", "bias")),
        *(("out", LONG), ("dim", LONG), ("kind", LONG)),
    )


class Norm(ctypes.Structure):
    """A layer normalisation."""

    _fields_ = (("weight", POINTER), ("bias", POINTER), ("eps", DOUBLE))


class LocalHeads(ctypes.Structure):
    """Local heads of a block: their weights, and the last tokens in a buffer."""

    _fields_ = (
        *((name, LONG) for name in ("heads", "size", "slots")),
        *((name, Layer) for name in ("into", "out")),
        *((name, POINTER) for name in ("tokens", "values", "own", "kernel", "kernel_bias")),
        ("norm", Norm),
    )


class Block(ctypes.Structure):
    """One block: its weights and, in decoding, its cache and its context."""

    _fields_ = (
        *((name, LONG) for name in ("heads", "pre_norm", "activation", "cross_heads")),
        *((name, Norm) for name in ("norm1", "norm_cross", "norm2")),
        *((name, Layer) for name in ("qkv", "proj", "cross_q", "cross_proj", "fc1", "fc2")),
        ("local", LocalHeads),
        *((name, POINTER) for name in ("keys", "values", "cross_keys", "cross_values")),
        *((name, LONG) for name in ("cross_batch", "cross_head", "cross_key")),
    )


class Step(ctypes.Structure):
    """A new token in each row."""

    _fields_ = (
        *((name, LONG) for name in ("rows", "dim", "length", "max_length")),
        ("mask", POINTER),
        ("counts", POINTER),
        *(("contexts", LONG), ("context_length", LONG)),
        ("context_mask", POINTER),
        ("ends", POINTER),
    )


class Batch(ctypes.Structure):
    """The tokens of a batch, which pass a block without a cache."""

    _fields_ = (*((name, LONG) for name in ("batch", "tokens", "queries", "dim", "causal")), ("mask", POINTER))


def cache_dir() -> Path:
    """Return the folder of the compiled kernels and of the choices: GLOCAL_CACHE, else glocal in the user's cache."""
    if "GLOCAL_CACHE" in os.environ:
        return Path(os.environ["GLOCAL_CACHE"])
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glocal"
    except RuntimeError:  # a user without a home
        return _temporary()


def _temporary() -> Path:
    return Path(tempfile.gettempdir(), f"glocal-{os.getuid()}")


def plain() -> bool:
    """Whether every operation is plain torch."""
    return os.environ.get("GLOCAL_OPS", "") == "plain"


def capped() -> bool:
    """Whether the environment limits torch to AVX2 on a processor that may have more."""
    return os.environ.get("ATEN_CPU_CAPABILITY", "").lower() == "avx2"


def computes_bf16() -> bool:
    """Whether the processor has instructions for products in bf16; emulated, bf16 is slower than float32."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16")) and not capped()


@cache
def processor() -> str:
    """Return the processor's name and instruction sets, and the variables that limit them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    known = {line for line in lines if line.startswith(("model name", "flags"))}
    caps = [os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")]
    return "\n".join([platform.machine(), *sorted(known), *caps])


@cache
def load() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they cannot be built or do not work."""
    if plain() or platform.machine() not in ("x86_64", "AMD64") or not torch.cpu.get_capabilities().get("avx2", False):
        return None
    try:
        library = ctypes.CDLL(str(_build()))
        for name, arguments in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = None
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None
    return library if _works(library) else None


def kernels() -> ctypes.CDLL:
    """Return the compiled kernels, which a caller has found to be there (see `load`)."""
    library = load()
    assert library is not None
    return library


def kernels_state() -> str:
    """Return a line that says whether the kernels are used."""
    if plain():
        return "GLOCAL_OPS=plain: every operation is plain torch."
    if load() is None:
        return "The kernels are not used: they need an x86 processor with AVX2 and a C++ compiler with OpenMP."
    return f"The kernels are used; choices and the compiled library are in {cache_dir()}."


def _build() -> Path:
    """Compile the kernels, unless an earlier process did, and return the library's path."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    flags = (*FLAGS, *(AVX2 if capped() else ("-march=native",)))
    key = hashlib.sha256("\n".join([SOURCE.read_text(), compiler, *flags, processor()]).encode()).hexdigest()[:16]
    for folder in (cache_dir(), _temporary()):
        library = folder / f"kernels-{key}.so"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder == _temporary() and folder.stat().st_uid != os.getuid():
                continue  # it is another user's, who could put a library there
            if library.is_file():
                return library
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                built = Path(unfinished, library.name)
                if sys.stderr.isatty():
                    print("Compiling glocal's kernels for this processor, once ...", file=sys.stderr)
                command = [compiler, *flags, str(SOURCE), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, timeout=600)
                built.replace(library)
            return library
        except OSError:  # a folder that cannot be written
            continue
    raise FileNotFoundError("no folder for the compiled kernels")


def _works(library: ctypes.CDLL) -> bool:
    """Whether a small product is correct, which a faulty compiler or emulator may prevent."""
    x, w, y = torch.arange(6.0), torch.arange(96.0).view(6, 16), torch.empty(16)
    layer = Layer(panels=w.data_ptr(), out=16, dim=6)
    library.glocal_linear(x.data_ptr(), 1, ctypes.byref(layer), None, 0, y.data_ptr(), 1)
    return all(math.isclose(a, b) for a, b in zip(y.tolist(), (x @ w).tolist(), strict=True))
