"""Linear layers, x Wᵀ + b: the function, the layer, and `pack`, which prepares a model for inference.

In training, `linear` is `F.linear`. In inference on a CPU, the weights of a packed model are laid out once as the
fastest implementation reads them, at the precision of the model:

| precision | weights                                       | inputs of our kernels                               |
| --------- | --------------------------------------------- | --------------------------------------------------- |
| float32   | float32                                       | float32                                             |
| fp16      | 11 bits, exponents of fp16                    | float32                                             |
| bf16      | 8 bits, exponents of float32                  | float32                                             |
| int8      | integers of -127 to 127, one scale per output | integers, one scale per row: 11 to 15 bits for up   |
|           |                                               | to 6 rows, 128 levels (256 with VNNI) for more rows |

The inputs of torch's own products are float32 too, except in bf16, where inputs and outputs are rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.ops.choice import PLAIN, choose, dtype_name, size_class
from glocal.ops.implementations import (
    DTYPES,
    PRECISIONS,
    Activation,
    Implementation,
    Layout,
    Panels,
    Precision,
    candidate_implementations,
    native_bf16,
)

COLD = 2**18
"""Number of weights from which a product is timed with empty caches."""


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        """Return x Wᵀ + b."""
        return linear(input, self.weight, self.bias)


@dataclass
class Packed:
    """The attribute that `pack` sets on a weight: its precision, and its layouts so far."""

    precision: Precision
    state: tuple[int, int] = (-1, -1)
    """Version and address of the weight that was laid out."""
    layouts: dict[str, Layout] = field(default_factory=dict)
    chosen: dict[tuple[int, torch.dtype, Activation, int], tuple[Implementation, Layout]] = field(default_factory=dict)
    """The chosen implementation, by class of rows, type of the inputs, activation and number of threads."""

    def panels(self, weight: Float[Tensor, "out dim"]) -> "Panels":
        """Return the weight in panels, which are made at the first call."""
        if "kernel" not in self.layouts:
            self.layouts["kernel"] = Panels(weight.detach(), self.precision)
        panels: Panels = self.layouts["kernel"]
        return panels

    def __reduce__(self) -> tuple[type["Packed"], tuple[Precision]]:
        """Pickle the precision alone; layouts are made again."""
        return Packed, (self.precision,)

    def drop(self, state: tuple[int, int] = (-1, -1)) -> None:
        """Drop the layouts, and record the state of the weight that the next ones are made of."""
        self.layouts.clear()
        self.chosen.clear()
        self.state = state


def pack(model: nn.Module, precision: Precision = "float32") -> nn.Module:
    """Prepare a model for inference at a precision, in place, and return it.

    On a CPU each weight of a linear layer or embedding is laid out anew where it is first multiplied; a layout is
    dropped where a gradient is wanted or the weight has changed. On other devices the model's parameters are converted.
    A pickled model stays packed; `copy.deepcopy` returns one that is not, since torch copies no attributes of
    parameters. Raises GlocalError for int8 on other devices than a CPU.
    """
    if precision not in PRECISIONS:
        raise GlocalError(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    weights = _weights(model)
    if not weights and precision != "float32":
        raise GlocalError(f"precision {precision} of a {type(model).__name__}, whose layers compute in float32 alone")
    device = next(model.parameters()).device.type
    if device != "cpu":
        if precision == "int8":
            raise GlocalError(f"precision int8 on {device}; int8 is computed on CPUs: choose fp16, or --device cpu")
        return model.to(DTYPES[precision])
    model.to(torch.bfloat16 if precision == "bf16" and native_bf16() else torch.float32)
    for weight in weights:
        weight.packed = Packed(precision, state_of(weight))  # type: ignore[attr-defined]
    return model


def fastest_precision(model: nn.Module, rows: int) -> Precision:
    """Return the faster one of float32 and fp16, timed on the model's largest linear layer with so many rows of inputs.

    fp16 is taken on a CPU alone, and only if the rounding error of every weight matrix is at most 2⁻¹¹ of its norm, so
    that no weight overflows. Inputs and sums are float32, and logits change by some 1e-4 of their size.
    """
    weights = _weights(model)
    if not weights or weights[0].device.type != "cpu" or not all(map(_fits_fp16, weights)):
        return "float32"
    layers = [module.weight for module in model.modules() if isinstance(module, Linear)]
    largest = max(layers or weights, key=Tensor.numel).detach().float()

    def candidates() -> dict[str, Callable[[], object]]:
        x = torch.randn(rows, largest.shape[1])
        packed: dict[str, Packed] = {PLAIN: Packed("float32"), "fp16": Packed("fp16")}
        return {name: partial(product, x, largest, None, of) for name, of in packed.items()}

    with torch.inference_mode():
        name = choose(("precision", *largest.shape, rows), candidates, cold=largest.numel() > COLD)
    return "fp16" if name == "fp16" else "float32"


def _weights(model: nn.Module) -> list[Tensor]:
    """Return the weights that `linear` multiplies by: those of layers, and of embeddings, which output layers share."""
    layers = [module.weight for module in model.modules() if isinstance(module, Linear)]
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return layers + embeddings if layers else []


def _fits_fp16(weight: Tensor) -> bool:
    error = torch.linalg.vector_norm(weight.detach().float() - weight.detach().half().float())
    return bool(error <= 2**-11 * torch.linalg.vector_norm(weight.detach().float()))


def linear(
    x: Float[Tensor, "*batch dim"], weight: Float[Tensor, "out dim"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """`F.linear(x, weight, bias)`, at the precision that the weight was packed for."""
    packed = packed_weight(x, weight)
    if packed is None:
        return F.linear(x, weight, bias)
    return product(x, weight, bias, packed)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, act: Activation = "none") -> Tensor:
    """act(x Wᵀ + b) with packed weights, by the fastest implementation for this number of rows."""
    rows = x.numel() // x.shape[-1]
    case = size_class(max(rows, 1)), x.dtype, act, torch.get_num_threads()
    if case not in packed.chosen:
        packed.chosen[case] = _choose_implementation(case[0], x.dtype, act, weight, packed)
    implementation, layout = packed.chosen[case]
    return implementation.product(x, layout, bias, act)


def packed_weight(x: Tensor, weight: Tensor) -> Packed | None:
    """Return the packed form of a weight, None where this product cannot use it."""
    packed: Packed | None = getattr(weight, "packed", None)
    if packed is None or x.shape[-1] != weight.shape[1]:  # for another shape, F.linear raises an error
        return None
    if torch.is_grad_enabled():  # fused optimizers change weights without changing their version
        packed.drop()
        return None
    if not eager_cpu(x) or torch.is_autocast_enabled("cpu"):
        return None
    if packed.state != (state := state_of(weight)):
        packed.drop(state)
    return packed


def eager_cpu(x: Tensor) -> bool:
    """Whether operations on `x` run at once on a CPU: not compiled, transformed by torch.func, counted or faked."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return x.is_cpu and not transformed and not torch._C._len_torch_dispatch_stack()


def state_of(weight: Tensor) -> tuple[int, int]:
    """Return the version and the address of a weight, one of which changes where the weight does."""
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()


def _choose_implementation(
    rows: int, dtype: torch.dtype, act: Activation, weight: Tensor, packed: Packed
) -> tuple[Implementation, Layout]:
    known = candidate_implementations(packed.precision, dtype)
    out, dim = weight.shape

    def candidates() -> dict[str, Callable[[], object]]:
        x = torch.randn(rows, dim, dtype=dtype)
        made = packed.layouts
        layouts = made | {name: known[name].lay_out(weight) for name in known if name not in made}
        return {name: partial(known[name].product, x, layouts[name], None, act) for name in known}

    key = ("linear", packed.precision, dtype_name(dtype), out, dim, rows, act)
    with torch.inference_mode():
        name = choose(key, candidates, cold=weight.numel() > COLD)
        name = name if name in known else PLAIN
        if name not in packed.layouts:
            packed.layouts[name] = known[name].lay_out(weight)
    return known[name], packed.layouts[name]
