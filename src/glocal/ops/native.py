"""Builds kernels.cpp with the machine's compiler, once, and loads it.

Without a compiler, on processors other than x86 with AVX2, where a first product comes out wrong, or with
GLOCAL_OPS=plain, `load` returns None and every operation takes a path of torch's own.
"""

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
AVX2 = ("-mavx2", "-mfma", "-mf16c")

POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
SIGNATURES = {
    "glocal_product": [POINTER, LONG, LONG, POINTER, POINTER, POINTER, POINTER, LONG, INT, INT],
    "glocal_attend": [
        *[POINTER, LONG, LONG, LONG],
        *[POINTER, POINTER, LONG, LONG, LONG],
        *[POINTER, LONG, POINTER],
        *[LONG] * 5,
        FLOAT,
        INT,
    ],
}


def cache_dir() -> Path:
    """Folder of what was built and measured: GLOCAL_CACHE, else glocal in the user's cache folder."""
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


@cache
def processor() -> str:
    """The processor's name and instruction sets, as far as they decide what is fast."""
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
                continue  # another user's, who may plant a library
            if library.is_file():
                return library
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                built = Path(unfinished, library.name)
                command = [compiler, *flags, str(SOURCE), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                built.replace(library)
            return library
        except OSError:  # a folder that cannot be written
            continue
    raise FileNotFoundError("no folder for the compiled kernels")


def _works(library: ctypes.CDLL) -> bool:
    """Whether a small product comes out right, which it does not where a compiler or an emulator is at fault."""
    x, w, y = torch.arange(6.0), torch.arange(96.0).view(6, 16), torch.empty(16)
    library.glocal_product(x.data_ptr(), 1, 6, w.data_ptr(), None, None, y.data_ptr(), 16, 0, 1)
    return all(math.isclose(a, b) for a, b in zip(y.tolist(), (x @ w).tolist(), strict=True))
