"""What of a model is trained, and what is left in it and on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from toys import CLASSES, ToyData, ToyModel, toy_config, toy_task

from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.training import LoRAConfig, RunFolder, fit
from glocal.training.checkpoint import read_checkpoint
from glocal.training.tuning import add_lora, freeze, set_training

SMALL = LoRAConfig(rank=2, alpha=6, targets=("0",))


def test_lora_takes_the_matrices_of_local_heads() -> None:
    config = BlockConfig(embed_dim=8, num_heads=2, local_heads=1, local_norm="layer", kernel_size=3, causal=True)
    block = Block(config).eval()
    x = torch.randn(2, 5, 8)
    before = block(x)
    adapted = add_lora(block, LoRAConfig(rank=2, targets=("expand", "contract")))
    assert torch.equal(adapted(x), before)
    trained = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trained} == {"expand", "contract"}
    adapted(x).sum().backward()
    assert all(block.get_parameter(name).grad is not None for name in trained)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def tuned(folder: Path, **fields: Any) -> tuple[dict[str, Tensor], ToyModel, RunFolder]:
    """The weights before, the model after, its run."""
    torch.manual_seed(0)
    model, run = ToyModel(), RunFolder.create(folder, "")
    before = state(model)
    fit(model, toy_task(), ToyData(), toy_config(**({"tune": "lora", "lora": SMALL} | fields)), run)
    return before, model, run


@pytest.mark.parametrize("fields", [{}, {"ema": 0.0}, {"ema": 0.0, "average": 2}])
def test_lora_adds_its_product_and_nothing_else(tmp_path: Path, fields: dict[str, Any]) -> None:
    before, model, run = tuned(tmp_path / "run", **fields)
    after, adapter = model.state_dict(), load_file(run.adapter / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.body.0.lora_{name}.weight"] for name in "AB")
    assert after.keys() == before.keys()
    for name, weight in after.items():
        if name == "body.0.weight":
            assert (b @ a).abs().max() > 0.01
            torch.testing.assert_close(weight, before[name] + 3 * b @ a)  # α/r
        elif name.startswith("head"):
            assert torch.equal(weight, adapter[f"base_model.model.{name}"])
        else:
            assert torch.equal(weight, before[name]), name  # batch norm's statistics too
    assert len(adapter) == 4


def test_merged_weights_answer_as_the_adapter_does(tmp_path: Path) -> None:
    before, model, run = tuned(tmp_path / "run")
    base = ToyModel()
    base.load_state_dict(before)
    adapted, inputs = PeftModel.from_pretrained(base, str(run.adapter)).eval(), ToyData().inputs
    torch.testing.assert_close(model.eval()(inputs), adapted(inputs), rtol=0, atol=1e-5)


def test_the_report_says_how_much_was_trained(tmp_path: Path) -> None:
    _, model, run = tuned(tmp_path / "run")
    report, trained = run.read_report(), 2 * (6 + 16) + 17 * CLASSES
    assert report["parameters"] == sum(weight.numel() for weight in model.parameters())  # the adapter's own are merged
    assert report["trained_parameters"] == trained
    assert report["trained_share"] == trained / report["parameters"]
    assert report["adapter_bytes"] == sum(file.stat().st_size for file in run.adapter.iterdir())
    assert {file.name for file in run.adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_lora_learns_in_bf16(tmp_path: Path) -> None:
    _, model, run = tuned(tmp_path / "run", precision="bf16", epochs=12, lr=0.03)
    assert run.read_report()["val"]["top1"] > 0.6
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    saved = read_checkpoint(run.last)["model"]
    assert {value.dtype for value in saved.values()} == {torch.float32, torch.int64}


def awake(model: nn.Module) -> None:
    """Let the adapters say something: their products are zero at first."""
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)


@pytest.mark.parametrize("targets", [("qkv",), ("proj", "fc2"), ("all-linear",)])
def test_lora_in_a_vision_transformer(tiny_vit: nn.Module, targets: tuple[str, ...]) -> None:
    """It takes part in the answer, in inference and in training; merged, the answer is the same."""
    images, plain = torch.randn(3, 3, 32, 32), state(tiny_vit)
    task = ClassificationObjective(ClassificationConfig(), 5)
    with torch.no_grad():
        first = tiny_vit(images)
    adapter = add_lora(tiny_vit, LoRAConfig(rank=3, targets=targets)).eval()
    with torch.no_grad():
        assert torch.equal(tiny_vit(images), first)
    awake(tiny_vit)
    task.loss(tiny_vit, {"pixel_values": images, "labels": torch.arange(3)}).backward()
    for name, weight in tiny_vit.named_parameters():
        assert weight.requires_grad == ("lora_" in name or name.startswith("head.modules_to_save")), name
        assert (weight.grad is not None and bool(weight.grad.any())) == weight.requires_grad, name
    with torch.no_grad():
        second = tiny_vit(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert (tiny_vit(images) - second).abs().max() < 0.1 * second.abs().max()
    assert (second - first).abs().max() > 0.1
    adapter.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(tiny_vit(images), second, rtol=0, atol=1e-5)
    assert tiny_vit.state_dict().keys() == plain.keys()


@pytest.mark.parametrize(
    "config",
    [
        BlockConfig(embed_dim=12, num_heads=3, norm="post"),
        BlockConfig(embed_dim=12, num_heads=3, norm="post", activation="relu", causal=True, cross=True),
    ],
    ids=["BERT's", "the decoder's"],
)
def test_lora_in_a_block_of_text(config: BlockConfig) -> None:
    x, mask = torch.randn(2, 5, 12), torch.arange(5) < torch.tensor([5, 3])[:, None]
    inputs: dict[str, Any] = {"mask": mask[:, None, None]}
    if config.cross:
        inputs = {"context": torch.randn(2, 4, 12)}
    block = nn.Sequential(Block(config).eval())  # peft looks for names within something
    first = block[0](x, **inputs)
    adapter = add_lora(block, LoRAConfig(rank=2))
    assert {name.split(".")[-4] for name, weight in block.named_parameters() if weight.requires_grad} == (
        {"qkv", "q", "kv"} if config.cross else {"qkv"}
    )
    awake(block)
    second = block[0](x, **inputs)
    assert (second - first).abs().max() > 0.01
    second.sum().backward()
    adapter.merge_and_unload()
    torch.testing.assert_close(block[0](x, **inputs), second, rtol=0, atol=1e-5)


def test_names_that_no_matrix_has_are_refused(tiny_vit: nn.Module) -> None:
    with pytest.raises(GlocalError, match=r"targets query, value: a ViT has no such matrix.* named .*fc1.*qkv"):
        add_lora(tiny_vit, LoRAConfig(targets=("query", "value")))


def test_a_model_without_a_head_has_no_head_to_tune() -> None:
    with pytest.raises(GlocalError, match=r"train\.tune is head, and a Sequential has none"):
        freeze(nn.Sequential(nn.Linear(2, 2)), toy_config(tune="head"))


@pytest.mark.parametrize(
    ("tune", "training"),
    [("all", {"head", "norm", "drop"}), ("head", {"head"}), ("lora", {"head", "drop"})],
)
def test_what_is_frozen_keeps_still(tune: str, training: set[str]) -> None:
    model = ToyModel()
    config = toy_config(tune=tune, lora=SMALL)
    freeze(model, config)
    model.eval()
    set_training(model, config)
    parts = {"head": model.head, "norm": model.body[1], "drop": model.body[3]}
    assert {name for name, part in parts.items() if part.training} == training
