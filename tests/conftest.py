"""What all tests share: shapes checked by beartype, a share of the threads, a cache folder of their own, no network,
a small ViT, and two small tokenizers."""

import atexit
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any
from zlib import crc32

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: a test that would download fails at once

# Workers of pytest-xdist share the cores, and a cache folder, in which kernels are compiled and paths are chosen once.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = max(CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", CORES)), 1)
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of the processes that tests start, too

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, and processes that tests start, inherit the folder
    os.environ["GLOCAL_CACHE"] = tempfile.mkdtemp(prefix="glocal-tests-")
    atexit.register(shutil.rmtree, os.environ["GLOCAL_CACHE"], ignore_errors=True)

import jaxtyping  # noqa: E402

jaxtyped = jaxtyping.jaxtyped


def outer_functions_only(typechecker: Callable[..., object]) -> Callable[[Any], Any]:
    """Leave functions inside functions unchecked: checks would be compiled at each call of the function around them."""
    return lambda function: (
        function if "<locals>" in function.__qualname__ else jaxtyped(function, typechecker=typechecker)
    )


jaxtyping.jaxtyped = outer_functions_only
jaxtyping.install_import_hook("glocal", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from glocal.data import Tokenizer, TokenizerConfig, learn_tokenizer  # noqa: E402
from glocal.models import ViT, create_model  # noqa: E402
from glocal.ops import Linear, native  # noqa: E402

torch.set_num_threads(THREADS)

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "in_chans": 3,
    "num_classes": 5,
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 3,
}


UNCHECKED = (
    *("benchmarks", "examples", "export", "gpu", "page", "recipes", "reports", "robustness", "runner", "serve"),
    *("search/test_evaluator.py", "search/test_stages.py"),
)
"""Folders and files whose tests run whole commands, or many models: types and shapes are checked in the tests of each
package that states them, and to check every call takes up to half of a test's time."""

CHECKED = 4
"""Of the fast tests in the other folders, one in so many checks types and shapes, chosen by its name. `make test-all`
checks them in each, as `pytest -m ""` does."""

FAST_EXAMPLES = 20
"""Examples of a hypothesis test that states no number; all tests take hypothesis' default, 100."""

SLOW = ("search", "training", "runner", "examples", "ops", "models")
"""Folders and files whose tests come first, since a worker that begins a long file last ends long after the others."""


def pytest_configure(config: pytest.Config) -> None:
    """Let hypothesis try fewer examples in the fast tests than in all tests."""
    if config.option.markexpr:
        settings.register_profile("fast", max_examples=FAST_EXAMPLES)
        settings.load_profile("fast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of tests by how long they take."""
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        begins = item.path.relative_to(tests).parts[0] if item.path.is_relative_to(tests) else ""
        return SLOW.index(begins) if begins in SLOW else len(SLOW)

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check types and shapes in this test and its fixtures, or leave them unchecked."""
    tests = Path(__file__).parent
    unchecked = any(item.path.is_relative_to(tests / place) for place in UNCHECKED)
    if item.config.option.markexpr:
        unchecked = unchecked or crc32(item.nodeid.encode()) % CHECKED != 0
    jaxtyping.config.update("jaxtyping_disable", unchecked)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_vit() -> ViT:
    """A ViT of 16 patches, two blocks and five classes whose head is not zero, in evaluation mode."""
    return wake(create_model("vit-tiny", **TINY)).eval()


def wake(model):
    """Draw the parameters that start at zero or one, a head above all, so that nothing hides behind them."""
    for parameter in model.parameters():
        if parameter.numel() and (parameter == parameter.flatten()[0]).all():
            torch.nn.init.normal_(parameter, mean=parameter.flatten()[0].item(), std=0.1)
    return model


def packed_precisions(model) -> set[str]:
    """Precisions that a model's layers were packed for."""
    return {module.weight.packed.precision for module in model.modules() if isinstance(module, Linear)}


@pytest.fixture(scope="session")
def speller(tmp_path_factory) -> Tokenizer:
    """BERT's, with a vocabulary of single letters and digits: as many tokens as letters."""
    signs = [*ascii_lowercase, *digits]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs), *punctuation]
    folder = tmp_path_factory.mktemp("speller")
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def byter() -> Tokenizer:
    """GPT's, with no merges: as many tokens as bytes."""
    return learn_tokenizer(["a"], TokenizerConfig(kind="byte-bpe", vocab_size=259))


@pytest.fixture
def take(monkeypatch) -> Callable[[str], None]:
    """Set the implementation that attention, dropout and the operations over a vocabulary use, by its name."""
    modules = [importlib.import_module(f"glocal.ops.{name}") for name in ("attention", "elementwise", "vocabulary")]

    def patch(name: str) -> None:
        monkeypatch.setattr("glocal.ops.attention.SMALL", 0)
        for module in modules:
            monkeypatch.setattr(module, "choose", lambda *_, **__: name)

    return patch


@pytest.fixture
def kernels() -> None:
    """Skip a test of the compiled kernels where there are none; test_native.py checks that there are some."""
    if native.load() is None:
        pytest.skip("no compiled kernels: no compiler, no AVX2, or GLOCAL_OPS=plain")
