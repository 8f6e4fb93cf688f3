"""Products with weights: x Wᵀ + b, its layer, and what `pack` prepares a model for.

In training, `linear` is `F.linear`. In inference on a CPU the weights of a packed model are laid out once in the form
that the fastest product reads, at the precision of the model:

| precision | weights                                       | inputs of our kernels                               |
| --------- | --------------------------------------------- | --------------------------------------------------- |
| float32   | float32                                       | float32                                             |
| fp16      | 11 bits, exponents of fp16                    | float32                                             |
| bf16      | 8 bits, exponents of float32                  | float32                                             |
| int8      | integers of -127 to 127, one scale per output | integers, one scale per row: 11 to 15 bits for up   |
|           |                                               | to 6 rows, 128 levels (256 with VNNI) for more rows |

torch's own products take float32 too, but for those in bf16, which round inputs and outputs to it.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.ops import native
from glocal.ops.choice import PLAIN, choose, dtype_name, size_class

Precision = Literal["float32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Activation = Literal["none", "relu", "gelu_tanh", "silu", "gelu"]
"""What may follow a product: ReLU, SiLU, or GELU and its approximation (Hendrycks and Gimpel 2016, section 2)."""

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""Their numbers in kernels.cpp."""

GELU = {"gelu": "none", "gelu_tanh": "tanh"}
"""torch's words for the two forms of GELU."""

WIDTH = 16
"""Outputs in a panel of kernels.cpp."""
COLD = 2**18
"""Weights from which a product is timed with empty caches."""

Layout = Any
"""Weights as one path reads them."""


class Linear(nn.Linear):
    """torch's layer, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        """Return x Wᵀ + b."""
        return linear(input, self.weight, self.bias)


@dataclass(frozen=True)
class Path:
    """One way to compute a product with weights of a given precision."""

    lay_out: Callable[[Tensor], Layout]
    """From the model's weights (out, in) to what `product` reads."""
    product: Callable[[Tensor, Layout, Tensor | None, Activation], Tensor]
    """act(x Wᵀ + b)."""


@dataclass
class Packed:
    """What `pack` attaches to a weight: its precision, and the layouts that were made of it so far."""

    precision: Precision
    state: tuple[int, int] = (-1, -1)
    """Version and address of the weight that the layouts were made of."""
    layouts: dict[str, Layout] = field(default_factory=dict)
    paths: dict[tuple[int, torch.dtype, Activation, int], tuple[Path, Layout]] = field(default_factory=dict)
    """The chosen path by class of rows, type of the inputs, activation and number of threads."""

    def panels(self, weight: Float[Tensor, "out dim"]) -> "Panels":
        """Return the weight in panels, made where they are missing."""
        if "kernel" not in self.layouts:
            self.layouts["kernel"] = Panels(weight.detach(), self.precision)
        panels: Panels = self.layouts["kernel"]
        return panels

    def __reduce__(self) -> tuple[type["Packed"], tuple[Precision]]:
        """Pickle the precision alone: layouts are made anew."""
        return Packed, (self.precision,)

    def drop(self, state: tuple[int, int] = (-1, -1)) -> None:
        """Drop the layouts, to be made anew of a weight in that state."""
        self.layouts.clear()
        self.paths.clear()
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
        weight.packed = Packed(precision, _state(weight))  # type: ignore[attr-defined]
    return model


def fastest_precision(model: nn.Module, rows: int) -> Precision:
    """Return the faster one of float32 and fp16 for products of so many rows with the model's largest weight.

    fp16 is taken on a CPU alone, and where it rounds no weight by much more than 1/2048 of itself: then inputs and sums
    are float32, and logits change by some 1e-4 of their size.
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
    """Weights that are multiplied by `linear`: those of layers, and of embeddings, which output layers share."""
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
    """act(x Wᵀ + b) with packed weights, by the fastest path for this number of rows."""
    rows = x.numel() // x.shape[-1]
    case = size_class(max(rows, 1)), x.dtype, act, torch.get_num_threads()
    if case not in packed.paths:
        packed.paths[case] = _choose_path(case[0], x.dtype, act, weight, packed)
    path, layout = packed.paths[case]
    return path.product(x, layout, bias, act)


def packed_weight(x: Tensor, weight: Tensor) -> Packed | None:
    """Return what a weight was packed as, where that holds for this product."""
    packed: Packed | None = getattr(weight, "packed", None)
    if packed is None or x.shape[-1] != weight.shape[1]:  # F.linear raises the error of the second
        return None
    if torch.is_grad_enabled():  # fused optimizers change weights without a new version
        packed.drop()
        return None
    if not eager_cpu(x) or torch.is_autocast_enabled("cpu"):
        return None
    if packed.state != (state := _state(weight)):
        packed.drop(state)
    return packed


def eager_cpu(x: Tensor) -> bool:
    """Whether operations on `x` run at once on a CPU: not compiled, transformed by torch.func, counted or faked."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return x.device.type == "cpu" and not transformed and not torch._C._len_torch_dispatch_stack()


@cache
def native_bf16() -> bool:
    """Whether the processor computes products in bf16, and oneDNN packs weights for them."""
    if not (native.computes_bf16() and torch.backends.mkldnn.is_available()):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _state(weight: Tensor) -> tuple[int, int]:
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()


def _choose_path(rows: int, dtype: torch.dtype, act: Activation, weight: Tensor, packed: Packed) -> tuple[Path, Layout]:
    paths = _paths(packed.precision, dtype)
    out, dim = weight.shape

    def candidates() -> dict[str, Callable[[], object]]:
        x = torch.randn(rows, dim, dtype=dtype)
        made = packed.layouts
        layouts = made | {name: path.lay_out(weight) for name, path in paths.items() if name not in made}
        return {name: partial(paths[name].product, x, layouts[name], None, act) for name in paths}

    key = ("linear", packed.precision, dtype_name(dtype), out, dim, rows, act)
    with torch.inference_mode():
        name = choose(key, candidates, cold=weight.numel() > COLD)
        name = name if name in paths else PLAIN
        if name not in packed.layouts:
            packed.layouts[name] = paths[name].lay_out(weight)
    return paths[name], packed.layouts[name]


def _paths(precision: Precision, dtype: torch.dtype) -> dict[str, Path]:
    """Candidates for inputs of a type. The plain one is `F.linear` with weights rounded to the precision."""
    paths = {PLAIN: Path(lambda weight: round_weights(weight, precision).to(dtype), _plain)}
    if _onednn_packs(precision, dtype):
        paths["onednn"] = Path(lambda weight: _reorder(round_weights(weight, precision).to(dtype)), _onednn)
    if dtype == torch.float32:
        if precision == "bf16":
            paths["bfloat16"] = Path(lambda weight: weight.bfloat16(), _bfloat16)
        if precision == "fp16" and "fbgemm" in torch.backends.quantized.supported_engines:
            paths["fbgemm"] = Path(_fbgemm_pack, _fbgemm)
        if native.load() is not None:
            paths["kernel"] = Path(lambda weight: Panels(weight, precision), _kernel)
    return paths


def _onednn_packs(precision: Precision, dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of a type: bf16 only where the processor computes in it."""
    if dtype == torch.bfloat16:
        return native_bf16()
    return dtype == torch.float32 and precision == "float32" and torch.backends.mkldnn.is_available()


def round_weights(weight: Float[Tensor, "out dim"], precision: Precision) -> Float[Tensor, "out dim"]:
    """Weights as they are at a precision, in their own type."""
    if precision == "int8":
        integers, scales = quantise(weight)
        return (integers * scales[:, None]).to(weight.dtype)
    return weight.to(DTYPES[precision]).to(weight.dtype)


def quantise(weight: Float[Tensor, "out dim"]) -> tuple[Tensor, Float[Tensor, " out"]]:
    """Integers of -127 to 127 and one scale per output, so that w ≈ integer · scale."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1) / 127
    integers = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
    return integers.to(torch.int8), scales


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation) -> Tensor:
    return activate(F.linear(x, weight, bias), act)


def activate(y: Tensor, act: Activation) -> Tensor:
    """Apply a non-linearity."""
    if act in GELU:
        return F.gelu(y, approximate=GELU[act])
    return {"none": lambda y: y, "relu": torch.relu, "silu": F.silu}[act](y)


def _fbgemm_pack(weight: Tensor) -> tuple[Any, Tensor]:
    """Weights in fp16, and a vector to be added: 0, or nan for an output whose weights are not finite in fp16."""
    half = weight.detach().half().float()
    finite = half.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return torch.ops.quantized.linear_prepack_fp16(finite, None), (half * 0).sum(dim=1)


def _fbgemm(x: Tensor, layout: tuple[Any, Tensor], bias: Tensor | None, act: Activation) -> Tensor:
    weight, added = layout
    y = torch.ops.quantized.linear_dynamic_fp16(x.contiguous(), weight)
    return activate(y.add_(added if bias is None else added + bias), act)


def _bfloat16(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation) -> Tensor:
    y = F.linear(x.to(weight.dtype), weight).float()
    return activate(y if bias is None else y + bias, act)


def _reorder(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation) -> Tensor:
    """Bias and non-linearity are applied to the product while it is in the cache."""
    kind, algorithm = ("gelu", GELU[act]) if act in GELU else ("swish" if act == "silu" else act, "")
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], algorithm)
    return y


class Panels:
    """Weights in panels of 16 outputs (see kernels.cpp)."""

    def __init__(self, weight: Float[Tensor, "out dim"], precision: Precision) -> None:
        self.precision = precision
        self.out, dim = weight.shape
        missing = -self.out % WIDTH
        kind = ("float32", "fp16", "bf16", "int8").index(precision)
        self.layer = native.Layer(out=self.out, dim=dim, kind=kind)
        if precision == "int8":
            integers, scales = quantise(weight)
            integers = F.pad(integers, (0, -dim % 4, 0, missing))
            self.scales = F.pad(scales, (0, missing))
            self.sums = integers.sum(dim=1, dtype=torch.int32)
            self.layer.scales, self.layer.sums = self.scales.data_ptr(), self.sums.data_ptr()
            panels = integers.view(-1, WIDTH, integers.shape[1] // 4, 4).transpose(1, 2)
        else:
            panels = F.pad(weight.to(DTYPES[precision]), (0, 0, 0, missing)).view(-1, WIDTH, dim).transpose(1, 2)
        self.weights = panels.contiguous()
        self.layer.panels = self.weights.data_ptr()
        self.address = ctypes.addressof(self.layer)


def _kernel(x: Tensor, panels: Panels, bias: Tensor | None, act: Activation) -> Tensor:
    x = x.contiguous()
    *batch, dim = x.shape
    y = x.new_empty(*batch, panels.out)
    native.load().glocal_linear(  # type: ignore[union-attr]
        x.data_ptr(),
        x.numel() // dim,
        panels.address,
        None if bias is None else bias.data_ptr(),
        ACTIVATIONS.index(act),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y
