"""`F.scaled_dot_product_attention` and two more implementations on CPUs: matrix products, and a kernel in inference."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glocal.ops import native
from glocal.ops.choice import PLAIN, choose, dtype_name, size_class, step
from glocal.ops.elementwise import dropout_mask
from glocal.ops.products import eager_cpu

MAX_KEYS = 640
"""Most keys for which matrix products are a candidate: their scores take N² numbers per head."""
MAX_SAVED_KEYS = 256
"""Most keys for which weights are saved for the backward pass: 2 N² H bytes in bf16; `mlp` saves 8 N D."""
FEW = 16
"""Most queries of an operation that is timed with their exact number."""
CLASS = 16
"""More queries, and their keys, are timed with their number rounded up to a multiple of this."""
SMALL = 2**20
"""Multiplications in QKᵀ below which torch's attention is taken at once: to look up a choice would take as long."""
HEADS_TIMED = 64
"""Most heads, over all examples, of an operation that is timed."""


def scaled_dot_product_attention(
    q: Float[Tensor, "batch heads queries d_k"],
    k: Float[Tensor, "batch heads keys d_k"],
    v: Float[Tensor, "batch heads keys d_v"],
    attn_mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Float[Tensor, "batch heads queries d_v"]:
    """Return softmax(QKᵀ/√d_k)V (Vaswani et al. 2017, equation 1), over the keys where the mask is True.

    With products in bf16, the scores are rounded to bf16, as by any product under autocast. The error of the gradients,
    against float64, is 1.0 times that of torch's kernel for scores with a standard deviation of 1, 1.1 times at 3, and
    1.2 times at 5.
    """
    if not eager_cpu(q) or q.numel() * k.shape[2] < SMALL:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)
    inference = not torch.is_grad_enabled()
    if inference and _fits_kernel(q, k, v, attn_mask, dropout_p, is_causal) and _kernel_pays(q, k, is_causal):
        return attention_kernel(q, k, v, attn_mask, is_causal)
    if _fits_products(q, k, v) and _products_pay(q, k, dropout_p):
        return attention_by_products(q, k, v, attn_mask, dropout_p, is_causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)


def attention_by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """Return the same, by matrix products for each head of each example, in both passes."""
    if is_causal:
        mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril()
    dropped = dropout_mask((len(q) * q.shape[1], q.shape[2], k.shape[2]), dropout_p, q.dtype) if dropout_p else None
    out: Tensor = _Products.apply(q, k, v, mask, dropped)
    return out


def attention_kernel(
    q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "batch 1 1 keys"] | None = None, is_causal: bool = False
) -> Tensor:
    """Return the same without gradients, by kernels.cpp; `_fits_kernel` says for which inputs."""
    batch, heads, queries, dim = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[3])
    if mask is not None:
        mask = mask.expand(batch, 1, 1, k.shape[2])
    native.kernels().glocal_attend(
        q.data_ptr(),
        *q.stride()[:3],
        k.data_ptr(),
        v.data_ptr(),
        *k.stride()[:3],
        None if mask is None else mask.data_ptr(),
        0 if mask is None else mask.stride(0),
        None,
        is_causal,
        out.data_ptr(),
        batch,
        heads,
        queries,
        k.shape[2],
        dim,
        1 / math.sqrt(dim),
        torch.get_num_threads(),
    )
    return out.transpose(1, 2)


def _fits_kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool) -> bool:
    return (
        (q.dtype, k.dtype, v.dtype) == (torch.float32,) * 3
        and (not is_causal or mask is None)
        and not dropout_p
        and q.shape[3] % 8 == 0
        and k.shape == v.shape
        and k.stride() == v.stride()
        and k.stride(3) == q.stride(3) == 1
        and (mask is None or (mask.shape[1:] == (1, 1, k.shape[2]) and 1 in (mask.stride(3), k.shape[2])))
    )


def _fits_products(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether products may be faster: in training and in bf16, not in float32 inference."""
    in_use = torch.is_grad_enabled() or q.dtype == torch.bfloat16
    return in_use and k.shape[2] <= MAX_KEYS and q.dtype == k.dtype == v.dtype


def _kernel_pays(q: Tensor, k: Tensor, is_causal: bool) -> bool:
    if native.load() is None:
        return False
    batch, heads, queries, dim = q.shape
    examples = min(size_class(batch), max(HEADS_TIMED // heads, 1))
    tokens = k.shape[2]
    if queries <= FEW:
        sizes = examples, heads, queries, size_class(tokens), dim
    else:  # finer classes: torch's kernel prefers some lengths, and 197 tokens of an image take less than 256
        sizes = examples, heads, -(-queries // CLASS) * CLASS, -(-tokens // CLASS) * CLASS, dim

    def candidates() -> dict[str, Callable[[], object]]:
        if queries == tokens:  # views of one projection, as in a block
            some, keys, values = torch.randn(examples, sizes[3], 3, heads, dim).permute(2, 0, 3, 1, 4)
        else:
            some = torch.randn(examples, heads, sizes[2], dim)
            keys, values = torch.randn(2, examples, heads, sizes[3], dim)
        return {
            PLAIN: lambda: F.scaled_dot_product_attention(some, keys, values, is_causal=is_causal),
            "kernel": lambda: attention_kernel(some, keys, values, is_causal=is_causal),
        }

    return choose(("attention", "float32", *sizes, *(["causal"] if is_causal else [])), candidates) == "kernel"


def _products_pay(q: Tensor, k: Tensor, dropout_p: float) -> bool:
    batch, heads, queries, dim = q.shape
    examples = min(size_class(batch * heads), 32)
    sizes = examples, size_class(queries), size_class(k.shape[2]), dim

    def candidates() -> dict[str, Callable[[], object]]:
        tensors = [torch.randn(1, examples, tokens, dim, dtype=q.dtype) for tokens in (sizes[1], sizes[2], sizes[2])]
        return {
            PLAIN: step(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, None, dropout_p), *tensors),
            "products": step(lambda q, k, v: attention_by_products(q, k, v, None, dropout_p), *tensors),
        }

    name = "attention training" if torch.is_grad_enabled() else "attention"
    dropout = "dropout" if dropout_p else "no dropout"
    key = (name, dtype_name(q.dtype), *sizes, dropout)
    return choose(key, candidates) == "products"


class _Products(Function):
    """Attention by matrix products, with the weights P saved or computed again.

    S = QKᵀ/√d_k      P = softmax(S)      O = PV
    dV = Pᵀ dO        dP = dO Vᵀ          dS = P ∘ (dP − rowsum(dP ∘ P))/√d_k      dQ = dS K      dK = dSᵀ Q

    With dropout, O = (P ∘ M)V: P ∘ M stands in place of P in dV, and dP is multiplied by M.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *qkv, mask, m = inputs
        rows = qkv[0].shape[:2]
        q, k, v = (t.flatten(0, 1).contiguous() for t in qkv)  # once for all products
        p = _probabilities(q, k, mask, rows)
        ctx.save_for_backward(q, k, v, p if k.shape[1] <= MAX_SAVED_KEYS else None, mask, m)
        ctx.rows = rows
        return torch.bmm(p if m is None else p * m, v).unflatten(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p, mask, m = ctx.saved_tensors
        p = _probabilities(q, k, mask, ctx.rows) if p is None else p
        do = grads[0].flatten(0, 1).contiguous()
        dp = _scores(do, v, 1 / math.sqrt(q.shape[-1]))  # includes the factor of dS
        dropped = p if m is None else p * m
        dp = dp if m is None else dp.mul_(m)
        ds = torch.ops.aten._softmax_backward_data.out(dp, p, -1, dp.dtype, grad_input=dp)
        gradients = torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(dropped.mT, do)
        return *(t.unflatten(0, ctx.rows) for t in gradients), None, None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, rows: torch.Size) -> Tensor:
    scores = _scores(q, k, 1 / math.sqrt(q.shape[-1]))
    if mask is None:
        return torch.softmax(scores, -1, out=scores)
    scores.unflatten(0, rows).masked_fill_(~mask, -math.inf)
    p = torch.softmax(scores, -1, out=scores)
    if not (seen := mask.any(-1, keepdim=True)).all():  # queries without a key get zeros, as in torch
        p.unflatten(0, rows).masked_fill_(~seen, 0.0)
    return p


def _scores(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return A Bᵀ · scale in the type of A; autocast does not apply to a product with a given output."""
    out = a.new_empty(len(a), a.shape[1], b.shape[1])
    return torch.baddbmm(out, a, b.mT, beta=0, alpha=scale, out=out)
