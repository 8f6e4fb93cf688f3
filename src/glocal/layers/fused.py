"""The two halves of a block in fewer passes over memory than their formulas take.

On a CPU a small Transformer waits for memory and for kernels made for other shapes: of timm's DeiT-Tiny step in bf16
(batch 16, 197 tokens) 37 % goes to the fused attention kernel, whose backward pass runs at a fifth of the speed that
plain matrix products have. Each function here equals the one line its docstring names, takes its own path where that
was measured to be faster (by device, type and shape, never by a flag), and is that line everywhere else: on GPUs, under
torch.compile, on meta tensors. `make bench` measures and
writes results/speed-vision.csv.
"""

import math
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Keys up to which products beat the fused kernel by far: forward and backward in bf16 on 2 cores with AVX-512 BF16 are
# 4.1 times as fast at 50 keys, 2.6 times at 197, 1.5 times at 577 (P computed again), and as fast at 1025.
MAX_KEYS = 640

# Keys up to which P is kept for the backward pass and not computed again: there it takes no more memory than the
# hidden layer that `mlp` does not keep (2 N² H bytes an image against 8 N D, with D = 64 H).
MAX_KEPT_KEYS = 256


def attention(
    q: Float[Tensor, "batch heads queries d_k"],
    k: Float[Tensor, "batch heads keys d_k"],
    v: Float[Tensor, "batch heads keys d_v"],
) -> Float[Tensor, "batch heads queries d_v"]:
    """`F.scaled_dot_product_attention(q, k, v)`: softmax(QKᵀ/√d_k)V.

    In bf16 on a CPU the scores are rounded to bf16, as any product is under autocast. A model's queries and keys were
    rounded before, so its gradients lose little: their error against float64 is 1.0 times the fused kernel's where the
    scores have a standard deviation of 1, 1.1 times at 3, 1.2 times at 5 (tested), 1.25 times at 20.
    """
    if q.dtype == torch.bfloat16 and k.shape[2] <= MAX_KEYS and _eager_cpu(q):
        out: Tensor = _Attention.apply(q, k, v)
        return out
    return F.scaled_dot_product_attention(q, k, v)


def mlp(x: Float[Tensor, "*batch dim"], fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> Float[Tensor, "*batch dim"]:
    """`fc2(act(fc1(x)))`, on a CPU without a pass or a copy for GELU.

    Training keeps what goes into GELU and computes again what comes out of it. Inference in bf16 applies bias and GELU
    to a tile of the first product while it is in the cache (oneDNN's post-operations, which torch.compile uses too).
    """
    known = _bare(fc1, nn.Linear) and _bare(act, nn.GELU) and act.approximate == "none" and _bare(fc2, nn.Linear)
    if not (known and _eager_cpu(x)):
        return fc2(act(fc1(x)))
    tensors = _cast(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    with torch.autocast("cpu", enabled=False):
        out: Tensor
        if _onednn_inference(tensors[0]):
            x, w1, b1, w2, b2 = tensors
            hidden = torch.ops.mkldnn._linear_pointwise(x, w1, b1, "gelu", [], "none")
            out = torch.ops.mkldnn._linear_pointwise(hidden, w2, b2, "none", [], "")
        else:
            out = _MLP.apply(*tensors)
    return out


def linear(x: Float[Tensor, "*batch dim"], layer: nn.Module) -> Float[Tensor, "*batch out"]:
    """`layer(x)`, in bf16 inference on a CPU by oneDNN's product, whose bias costs no pass of its own."""
    if not (_bare(layer, nn.Linear) and _eager_cpu(x)):
        return layer(x)
    tensors = _cast(x, layer.weight, layer.bias)
    if not _onednn_inference(tensors[0]):
        return layer(x)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(*tensors, "none", [], "")
    return out


def _cast(*tensors: Any) -> tuple[Any, ...]:
    """Each in the type that autocast asks for, where it is on."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(t if t is None else t.to(torch.get_autocast_dtype("cpu")) for t in tensors)


def _onednn_inference(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and x.dtype == torch.bfloat16 and _onednn_bf16()


def _eager_cpu(x: Tensor) -> bool:
    """Not under torch.compile or torch.func, which take formulas apart, nor where operations are counted or faked."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return x.device.type == "cpu" and not transformed and not torch._C._len_torch_dispatch_stack()


@cache
def _onednn_bf16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _bare(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of that kind and nothing more: no adapter around it (LoRA), no hook that wants to be called."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) is kind and not hooks


class _Attention(Function):
    """Attention as products of matrices, one for each head of each example.

    S = QKᵀ/√d_k      P = softmax(S)      O = PV
    dV = Pᵀ dO        dP = dO Vᵀ          dS = P ∘ (dP − rowsum(dP ∘ P))/√d_k      dQ = dS K      dK = dSᵀ Q
    """

    @staticmethod
    def forward(ctx: Any, *qkv: Tensor) -> Tensor:
        q, k, v = (t.flatten(0, 1).contiguous() for t in qkv)  # once, and not in each product
        p = _probabilities(q, k)
        ctx.save_for_backward(q, k, v, p if k.shape[1] <= MAX_KEPT_KEYS else None)
        return torch.bmm(p, v).unflatten(0, qkv[0].shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v, p = ctx.saved_tensors
        p = _probabilities(q, k) if p is None else p
        do = grads[0].flatten(0, 1).contiguous()
        dp = _product(do, v, 1 / math.sqrt(q.shape[-1]))  # dS's factor, in the same pass
        ds = torch.ops.aten._softmax_backward_data.out(dp, p, -1, dp.dtype, grad_input=dp)
        gradients = torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(p.mT, do)
        return tuple(t.unflatten(0, grads[0].shape[:2]) for t in gradients)


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    scores = _product(q, k, 1 / math.sqrt(q.shape[-1]))
    return torch.softmax(scores, -1, out=scores)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A Bᵀ · scale; autocast leaves alone what names its output."""
    out = a.new_empty(len(a), a.shape[1], b.shape[1])
    return torch.baddbmm(out, a, b.mT, beta=0, alpha=scale, out=out)


class _MLP(Function):
    """z = W₁x + b₁, y = GELU(z), W₂y + b₂; the backward pass computes y again, in the buffer that dz then takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
        z = F.linear(x, w1, b1)
        ctx.save_for_backward(x, z, w1, w2)
        return F.linear(F.gelu(z), w2, b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, z, w1, w2), (need_x, need_w1, need_b1, need_w2, need_b2) = ctx.saved_tensors, ctx.needs_input_grad
        x2, z2, g = x.flatten(0, -2), z.flatten(0, -2), grads[0].flatten(0, -2)
        y = F.gelu(z2)
        dw2 = g.mT @ y if need_w2 else None
        dz = torch.mm(g, w2, out=y)
        torch.ops.aten.gelu_backward.grad_input(dz, z2, grad_input=dz)
        dx = (dz @ w1).view_as(x) if need_x else None
        dw1 = dz.mT @ x2 if need_w1 else None
        return dx, dw1, dz.sum(0) if need_b1 else None, dw2, g.sum(0) if need_b2 else None
