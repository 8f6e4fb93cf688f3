"""The compiled kernels are there where they can be, and nothing fails where they cannot."""

import ctypes
import ctypes.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glocal.ops import native

ABLE = platform.machine() in ("x86_64", "AMD64") and torch.cpu.get_capabilities().get("avx2", False)
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, native.COMPILERS), None)

needs_kernels = pytest.mark.skipif(
    not ABLE or COMPILER is None or shutil.which(COMPILER) is None or native.plain(),
    reason="needs AVX2, a compiler, and GLOCAL_OPS other than plain",
)


@needs_kernels
def test_kernels_are_built_once():
    assert native.load() is not None
    (library,) = Path(os.environ["GLOCAL_CACHE"]).glob(f"kernels-*{native._build().stem[-16:]}.so")
    assert library == native._build()
    assert not list(library.parent.glob("tmp*"))


class Wrong(ctypes.CDLL):
    """A library that computes nothing."""

    def __init__(self, _):
        pass

    def __getattr__(self, name):
        return lambda *_: None


@needs_kernels
def test_a_library_that_computes_wrongly_is_refused(monkeypatch):
    monkeypatch.setattr(native.ctypes, "CDLL", Wrong)
    assert native.load.__wrapped__() is None


@needs_kernels
def test_a_library_without_the_functions_is_refused(monkeypatch):
    monkeypatch.setattr(native, "_build", lambda: Path(ctypes.util.find_library("c") or ""))
    assert native.load.__wrapped__() is None


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_damaged_library_is_refused(content, tmp_path, monkeypatch):
    (tmp_path / "kernels.so").write_bytes(content)
    monkeypatch.setattr(native, "_build", lambda: tmp_path / "kernels.so")
    assert native.load.__wrapped__() is None


@needs_kernels
def test_source_that_does_not_compile_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path))
    (tmp_path / "kernels.cpp").write_text("no C++")
    monkeypatch.setattr(native, "SOURCE", tmp_path / "kernels.cpp")
    assert native.load.__wrapped__() is None
    assert [file.name for file in tmp_path.iterdir()] == ["kernels.cpp"]


@needs_kernels
def test_a_cache_folder_that_cannot_be_written_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "source.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(native, "SOURCE", tmp_path / "source.cpp")
    monkeypatch.setattr(native.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    library = native._build()
    assert library.parent == tmp_path / "temporary" / f"glocal-{os.getuid()}"
    assert ctypes.CDLL(str(library)).answer() == 42
    monkeypatch.setattr(native.os, "getuid", lambda: os.geteuid() + 1)  # the folder is another user's
    library.parent.rename(library.parent.with_name(f"glocal-{os.geteuid() + 1}"))
    with pytest.raises(FileNotFoundError, match="no folder for the compiled kernels"):
        native._build()


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / "named"))
    assert native.cache_dir() == tmp_path / "named"
    monkeypatch.delenv("GLOCAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert native.cache_dir() == tmp_path / "xdg" / "glocal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert native.cache_dir() == tmp_path / ".cache" / "glocal"

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.setattr(native.Path, "home", homeless)
    assert native.cache_dir() == native._temporary()


TESTS = Path(__file__).parent
REPOSITORY = TESTS.parents[1]
KERNELS = ["test_products.py", "test_sdpa.py", "test_blocks.py", "test_vocabulary.py"]


def run_tests(environment: dict[str, str], *arguments: str) -> int:
    """Run tests of this folder in a process of their own, since the variables are read when torch starts.

    Returns how many passed or were skipped.

    Types are checked in this process; to check them there would take twice as long.
    """
    environment = os.environ | environment | {"JAXTYPING_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return sum(map(int, re.findall(r"(\d+) (?:passed|skipped)", done.stdout)))


MORE = any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_f", "avx10_1"))
SHORT = "packed or implementation or path or decoding or timed"
SELECTED = 37
"""Tests that these words select: another name must not leave one out without a word."""


@pytest.mark.skipif(not MORE or native.capped(), reason="AVX2 is all that this processor has")
def test_an_older_processor():
    caps = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    assert run_tests(caps, *(str(TESTS / name) for name in KERNELS)) > SELECTED


@pytest.mark.skipif(native.plain(), reason="is plain already")
def test_plain_torch():
    assert run_tests({"GLOCAL_OPS": "plain"}, *(str(TESTS / name) for name in KERNELS[:2]), "-k", SHORT) >= SELECTED


@needs_kernels
def test_no_compiler(tmp_path):
    code = "from glocal.ops import native; assert native.load() is None"
    environment = {"CXX": "/nonexistent/c++", "PATH": "", "GLOCAL_CACHE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | environment, check=True)
    assert run_tests(environment, *(str(TESTS / name) for name in KERNELS[:2]), "-k", SHORT) >= SELECTED
