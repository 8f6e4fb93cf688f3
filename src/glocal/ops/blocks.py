"""Parts of a block in fewer passes over memory: the MLP, the gated linear unit and the depthwise convolution."""

from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glocal.ops.choice import PLAIN, choose, dtype_name, size_class, step
from glocal.ops.implementations import GELU, Activation
from glocal.ops.products import Linear, eager_cpu, packed_weight, product

M = TypeVar("M", bound=nn.Module)

ROWS_TIMED = 1024
"""Tokens up to which an operation is timed at its own size."""

WIDE = 5
"""Width of a depthwise kernel from which products are a candidate for its gradient."""
TOKENS = 32
"""Tokens that one such product takes: products far from the kernel's diagonals are computed and not used."""
NARROW = 16
"""Channels up to which oneDNN's depthwise convolution in bf16, channels last, does not return: seen with kernels of 15
and more over 37 tokens and more (torch 2.15)."""


def mlp(x: Float[Tensor, "*batch dim"], fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> Float[Tensor, "*batch dim"]:
    """`fc2(act(fc1(x)))`.

    Training on a CPU saves the input of GELU and computes its output again in the backward pass, which saves a pass and
    a quarter of the memory. Inference may apply the non-linearity within the first product.
    """
    name = activation_name(act)
    if name is None or not (is_plain(fc1, Linear) and is_plain(fc2, Linear) and eager_cpu(x)):
        return fc2(act(fc1(x)))
    if (packed := packed_weight(x, fc1.weight)) is not None:
        return fc2(product(x, fc1.weight, fc1.bias, packed, name))
    if torch.is_grad_enabled() and name in GELU and _recomputing_pays(x, fc1, name):
        tensors = _autocast(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        with torch.autocast("cpu", enabled=False):
            out: Tensor = _MLP.apply(*tensors, GELU[name])
        return out
    return fc2(act(fc1(x)))


def glu(x: Float[Tensor, "*batch dim"], layer: nn.Module) -> Float[Tensor, "*batch out"]:
    """`F.glu(layer(x))`, on a CPU by a product for each half, since the halves of one product are strided in memory."""
    if is_plain(layer, Linear) and eager_cpu(x):
        packed = packed_weight(x, layer.weight)
        if (packed is None or packed.precision == "float32") and _halves_pay(x, layer):
            return glu_by_halves(x, layer.weight, layer.bias)
    return F.glu(layer(x))


def glu_by_halves(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.glu(F.linear(x, weight, bias))`, a product for each half."""
    biases = (None, None) if bias is None else bias.chunk(2)
    value, gate = (F.linear(x, *half) for half in zip(weight.chunk(2), biases, strict=True))
    return value * gate.sigmoid()


def depthwise(
    x: Float[Tensor, "batch channels height width"], conv: nn.Conv2d
) -> Float[Tensor, "batch channels new_height new_width"]:
    """`conv(x)`, each channel by a kernel of its own and stride 1, with a faster gradient on CPUs."""
    height, width = conv.kernel_size
    padding = cast(tuple[int, int], conv.padding)
    narrow = _training_dtype(x) == torch.bfloat16 and len(conv.weight) <= NARROW
    along_row = height == 1 and width >= WIDE and torch.is_grad_enabled() and eager_cpu(x)
    if x.device.type != "cpu" or not is_plain(conv, nn.Conv2d) or not (narrow or along_row):
        return conv(x)
    x, w, b = _autocast(x, conv.weight, conv.bias)
    dtype = x.dtype
    if narrow:
        x, w, b = x.float(), w.float(), None if b is None else b.float()
    with torch.autocast("cpu", enabled=False):
        if along_row and _diagonals_pay(x, w, padding[1]):
            out: Tensor = depthwise_by_products(x, w, b, padding[1])
        else:
            out = F.conv2d(x, w, b, padding=padding, groups=len(w))
    return out.to(dtype)


def depthwise_by_products(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same along one row of tokens, with the gradient of the kernel as products of matrices."""
    out: Tensor = _Depthwise.apply(x, weight, bias, padding)
    return out


def is_plain(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether a module is exactly of that type: no adapter around it (LoRA), no hook that has to be called."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) is kind and not hooks


def activation_name(act: nn.Module) -> Activation | None:
    """Return the name of a non-linearity that a product can apply; None for others."""
    if is_plain(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if is_plain(act, nn.SiLU):
        return "silu"
    return "relu" if is_plain(act, nn.ReLU) else None


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """Convert each to the type of autocast, where it is on."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(t if t is None else t.to(torch.get_autocast_dtype("cpu")) for t in tensors)


def _training_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _recomputing_pays(x: Tensor, fc1: nn.Linear, name: Activation) -> bool:
    dtype, approximate = _training_dtype(x), GELU[name]
    hidden, dim = fc1.weight.shape
    rows = min(size_class(max(x.numel() // dim, 1)), ROWS_TIMED)

    def plain(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)

    def candidates() -> dict[str, Callable[[], object]]:
        shapes = (rows, dim), (hidden, dim), (hidden,), (dim, hidden), (dim,)
        tensors = [torch.randn(shape, dtype=dtype) for shape in shapes]
        return {PLAIN: step(plain, *tensors), "recompute": step(lambda *t: _MLP.apply(*t, approximate), *tensors)}

    key = ("mlp training", dtype_name(dtype), hidden, dim, rows, name)
    return choose(key, candidates, frugal="recompute") == "recompute"  # it does not keep the hidden layer


def _halves_pay(x: Tensor, layer: nn.Linear) -> bool:
    dtype = _training_dtype(x)
    out, dim = layer.weight.shape
    rows = min(size_class(max(x.numel() // dim, 1)), ROWS_TIMED)

    def candidates() -> dict[str, Callable[[], object]]:
        tensors = [torch.randn(shape, dtype=dtype) for shape in ((rows, dim), (out, dim), (out,))]
        return {
            PLAIN: step(lambda x, w, b: F.glu(F.linear(x, w, b)), *tensors),
            "halves": step(glu_by_halves, *tensors),
        }

    name = "glu training" if torch.is_grad_enabled() else "glu"
    return choose((name, dtype_name(dtype), out, dim, rows), candidates) == "halves"


def _diagonals_pay(x: Tensor, weight: Tensor, padding: int) -> bool:
    batch, channels, _, tokens = x.shape
    width = weight.shape[3]
    some = min(size_class(batch), 64)
    key = ("depthwise training", dtype_name(x.dtype), some, channels, size_class(tokens), width, padding)

    def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, padding=(0, padding), groups=channels)

    def products(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return depthwise_by_products(x, w, b, padding)

    def candidates() -> dict[str, Callable[[], object]]:
        rows = torch.randn(some, 1, tokens, channels, dtype=x.dtype).permute(0, 3, 1, 2)  # channels last, as in a block
        tensors = rows, torch.randn_like(weight), torch.randn(channels, dtype=x.dtype)
        return {PLAIN: step(plain, *tensors), "products": step(products, *tensors)}

    return choose(key, candidates) == "products"


class _MLP(Function):
    """z = W₁x + b₁, y = GELU(z), W₂y + b₂; the backward pass computes y again, in the buffer that dz then takes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str
    ) -> Tensor:
        z = F.linear(x, w1, b1)
        ctx.save_for_backward(x, z, w1, w2)
        ctx.approximate = approximate
        return F.linear(F.gelu(z, approximate=approximate), w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, z, w1, w2), (need_x, need_w1, need_b1, need_w2, need_b2, _) = ctx.saved_tensors, ctx.needs_input_grad
        x2, z2, g = x.flatten(0, -2), z.flatten(0, -2), grads[0].flatten(0, -2)
        y = F.gelu(z2, approximate=ctx.approximate)
        dw2 = g.mT @ y if need_w2 else None
        dz = torch.mm(g, w2, out=y)
        torch.ops.aten.gelu_backward.grad_input(dz, z2, approximate=ctx.approximate, grad_input=dz)
        dx = (dz @ w1).view_as(x) if need_x else None
        dw1 = dz.mT @ x2 if need_w1 else None
        return dx, dw1, dz.sum(0) if need_b1 else None, dw2, g.sum(0) if need_b2 else None, None


class _Depthwise(Function):
    """y(n) = Σ w(k) x(n + k - P) + b, of each channel by itself, along one row of tokens with P zeros at both ends.

    dx is dy's convolution with the kernel turned round, and dw(k) = Σ x(n + k - P) dy(n): a diagonal of X dYᵀ, one
    product of matrices for each channel, in which images are what is summed over.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.padding = padding
        return F.conv2d(x, w, b, padding=(0, padding), groups=len(w))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (need_x, need_w, need_b, _), (dy,) = ctx.saved_tensors, ctx.needs_input_grad, grads
        padding, width = ctx.padding, w.shape[3]
        dx = F.conv2d(dy, w.flip(3), padding=(0, width - 1 - padding), groups=len(w)) if need_x else None
        dw = w.new_zeros(len(w), width, dtype=torch.promote_types(w.dtype, torch.float32)) if need_w else None
        if dw is not None:
            rows = F.pad(x.squeeze(2).permute(1, 2, 0), (0, 0, padding, padding))
            columns = dy.squeeze(2).permute(1, 0, 2).contiguous()
            for start in range(0, columns.shape[2], TOKENS):  # only the diagonals are needed
                some = columns[..., start : start + TOKENS]
                count = some.shape[2]
                pairs = rows[:, start : start + count + width - 1] @ some
                dw += pairs.as_strided((*dw.shape, count), (pairs.stride(0), count, count + 1)).sum(2, dtype=dw.dtype)
        return dx, None if dw is None else dw.to(w.dtype).view_as(w), dy.sum((0, 2, 3)) if need_b else None, None
