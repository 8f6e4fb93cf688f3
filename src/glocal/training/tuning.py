"""Which weights are trained, by `train.tune`: all, the head's, or small matrices beside frozen ones.

    Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*
    https://arxiv.org/abs/2106.09685

peft adds the small matrices to the model, where the loop, checkpoints and averages treat them as any weights, and
merges them at the end: W = W₀ + (α/r) B A.
"""

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from glocal.errors import GlocalError
from glocal.files import replacing
from glocal.training.config import LoRAConfig, TrainConfig


def freeze(model: nn.Module, config: TrainConfig) -> PeftModel | None:
    """Freeze the weights that `train.tune` leaves out; with LoRA, add its matrices and return the adapted model.

    Raises GlocalError if the model has no head, or no matrix of `train.lora.targets`.
    """
    if config.tune == "head":
        freeze_all_but_head(model)
    return add_lora(model, config.lora) if config.tune == "lora" else None


def freeze_all_but_head(model: nn.Module) -> None:
    """Freeze all weights but the head's. Raises GlocalError if the model has no head."""
    if not has_head(model):
        raise GlocalError(f"train.tune is head, and a {type(model).__name__} has none; set it to all or lora")
    model.requires_grad_(False)
    model.get_submodule("head").requires_grad_(True)


def add_lora(model: nn.Module, config: LoRAConfig) -> PeftModel:
    """Add B A, zero at first, to each matrix of `targets`, and freeze all other weights but the head's.

    Raises GlocalError if no matrix has such a name.
    """
    every = config.targets == ("all-linear",)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if every else list(config.targets),
        modules_to_save=["head"] if has_head(model) else None,
    )
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    try:
        return get_peft_model(model, lora)
    except ValueError:
        raise GlocalError(
            f"train.lora.targets {', '.join(config.targets)}: a {type(model).__name__} has no such matrix outside its "
            f"head; its matrices are named {', '.join(sorted(names))}; or give all-linear"
        ) from None


def has_head(model: nn.Module) -> bool:
    """Whether the model has a module `head`; an encoder-decoder has none."""
    return isinstance(getattr(model, "head", None), nn.Module)


def set_training(model: nn.Module, config: TrainConfig) -> None:
    """Set training mode, but not for frozen modules: with `head`, all of these; with `lora`, batch norm."""
    model.train(config.tune != "head")
    if config.tune == "head":
        model.get_submodule("head").train()
    if config.tune == "lora":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def save_adapter(adapter: PeftModel, folder: Path) -> int:
    """Save the trained weights as `PeftModel.from_pretrained(model, folder)` reads them, and return their bytes."""
    with replacing(folder) as draft:
        adapter.save_pretrained(str(draft), save_embedding_layers=False)
        (draft / "README.md").unlink()  # a template that nothing fills in
    return sum(file.stat().st_size for file in folder.iterdir())
