"""The training step by torch.compile: when, for which batches, and that nothing else changes."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from test_distributed import finish, start
from test_resume import FragileData, Killed, assert_same, assert_same_run, rows
from torch import nn
from toys import ToyData, ToyModel, toy_config, toy_task, train_toy

from glocal.errors import GlocalError
from glocal.models import create_model
from glocal.tasks.causal_lm import CausalLMObjective
from glocal.tasks.masked_lm import MaskedLMObjective
from glocal.training import LoRAConfig, RunFolder, compiling, fit
from glocal.training.checkpoint import read_checkpoint
from glocal.training.compiling import PAYS_FROM, Compiled, choose_compile

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),  # torch's own
]

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that torch.compile makes, which are then computed eagerly; it cannot look through checks of shapes."""
    found: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "SETTINGS", {"backend": keep})
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield found
    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", False)


def fitted(folder: Path, data: ToyData, **fields: Any) -> RunFolder:
    torch.manual_seed(0)
    run = RunFolder.create(folder, "")
    fit(ToyModel(), toy_task(), data, toy_config(**fields), run)
    return run


@pytest.mark.parametrize(
    "fields",
    [{}, {"precision": "bf16"}, {"ema": 0.0, "tune": "lora", "lora": LoRAConfig(rank=2, targets=("0",))}],
    ids=["ema", "bf16", "lora"],
)
def test_a_compiled_run_is_the_eager_run(tmp_path: Path, graphs: list[Any], fields: dict[str, Any]) -> None:
    """100 examples end in a smaller batch, which is computed eagerly."""
    runs = [
        fitted(tmp_path / choice, ToyData(100), accumulate=2, compile=choice, **fields)
        for choice in ("never", "always")
    ]
    eager, compiled = runs
    assert [run.read_report()["compiled"] for run in runs] == [False, True]
    assert len([graph for graph in graphs if len(graph.graph.nodes) > 5]) == 1
    for kind in ("model", "average"):
        assert_same(read_checkpoint(eager.last)[kind], read_checkpoint(compiled.last)[kind])
    assert_same(read_checkpoint(eager.best), read_checkpoint(compiled.best))
    assert rows(eager) == rows(compiled)


@pytest.mark.parametrize("dies_at", [(0, 7), (2, 11)])
def test_a_compiled_run_resumes_to_the_same_weights(tmp_path: Path, dies_at: tuple[int, int]) -> None:
    fields = {"compile": "always", "save_every": 2, "accumulate": 2}
    whole = train_toy(tmp_path / "whole", **fields)
    torch.manual_seed(0)
    run = RunFolder.create(tmp_path / "stopped", "")
    with pytest.raises(Killed):
        fit(ToyModel(), toy_task(), FragileData(dies_at), toy_config(**fields), run)
    torch.compiler.reset()
    train_toy(run.path, resume=True, **fields)
    assert_same_run(whole, run)


def test_compiled_processes_are_eager_ones(tmp_path: Path) -> None:
    for choice in ("never", "always"):
        assert finish(start(tmp_path / choice, norm=False, epochs=2, accumulate=2, compile=choice)) == {0}
    eager, compiled = (RunFolder.open(tmp_path / choice) for choice in ("never", "always"))
    assert compiled.read_report()["compiled"]
    for name, weight in read_checkpoint(eager.last)["model"].items():
        torch.testing.assert_close(read_checkpoint(compiled.last)["model"][name], weight, rtol=0, atol=2e-6)


def language_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(50, (4, 16))
    return {"input_ids": ids, "labels": ids.roll(-1, 1).masked_fill(torch.rand(4, 16) < 0.5, -100)}


@pytest.mark.parametrize(
    ("name", "task", "last"),
    [("gpt-tiny", CausalLMObjective, "cross_entropy"), ("bert-tiny", MaskedLMObjective, "layer_norm")],
)
def test_one_graph_serves_every_batch_of_a_shape(
    graphs: list[torch.fx.GraphModule], name: str, task: type[Any], last: str
) -> None:
    """Also where each batch has another number of labels; BERT's heads, which meet those alone, stay out of it."""
    still = {"dropout": 0.0, "attn_drop": 0.0}
    special = {"pad_id": 0, "bos_id": 0, "eos_id": 0} if name == "gpt-tiny" else {}
    model: Any = create_model(name, vocab_size=50, depth=2, embed_dim=24, num_heads=3, **still, **special)
    objective = Objective(task(), model.train())
    loss = Compiled(objective, objective.task, language_batch())
    for _ in range(3):
        batch = language_batch()
        torch.testing.assert_close(loss(batch), task().loss(model, batch))
    loss({key: tensor[:3] for key, tensor in batch.items()})
    (graph,) = graphs
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert any(last in call for call in calls[-3:])


class Objective(nn.Module):
    def __init__(self, task: Any, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.task.loss(self.model, batch)


class OnePathOfMany(nn.Module):
    has_unused_parameters = True


@pytest.mark.parametrize(
    ("choice", "device", "model", "steps", "compiles", "reason"),
    [
        ("auto", CUDA, nn.Linear(1, 1), float(PAYS_FROM), True, "compiling"),
        ("auto", CUDA, nn.Linear(1, 1), PAYS_FROM - 1.0, False, "2999 steps are fewer than 3,000"),
        ("auto", CUDA, nn.Linear(1, 1), None, False, "a run of minutes"),
        ("auto", CPU, nn.Linear(1, 1), 1e9, False, "^$"),
        ("never", CUDA, nn.Linear(1, 1), 1e9, False, "^$"),
        ("always", CPU, nn.Linear(1, 1), 1.0, True, "compiling"),
        ("always", CPU, nn.Linear(1, 1), None, True, "compiling"),
        ("auto", CUDA, OnePathOfMany(), 1e9, False, "supernet"),
        ("always", CUDA, OnePathOfMany(), 1e9, False, "supernet"),
    ],
)
def test_the_choice(
    monkeypatch: pytest.MonkeyPatch,
    choice: Any,
    device: torch.device,
    model: nn.Module,
    steps: float | None,
    compiles: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(compiling, "compiler_fault", lambda device: None)
    chosen, said = choose_compile(toy_config(compile=choice), model, device, steps)
    assert chosen == compiles
    assert re.search(reason, said)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(compiling, "SETTINGS", {"backend": broken})
    said = choose_compile(toy_config(compile="auto"), nn.Linear(1, 1), CPU, 1e9)
    assert said == (False, "")
    fault = compiling.compiler_fault(CPU)
    assert fault is not None
    assert "Failed to find C compiler" in fault
    monkeypatch.setattr(compiling, "compiler_fault", lambda device: fault)
    chosen, reason = choose_compile(toy_config(), nn.Linear(1, 1), CUDA, 1e9)
    assert not chosen
    assert "torch.compile fails on cuda: " in reason
    with pytest.raises(
        GlocalError, match=r"train\.compile is always, and torch\.compile fails on cpu: .*set it to never"
    ):
        choose_compile(toy_config(compile="always"), nn.Linear(1, 1), CPU, 1e9)


@pytest.mark.slow
def test_inductor_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    eager, compiled = (fitted(tmp_path / choice, ToyData(), epochs=1, compile=choice) for choice in ("never", "always"))
    for name, weight in read_checkpoint(eager.last)["model"].items():
        torch.testing.assert_close(read_checkpoint(compiled.last)["model"][name], weight, rtol=1e-4, atol=1e-5)
