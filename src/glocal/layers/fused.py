"""The parts of a block in fewer passes over memory than their formulas take.

On a CPU a small Transformer waits for memory and for kernels made for other shapes: of timm's DeiT-Tiny step in bf16
(batch 16, 197 tokens) 37 % goes to the fused attention kernel, whose backward pass runs at a fifth of the speed that
plain matrix products have. Each function here equals the one line its docstring names, takes its own path where that
was measured to be faster (by device, type and shape, never by a flag), and is that line everywhere else: on GPUs, under
torch.compile, on meta tensors. `make bench` measures, and writes results/speed-vision.csv and speed-translation.csv.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeGuard, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Kind = TypeVar("Kind", bound=nn.Module)

# Keys up to which products beat the fused kernel by far: forward and backward in bf16 on 2 cores with AVX-512 BF16 are
# 4.1 times as fast at 50 keys, 2.6 times at 197, 1.5 times at 577 (P computed again), and as fast at 1025.
MAX_KEYS = 640

# Keys up to which P is kept for the backward pass and not computed again: there it takes no more memory than the
# hidden layer that `mlp` does not keep (2 N² H bytes an image against 8 N D, with D = 64 H).
MAX_KEPT_KEYS = 256

# Width of a depthwise kernel from which products give its gradient sooner than oneDNN, and tokens that each takes:
# 197 tokens under a kernel of 31, 16 images of 256 channels on one core, take 5 ms and not 9 in bf16, 9 and not 14 in
# float32; 65 tokens under 25, 128 images of 192 channels, 8 and not 22, 15 and not 27. Under 5 they win in bf16 alone,
# under 3 not at all.
WIDE, TOKENS = 9, 32

# Channels up to which oneDNN's depthwise convolution in bf16, the channels last in memory, runs forever: seen with
# kernels of 15 and more over 37 tokens and more, never with one of 13, with 17 channels, or in float32 (torch 2.15).
NARROW = 16

PostOperation = Literal["none", "relu", "gelu", "gelu_tanh"]
"""What may be done to a product while it is in the cache."""

GELU = {"gelu": "none", "gelu_tanh": "tanh"}
"""How each GELU is approximated (Hendrycks and Gimpel 2016, section 2), by torch's word for it."""

# A product of one row, as in writing one text, waits for the weights, and oneDNN reads them a sixth faster where it is
# told of four rows (24 GB/s and 20 on 2 cores), unless they are in the cache already.
FEW, IN_CACHE = 4, 2**18

PACKED = "packed"
"""Where a parameter carries its copy of another layout, and what its own state was."""


def attention(
    q: Float[Tensor, "batch heads queries d_k"],
    k: Float[Tensor, "batch heads keys d_k"],
    v: Float[Tensor, "batch heads keys d_v"],
    mask: Bool[Tensor, "#batch #heads #queries keys"] | None = None,
    causal: bool = False,
    rate: float = 0.0,
) -> Float[Tensor, "batch heads queries d_v"]:
    """`F.scaled_dot_product_attention(q, k, v, mask, rate, causal)`: softmax(QKᵀ/√d_k)V, where the mask is True.

    `rate` is that of dropout on the weights.

    In bf16 on a CPU the scores are rounded to bf16, as any product is under autocast. A model's queries and keys were
    rounded before, so its gradients lose little: their error against float64 is 1.0 times the fused kernel's where the
    scores have a standard deviation of 1, 1.1 times at 3, 1.2 times at 5 (tested), 1.25 times at 20.
    """
    if {q.dtype, k.dtype, v.dtype} == {torch.bfloat16} and k.shape[2] <= MAX_KEYS and _eager_cpu(q):
        if causal:
            mask = torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril()
        kept = _kept((len(q) * q.shape[1], q.shape[2], k.shape[2]), rate, q.dtype) if rate else None
        out: Tensor = _Attention.apply(q, k, v, mask, kept)
        return out
    return F.scaled_dot_product_attention(q, k, v, mask, rate, causal)


def mlp(x: Float[Tensor, "*batch dim"], fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> Float[Tensor, "*batch dim"]:
    """`fc2(act(fc1(x)))`, on a CPU without a pass or a copy for GELU.

    Training keeps what goes into GELU and computes again what comes out of it. Inference by oneDNN (see `product`)
    applies bias and non-linearity to a tile of the first product while it is in the cache.
    """
    name = _activation(act)
    if not (_bare(fc1, nn.Linear) and _bare(fc2, nn.Linear) and name is not None and _eager_cpu(x)):
        return fc2(act(fc1(x)))
    if all([_onednn(x, fc1.weight), _onednn(x, fc2.weight)]):  # both are asked: asking drops a stale copy
        hidden = product(x, fc1.weight, fc1.bias, name)
        return product(hidden, fc2.weight, fc2.bias)
    if name not in GELU:
        return fc2(act(fc1(x)))
    tensors = _cast(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _MLP.apply(*tensors, GELU[name])
    return out


def linear(x: Float[Tensor, "*batch dim"], layer: nn.Module) -> Float[Tensor, "*batch out"]:
    """`layer(x)`, by `product` where that is faster."""
    if not _bare(layer, nn.Linear):
        return layer(x)
    return product(x, layer.weight, layer.bias)


def product(
    x: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, "out dim"],
    bias: Float[Tensor, " out"] | None,
    act: PostOperation = "none",
) -> Float[Tensor, "*batch out"]:
    """`act(F.linear(x, weight, bias))`, in inference on a CPU by oneDNN's product, in bf16 or where `pack` was called.

    There bias and non-linearity cost no pass of their own (they are post-operations, which torch.compile uses too).
    """
    if not (_eager_cpu(x) and _onednn(x, weight)):
        y = F.linear(x, weight, bias)
        if act in GELU:
            return F.gelu(y, approximate=GELU[act])
        return y.relu() if act == "relu" else y
    x, plain, bias = _cast(x, weight, bias)
    if (packed := _packed(weight)) is not None and packed.dtype == x.dtype:
        plain = packed
    kind, algorithm = ("gelu", GELU[act]) if act in GELU else (act, "")
    alone = x.numel() == x.shape[-1] and weight.numel() > IN_CACHE
    rows = x.reshape(1, -1).expand(FEW, -1) if alone else x
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, plain, bias, kind, [], algorithm)
    return out[0].expand(*x.shape[:-1], -1) if alone else out


def glu(x: Float[Tensor, "*batch dim"], layer: nn.Module) -> Float[Tensor, "*batch out"]:
    """`F.glu(layer(x))`, on a CPU by a product for each half: to torch the halves of a row are scattered memory.

    So a quarter to a half of its time is saved in bf16, the backward pass included, and a tenth in float32.
    """
    if not (_bare(layer, nn.Linear) and _eager_cpu(x)):
        return F.glu(layer(x))
    biases = (None, None) if layer.bias is None else layer.bias.chunk(2)
    value, gate = (F.linear(x, *half) for half in zip(layer.weight.chunk(2), biases, strict=True))
    return value * gate.sigmoid()


def depthwise(
    x: Float[Tensor, "batch channels height width"], conv: nn.Conv2d
) -> Float[Tensor, "batch channels height width"]:
    """`conv(x)`: each channel by an odd kernel of its own, on a CPU with half of oneDNN's time for its gradient.

    oneDNN's backward pass takes 15 to 20 times as long as the convolution itself. In bf16 its convolution of few
    channels by a wide kernel never comes back, so that is done in float32.
    """
    height, width = conv.kernel_size
    if not (x.device.type == "cpu" and width >= WIDE and _bare(conv, nn.Conv2d)):
        return conv(x)
    x, w, b = _cast(x, conv.weight, conv.bias)
    kind = x.dtype
    if kind == torch.bfloat16 and len(w) <= NARROW:
        x, w, b = x.float(), w.float(), None if b is None else b.float()
    with torch.autocast("cpu", enabled=False):
        if height == 1 and torch.is_grad_enabled() and _eager_cpu(x):
            out: Tensor = _Depthwise.apply(x, w, b)
        else:
            out = F.conv2d(x, w, b, padding=(height // 2, width // 2), groups=len(w))
    return out.to(kind)


def dropout(x: Float[Tensor, "*shape"], rate: float) -> Float[Tensor, "*shape"]:
    """`F.dropout(x, rate)`, on a CPU with four numbers of 16 bits out of each that is drawn, in under half the time.

    There the rate is rounded to a multiple of 1/65536.
    """
    if rate == 0.0 or rate >= 1.0 or not _eager_cpu(x):
        return F.dropout(x, rate)
    return x * _kept(x.shape, rate, x.dtype)


def _kept(shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
    """What each number is multiplied by: nothing, or what makes up for those that are lost."""
    count, lost = math.prod(shape), round(rate * 2**16)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = drawn.view(torch.int16)[:count].view(shape) >= lost - 2**15
    return kept.to(dtype).mul_(1 / (1 - lost / 2**16))


def pack(model: nn.Module) -> None:
    """Keep a second copy of each matrix of weights, laid out as a CPU's products read it fastest, for inference.

    With 16 rows, as in decoding, a product then takes 0.7 of its time, and that with a whole vocabulary 0.4 in float32
    and 0.6 in bf16. The copies are dropped where training starts, at the first product that keeps a gradient;
    who writes into weights by other ways (`weight.data`) packs again.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):  # embeddings answer, too, where they are tied
            weight = module.weight
            if weight.device.type == "cpu" and (weight.dtype != torch.bfloat16 or _onednn_bf16()):
                laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
                setattr(weight, PACKED, (laid_out, _state(weight)))


def _cast(*tensors: Any) -> tuple[Any, ...]:
    """Each in the type that autocast asks for, where it is on."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(t if t is None else t.to(torch.get_autocast_dtype("cpu")) for t in tensors)


def _onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is oneDNN's: in inference alone."""
    if torch.is_grad_enabled():
        weight.__dict__.pop(PACKED, None)  # fused optimizers change weights and leave no trace of it
        return False
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    packed = _packed(weight)
    return (kind == torch.bfloat16 and _onednn_bf16()) or (packed is not None and packed.dtype == kind)


def _packed(weight: Tensor) -> Tensor | None:
    """The copy that `pack` made, if it is still one."""
    packed, state = getattr(weight, PACKED, (None, None))
    return packed if packed is not None and state == _state(weight) else None


def _state(weight: Tensor) -> tuple[int, int]:
    return 0 if weight.is_inference() else weight._version, weight.data_ptr()


def _eager_cpu(x: Tensor) -> bool:
    """Not under torch.compile or torch.func, which take formulas apart, nor where operations are counted or faked."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return x.device.type == "cpu" and not transformed and not torch._C._len_torch_dispatch_stack()


@cache
def _onednn_bf16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _activation(act: nn.Module) -> PostOperation | None:
    """What it is, where products know it."""
    if _bare(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    return "relu" if _bare(act, nn.ReLU) else None


def _bare(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether it is of that kind and nothing more: no adapter around it (LoRA), no hook that wants to be called."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) is kind and not hooks


class _Attention(Function):
    """Attention as products of matrices, one for each head of each example.

    S = QKᵀ/√d_k      P = softmax(S)      O = PV
    dV = Pᵀ dO        dP = dO Vᵀ          dS = P ∘ (dP − rowsum(dP ∘ P))/√d_k      dQ = dS K      dK = dSᵀ Q

    With dropout, O = (P ∘ M)V: M stands beside P in dV, and dP is multiplied by it.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *qkv, mask, m = inputs
        rows = qkv[0].shape[:2]
        q, k, v = (t.flatten(0, 1).contiguous() for t in qkv)  # once, and not in each product
        p = _probabilities(q, k, mask, rows)
        ctx.save_for_backward(q, k, v, p if k.shape[1] <= MAX_KEPT_KEYS else None, mask, m)
        ctx.rows = rows
        return torch.bmm(p if m is None else p * m, v).unflatten(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p, mask, m = ctx.saved_tensors
        p = _probabilities(q, k, mask, ctx.rows) if p is None else p
        do = grads[0].flatten(0, 1).contiguous()
        dp = _product(do, v, 1 / math.sqrt(q.shape[-1]))  # dS's factor, in the same pass
        seen = p if m is None else p * m
        dp = dp if m is None else dp.mul_(m)
        ds = torch.ops.aten._softmax_backward_data.out(dp, p, -1, dp.dtype, grad_input=dp)
        gradients = torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(seen.mT, do)
        return *(t.unflatten(0, ctx.rows) for t in gradients), None, None


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, rows: torch.Size) -> Tensor:
    scores = _product(q, k, 1 / math.sqrt(q.shape[-1]))
    if mask is not None:
        scores.unflatten(0, rows).masked_fill_(~mask, -math.inf)
    return torch.softmax(scores, -1, out=scores)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A Bᵀ · scale; autocast leaves alone what names its output."""
    out = a.new_empty(len(a), a.shape[1], b.shape[1])
    return torch.baddbmm(out, a, b.mT, beta=0, alpha=scale, out=out)


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
    """y(n) = Σ w(k) x(n + k - K/2) + b, of each channel by itself, along one row of tokens.

    dx is dy's convolution with the kernel turned round, and dw(k) = Σ x(n + k - K/2) dy(n): a diagonal of X dYᵀ, one
    product of matrices for each channel, in which images are what is summed over.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w)
        return F.conv2d(x, w, b, padding=(0, w.shape[3] // 2), groups=len(w))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (need_x, need_w, need_b), (dy,) = ctx.saved_tensors, ctx.needs_input_grad, grads
        middle, width = w.shape[3] // 2, w.shape[3]
        dx = F.conv2d(dy, w.flip(3), padding=(0, middle), groups=len(w)) if need_x else None
        dw = w.new_zeros(len(w), width, dtype=torch.promote_types(w.dtype, torch.float32)) if need_w else None
        if dw is not None:
            rows = F.pad(x.squeeze(2).permute(1, 2, 0), (0, 0, middle, middle))
            columns = dy.squeeze(2).permute(1, 0, 2).contiguous()
            for start in range(0, columns.shape[2], TOKENS):  # far from the diagonals is nothing that is asked for
                some = columns[..., start : start + TOKENS]
                count = some.shape[2]
                pairs = rows[:, start : start + count + width - 1] @ some
                dw += pairs.as_strided((*dw.shape, count), (pairs.stride(0), count, count + 1)).sum(2, dtype=dw.dtype)
        return dx, None if dw is None else dw.to(w.dtype).view_as(w), dy.sum((0, 2, 3)) if need_b else None
