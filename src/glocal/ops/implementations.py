"""The implementations of a product with packed weights: torch's, oneDNN's, fbgemm's, and the kernels of kernels.cpp.

An implementation lays out the weights once, at a precision (see `glocal.ops.products`), and multiplies by them.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from glocal.ops import native
from glocal.ops.choice import PLAIN

Precision = Literal["float32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Activation = Literal["none", "relu", "gelu_tanh", "silu", "gelu"]
"""The non-linearity after a product: ReLU, SiLU, or GELU and its approximation (Hendrycks and Gimpel 2016, section
2)."""

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
"""Their numbers in kernels.cpp."""

GELU = {"gelu": "none", "gelu_tanh": "tanh"}
"""torch's names of the two forms of GELU."""

WIDTH = 16
"""Outputs in a panel of kernels.cpp."""

Layout = Any
"""Weights as one implementation reads them."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute a product with weights of a given precision."""

    lay_out: Callable[[Tensor], Layout]
    """From the model's weights (out, in) to what `product` reads."""
    product: Callable[[Tensor, Layout, Tensor | None, Activation], Tensor]
    """act(x Wᵀ + b)."""


def candidate_implementations(precision: Precision, dtype: torch.dtype) -> dict[str, Implementation]:
    """Return the implementations for inputs of a type; the plain one is `F.linear` with rounded weights."""
    found = {PLAIN: Implementation(lambda weight: round_weights(weight, precision).to(dtype), _plain)}
    if _onednn_packs(precision, dtype):
        found["onednn"] = Implementation(lambda weight: _reorder(round_weights(weight, precision).to(dtype)), _onednn)
    if dtype == torch.float32:
        if precision == "bf16":
            found["bfloat16"] = Implementation(lambda weight: weight.bfloat16(), _bfloat16)
        if precision == "fp16" and "fbgemm" in torch.backends.quantized.supported_engines:
            found["fbgemm"] = Implementation(_fbgemm_pack, _fbgemm)
        if native.load() is not None:
            found["kernel"] = Implementation(lambda weight: Panels(weight, precision), _kernel)
    return found


def _onednn_packs(precision: Precision, dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of a type: bf16 only where the processor computes in it."""
    if dtype == torch.bfloat16:
        return native_bf16()
    return dtype == torch.float32 and precision == "float32" and torch.backends.mkldnn.is_available()


def round_weights(weight: Float[Tensor, "out dim"], precision: Precision) -> Float[Tensor, "out dim"]:
    """Return weights rounded to a precision, in their own type."""
    if precision == "int8":
        integers, scales = quantise(weight)
        return (integers * scales[:, None]).to(weight.dtype)
    return weight.to(DTYPES[precision]).to(weight.dtype)


def quantise(weight: Float[Tensor, "out dim"]) -> tuple[Tensor, Float[Tensor, " out"]]:
    """Return integers of -127 to 127 and one scale per output, so that w ≈ integer · scale."""
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
    """Return weights in fp16, and a vector to add: 0, or nan for an output whose weights are not finite in fp16."""
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
    """Apply the bias and the non-linearity to the product while it is in the cache."""
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
    native.kernels().glocal_linear(
        x.data_ptr(),
        x.numel() // dim,
        panels.address,
        None if bias is None else bias.data_ptr(),
        ACTIVATIONS.index(act),
        y.data_ptr(),
        torch.get_num_threads(),
    )
    return y


@cache
def native_bf16() -> bool:
    """Whether the processor computes products in bf16, and oneDNN packs weights for them."""
    if not (native.computes_bf16() and torch.backends.mkldnn.is_available()):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
