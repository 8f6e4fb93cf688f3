"""Each operation of `glocal.ops` beside plain torch, at the shapes of the models that the other benchmarks time.

    python benchmarks/ops.py             # some five minutes on 2 cores
    python benchmarks/ops.py --pairs 5   # quicker, and rougher

Writes results/speed-ops-PROCESSOR.csv. Both compute in float32 and take turns; a ratio is the time of plain torch
divided by ours within such a pair, and the table gives the median and the quartiles. An operation may take other paths
than plain torch, which it chooses by timing, so no ratio may fall below 1 by more than noise. Products with weights in
fp16 and int8 stand beside torch's product with the same weights in float32, since torch has no such layer.

The weights of a product of few rows are read from memory, not from a cache: as many copies as fill 128 MB take turns.
"""

import argparse
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import cycle
from typing import NamedTuple, cast

import torch
from timing import COLUMNS, Aims, compare, introduce, take_turns, write
from torch import Tensor, nn
from torch.nn import functional as F

from glocal import ops

AIM = (0.97, None)
COLD = 2**25
"""Weights that fill 128 MB in float32, more than any cache of these machines."""


class Case(NamedTuple):
    """One operation at one shape."""

    what: str
    ours: Callable[[], object]
    plain: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every operation of glocal beside plain torch.")
    parser.add_argument("--pairs", type=int, default=25, help="how often each is run at most (default: %(default)s)")
    args = parser.parse_args()
    introduce()
    torch.manual_seed(0)
    rows = []
    for case in cases():
        aims: Aims = {(case.what, "plain torch"): AIM}
        times = take_turns(case.ours, case.plain, args.pairs, pause=0)
        rows.append(compare(aims, case.what, "plain torch", "ms", *times))
    write(rows, "speed-ops", COLUMNS)
    worst = min(rows, key=lambda row: float(cast(str, row["ratio"])))
    print(f"the lowest ratio of {len(rows)}: {worst['ratio']}, {worst['what']}")


def cases() -> Iterator[Case]:
    yield from products()
    yield from blocks()
    yield from attention()
    yield from vocabulary()
    yield dropout()


def products() -> Iterator[Case]:
    """A token of GPT-2, beams, a text and a batch of BERT-Base, an image and a batch of DeiT."""
    shapes = [(1, 2304, 768), (1, 768, 3072), (1, 50257, 768), (16, 512, 512), (64, 32000, 512), (32, 3072, 768)]
    shapes += [(1024, 768, 768), (197, 576, 192), (197, 192, 768), (3152, 768, 192)]
    for rows, out, dim in shapes:
        copies = max(1, COLD // (out * dim)) if rows <= 64 else 1
        plain = [nn.Linear(dim, out) for _ in range(copies)]
        x = torch.randn(rows, dim)
        for precision in ops.PRECISIONS:
            if precision == "bf16" and not ops.computes_bf16():
                continue
            layers = [ops.pack(as_ours(layer), precision) for layer in plain]
            with torch.inference_mode():
                for layer in layers:
                    layer(x)  # lays its weights out
            name = f"linear {rows} × {dim} → {out}, {precision}"
            yield Case(name, inference(cycle(layers).__next__, x), inference(cycle(plain).__next__, x))


def as_ours(layer: nn.Linear) -> ops.Linear:
    ours = ops.Linear(layer.in_features, layer.out_features)
    ours.load_state_dict(layer.state_dict())
    return ours


def inference(next_layer: Callable[[], nn.Module], x: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return next_layer()(x)

    return run


def training(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], object]:
    """A forward and a backward pass to all tensors in floating point."""
    leaves = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    gradient = torch.randn_like(function(*leaves))

    def run() -> None:
        function(*leaves).backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    return run


def blocks() -> Iterator[Case]:
    """The MLPs of DeiT-Tiny, BERT-Base and nanoGPT's CPU size, and the local heads of a GLiT for CIFAR-10."""
    for rows, dim, approximate in [(3152, 192, "none"), (1024, 768, "none"), (768, 128, "tanh")]:
        fc1, fc2, act = ops.Linear(dim, 4 * dim), ops.Linear(4 * dim, dim), nn.GELU(approximate)
        x = torch.randn(rows, dim)

        def ours(x: Tensor, fc1: nn.Module = fc1, act: nn.Module = act, fc2: nn.Module = fc2) -> Tensor:
            return ops.mlp(x, fc1, act, fc2)

        def plain(x: Tensor, fc1: nn.Module = fc1, act: nn.Module = act, fc2: nn.Module = fc2) -> Tensor:
            return cast(Tensor, fc2(act(fc1(x))))

        yield Case(f"mlp {rows} × {dim}, training", training(ours, x), training(plain, x))
        packed = ops.pack(nn.Sequential(*map(deepcopy, (fc1, act, fc2))))
        fused = partial(ops.mlp, fc1=packed[0], act=packed[1], fc2=packed[2])  # type: ignore[index]
        yield Case(f"mlp {rows} × {dim}, inference", no_grad(fused, x), no_grad(plain, x))
    layer, x = ops.Linear(96, 192), torch.randn(64, 64, 96)
    yield Case(
        "glu 4096 × 96, training", training(lambda x: ops.glu(x, layer), x), training(lambda x: F.glu(layer(x)), x)
    )
    for kernel in (3, 17, 31):
        conv = nn.Conv2d(96, 96, (1, kernel), padding=(0, kernel // 2), groups=96)
        x = torch.randn(64, 1, 64, 96).permute(0, 3, 1, 2)
        ours = partial(ops.depthwise, conv=conv)
        yield Case(f"depthwise 64 × 64 × 96, K = {kernel}, training", training(ours, x), training(conv, x))


def no_grad(function: Callable[..., object], *tensors: Tensor) -> Callable[[], object]:
    return torch.inference_mode()(partial(function, *tensors))


def attention() -> Iterator[Case]:
    """Training of DeiT-Tiny, BERT-Base and nanoGPT's CPU size; and a token of GPT-2 after some hundred."""
    for heads, tokens, causal in [((16, 3, 64), 197, False), ((8, 12, 64), 128, False), ((12, 4, 32), 64, True)]:
        batch, number, dim = heads
        q, k, v = torch.randn(3, batch, number, tokens, dim)
        for rate in (0.0, 0.1):
            ours = partial(ops.scaled_dot_product_attention, dropout_p=rate, is_causal=causal)
            plain = partial(F.scaled_dot_product_attention, dropout_p=rate, is_causal=causal)
            name = f"attention {batch} × {number} × {tokens} × {dim}" + (", causal" if causal else "")
            name += f", dropout {rate}" if rate else ""
            yield Case(f"{name}, training", training(ours, q, k, v), training(plain, q, k, v))
    for rows, keys in [(1, 128), (1, 1024), (16, 32)]:
        q, (k, v) = torch.randn(rows, 12, 1, 64), torch.randn(2, rows, 12, keys, 64)
        ours = partial(ops.scaled_dot_product_attention, q, k, v)
        plain = partial(F.scaled_dot_product_attention, q, k, v)
        yield Case(f"attention {rows} × 12 × 1 query, {keys} keys", no_grad(ours), no_grad(plain))


def vocabulary() -> Iterator[Case]:
    """The loss of GPT-2 over some rows, and what beam search does with the logits of 16 × 4 hypotheses."""
    logits, labels = torch.randn(256, 50257), torch.randint(0, 50257, (256,))
    yield Case(
        "cross entropy 256 × 50257, training",
        training(lambda z: ops.cross_entropy(z, labels), logits),
        training(lambda z: F.cross_entropy(z, labels), logits),
    )
    logits = torch.randn(64, 32000)
    plain = partial(torch.logsumexp, dim=1, keepdim=True)
    yield Case("logsumexp 64 × 32000", no_grad(ops.logsumexp, logits), no_grad(plain, logits))
    scores = logits.view(16, -1)
    yield Case(
        "topk 8 of 16 × 128000", no_grad(partial(ops.topk, k=8), scores), no_grad(partial(torch.topk, k=8), scores)
    )


def dropout() -> Case:
    x = torch.randn(3072, 512)
    return Case(
        "dropout 3072 × 512, training",
        training(lambda x: ops.dropout(x, 0.1), x),
        training(lambda x: F.dropout(x, 0.1), x),
    )


if __name__ == "__main__":
    main()
