"""What a model costs: parameters and multiply-accumulates, block by block.

One MAC is one multiplication and one addition: two FLOPs. Matrix products and convolutions are counted, attention's
own two products among them; element-wise passes (norms, activations, softmax) are not, as is the custom in papers. As
there, all tokens count in every block, though the last block of a ViT, or of a BERT that classifies texts, computes
only those that its head reads.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from glocal.models.bert import BERT
from glocal.models.generative import EncoderDecoder
from glocal.models.vit import ViT

# Where the parts of a Transformer belong, ours and timm's; each part of another network is a separate row.
PLACES = (
    dict.fromkeys(("stem", "token_type_embed", "embedding_norm"), "embedding")
    | dict.fromkeys(("patch_embed", "cls_token", "dist_token", "pos_embed"), "embedding")
    | dict.fromkeys(("norm", "mlm_head", "head", "fc_norm", "head_dist", "decoder_norm", "logit_bias", ""), "head")
)
STACKS = {"blocks": "block", "encoder": "encoder", "decoder": "decoder"}
SUBLAYERS = (
    dict.fromkeys(("norm1", "mixer", "attn", "ls1"), "mixer")
    | dict.fromkeys(("norm_cross", "cross"), "cross")
    | dict.fromkeys(("norm2", "mlp", "ls2"), "mlp")
)


@dataclass(frozen=True)
class Row:
    """What one part of a model costs for one example."""

    name: str
    """`embedding`, `block 0` (or `encoder 0`), ..., `head`; in a timm network timm's names, such as `layer1.0`."""
    part: str
    """`mixer`, `cross` or `mlp` inside a block, else empty."""
    parameters: int
    macs: int
    """Multiply-accumulates: half the FLOPs."""


@dataclass(frozen=True)
class Cost:
    """A model's rows, in the order of the forward pass, and the example that they hold for."""

    example: str
    """What is counted, for readers."""
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        """Multiply-accumulates from one example to its logits."""
        return sum(row.macs for row in self.rows)


@dataclass(frozen=True)
class Example:
    """What a model's cost is counted for."""

    shapes: tuple[tuple[int, ...], ...]
    """Of each input: the channels, the height and the width of an image, or the number of tokens of a text."""

    @staticmethod
    def of(model: nn.Module, size: tuple[int, int] | int, in_chans: int = 3) -> "Example":
        """Return an image of (height, width), or a text of `size` tokens, and what translates takes as many again."""
        if not isinstance(size, int):
            return Example(((in_chans, *size),))
        return Example(((size,),) * (2 if isinstance(model, EncoderDecoder) else 1))

    @property
    def channels(self) -> int:
        """Channels of an image; 1 for a text."""
        return self.shapes[0][0] if len(self.shapes[0]) > 1 else 1

    def __str__(self) -> str:
        (*_, size), *others = self.shapes
        if len(self.shapes[0]) > 1:
            return "an image of {}×{}".format(*self.shapes[0][1:])
        return f"{size} tokens" + (f" and {size} of their translation" if others else "")

    def inputs(self, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return a batch of such examples: zeros, on the default device."""
        return tuple(
            torch.zeros(batch_size, *shape, dtype=torch.float32 if len(shape) > 1 else torch.int64)
            for shape in self.shapes
        )


def count(model: nn.Module, size: tuple[int, int] | int, in_chans: int = 3) -> Cost:
    """Count one example on tensors without data: nothing is computed, so no model is too large.

    `size` is an image's (height, width), or a text's number of tokens; what translates takes as many of the target.

    DeiT-Tiny at 224² comes to 5.7 M parameters and 1.3 G MACs, ViT-B/16 to 86.6 M and 17.6 G; networks of timm's are
    counted in the same way.
    """
    counted = model
    if isinstance(model, ViT) or (isinstance(model, BERT) and model.config.head == "classification"):
        counted = _EveryToken(model)
    tensors = dict(counted.named_parameters()) | dict(counted.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    example = Example.of(model, size, in_chans)
    with torch.device("meta"):
        inputs = example.inputs()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(counted, shapes, inputs)
    finally:
        model.train(was_training)

    parameters: Counter[tuple[str, str]] = Counter()
    for name, parameter in model.named_parameters():
        parameters[_place(name)] += parameter.numel()
    macs: Counter[tuple[str, str]] = Counter()
    for name, flops in _own_flops(counter).items():
        macs[_place(name)] += flops // 2
    places = dict.fromkeys([*parameters, *macs])  # registered in the order in which examples pass
    rows = (Row(*place, parameters[place], macs[place]) for place in places)
    return Cost(str(example), tuple(row for row in rows if row.parameters or row.macs))


class _EveryToken(nn.Module):
    def __init__(self, net: ViT | BERT) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net.head(self.net.forward_features(inputs))


def _own_flops(counter: FlopCounterMode) -> Counter[str]:
    """FLOPs of each module without the FLOPs of the modules inside it, by the module's dotted name."""
    totals = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name != "Global"}
    own: Counter[str] = Counter()
    for name, flops in totals.items():
        own[name] += flops
        parent = name.rpartition(".")[0]
        while parent and parent not in totals:  # a list of modules is not called, so it is not counted
            parent = parent.rpartition(".")[0]
        own[parent] -= flops
    return Counter({name.partition(".")[2]: flops for name, flops in own.items() if name})


def _place(name: str) -> tuple[str, str]:
    """The row of a module's or parameter's dotted name; a network inside another stands under `net`."""
    name = name.removeprefix("net.")
    first, second, third, *_ = [*name.split("."), "", ""]
    if not second.isdigit():
        return PLACES.get(first, first), ""
    if first in STACKS:
        return f"{STACKS[first]} {second}", SUBLAYERS.get(third, "")
    return f"{first}.{second}", ""
