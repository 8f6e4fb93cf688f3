"""The GPU's benchmark, tried on the CPU with small models."""

import csv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest
import torch

from glocal.training import compiling

pytestmark = [  # torch.compile's own, and what it cannot look through
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.setattr(compiling, "SETTINGS", compiling.SETTINGS)
    jaxtyping.config.update("jaxtyping_disable", True)
    import gpu

    yield gpu
    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "models", [["gpt2"], pytest.param(["gpt2", "deit-tiny", "bert-base", "deit-small"], marks=pytest.mark.slow)]
)
def test_a_row_for_each_model_and_way(
    gpu: ModuleType,
    tmp_path: Path,
    models: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--device", "cpu", "--tiny", "--models", *models, "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["gpu.py", *words])
    gpu.main()
    assert "share of peak unknown" in capsys.readouterr().out
    (table,) = tmp_path.iterdir()
    assert table.name.startswith("speed-gpu-")
    rows = list(csv.DictReader(table.open()))
    assert [(row["model"], row["way"]) for row in rows] == [
        (model, way) for model in models for way in ("eager", "compiled", "best")
    ]
    for row in rows:
        assert float(row["ours"]) > 0
        assert float(row["theirs"]) > 0
        assert float(row["quartile1"]) <= float(row["ratio"]) <= float(row["quartile3"])
        assert (row["our_share_of_peak"], row["their_share_of_peak"]) == ("unknown", "unknown")
        assert row["machine"]
        assert row["transformers_version"]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA A1000", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_card_is_found_by_its_name(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert gpu.find_peak(gpu.torch.device("cuda")) == peak
    assert gpu.find_peak(gpu.torch.device("cpu")) is None


def test_flops_are_six_a_weight_and_token_and_attention(gpu: ModuleType) -> None:
    """6 N T + 12 L D T², N with the vocabulary's product and no embeddings (Chowdhery et al. 2022, PaLM)."""
    depth, dim, tokens, vocabulary = 2, 24, 16, 50
    special = {"pad_id": 0, "bos_id": 0, "eos_id": 0}
    model = gpu.create_model("gpt-tiny", depth=depth, embed_dim=dim, num_heads=3, vocab_size=vocabulary, **special)
    weights = depth * 12 * dim**2 + vocabulary * dim
    expected = 6 * weights * tokens + 12 * depth * dim * tokens**2
    assert gpu.training_flops(model, tokens) == expected
    without = 6 * vocabulary * dim * tokens / 2
    assert gpu.training_flops(model, tokens, head_share=0.5) == expected - without
