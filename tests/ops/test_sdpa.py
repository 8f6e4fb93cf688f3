"""Attention by each of its paths against torch's: values, gradients, error in bf16, and which path is taken."""

import importlib
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from glocal.ops import scaled_dot_product_attention
from glocal.ops.attention import attention_by_products, attention_kernel

attention = importlib.import_module("glocal.ops.attention")

PLAIN = F.scaled_dot_product_attention

SHAPES = {  # batch, heads, queries, keys, d_k, d_v
    "more batch than heads": (4, 2, 7, 7, 8, 8),
    "more heads than batch": (1, 3, 7, 7, 8, 8),
    "cross": (2, 3, 2, 9, 4, 6),
    "one query": (3, 3, 1, 5, 8, 8),
}


def qkv(batch, heads, queries, keys, d_k, d_v, dtype=torch.float64):
    """Draw q, k and v as a projection leaves them: heads beside each other in a token."""
    shapes = (queries, d_k), (keys, d_k), (keys, d_v)
    tensors = [torch.randn(batch, n, heads, d, dtype=dtype).transpose(1, 2) for n, d in shapes]
    return [tensor.requires_grad_() for tensor in tensors]


def relative_error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()


def by_products(*inputs):
    return attention._Products.apply(*inputs)


@pytest.mark.parametrize("saved", [True, False], ids=["weights saved", "computed again"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_products_are_attention(shape, saved, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SAVED_KEYS", shape[3] if saved else 0)
    q, k, v = qkv(*shape)
    padding = torch.ones(len(q), 1, 1, k.shape[2], dtype=torch.bool)
    padding[1:, ..., -1:] = False
    for mask in (None, padding, torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool).tril()):
        ours, plain = attention_by_products(q, k, v, mask), PLAIN(q, k, v, mask)
        torch.testing.assert_close(ours, plain)
        grad = torch.randn_like(plain)
        for a, b in zip(*(torch.autograd.grad(y, (q, k, v), grad) for y in (ours, plain)), strict=True):
            torch.testing.assert_close(a, b)
        assert torch.autograd.gradcheck(by_products, (q, k, v, mask, None), fast_mode=True)
        with torch.no_grad():
            torch.testing.assert_close(attention_by_products(q, k, v, mask), PLAIN(q, k, v, mask))
    dropped = attention.dropout_mask((len(q) * q.shape[1], q.shape[2], k.shape[2]), 0.3, q.dtype)
    assert torch.autograd.gradcheck(by_products, (q, k, v, None, dropped), fast_mode=True)


def test_float32_products_are_attention():
    q, k, v = (t.detach().requires_grad_() for t in qkv(2, 3, 17, 17, 16, 16, torch.float32))
    ours, plain = attention_by_products(q, k, v, is_causal=True), PLAIN(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(torch.autograd.grad(y.sum(), (q, k, v)) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_causal_products_are_causal_attention():
    q, k, v = (t.detach().bfloat16() for t in qkv(2, 3, 9, 9, 16, 16))
    expected = PLAIN(q.double(), k.double(), v.double(), is_causal=True)
    torch.testing.assert_close(attention_by_products(q, k, v, is_causal=True).double(), expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("queries", [1, 5])
def test_masked_products_in_bf16_without_gradients(queries):
    q, k, v = (torch.randn(2, 3, n, 8).bfloat16() for n in (queries, 7, 7))
    mask = torch.rand(2, 1, queries, 7) > 0.3
    mask[..., 0] = True
    with torch.inference_mode():
        expected = PLAIN(q.float(), k.float(), v.float(), mask)
        torch.testing.assert_close(attention_by_products(q, k, v, mask).float(), expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_products_in_bf16_are_as_exact_as_the_formula(std):
    q, k, v = (t.detach().mul(std).bfloat16().requires_grad_() for t in qkv(8, 3, 65, 65, 16, 16))
    ours, exact = attention_by_products(q, k, v), PLAIN(q.double(), k.double(), v.double())
    formula = (q @ k.mT / 4).softmax(-1) @ v
    grad = torch.randn_like(ours)
    results = ((y, *torch.autograd.grad(y, (q, k, v), grad.to(y.dtype))) for y in (ours, formula, exact))
    for a, b, c in zip(*results, strict=True):
        assert relative_error(a, c) < 1.05 * relative_error(b, c)


def test_products_with_dropout_are_the_formula(monkeypatch):
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = attention.dropout_mask((6, 17, 17), 0.3, torch.float32)
    monkeypatch.setattr(attention, "dropout_mask", lambda shape, p, dtype: mask.to(dtype))
    out = attention_by_products(q, k, v, dropout_p=0.3)
    exact = [t.detach().float().requires_grad_() for t in (q, k, v)]
    p = (exact[0] @ exact[1].mT / 8**0.5).softmax(-1) * mask.view(2, 3, 17, 17)
    torch.testing.assert_close(out.float(), p @ exact[2], atol=3e-2, rtol=3e-2)
    weight = torch.randn(out.shape)
    (out.float() * weight).sum().backward()
    (p @ exact[2] * weight).sum().backward()
    for ours, theirs in zip((q, k, v), exact, strict=True):
        assert (ours.grad.float() - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_queries_that_see_no_key_are_zeros():
    q, k, v = qkv(2, 3, 4, 5, 8, 8)
    mask = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    mask[1, :, 2] = False
    ours, plain = attention_by_products(q, k, v, mask), PLAIN(q, k, v, mask)
    assert (ours[1, :, 2] == 0).all()
    torch.testing.assert_close(ours, plain)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (ours, plain)), strict=True):
        torch.testing.assert_close(a, b)


def same_as_plain(q, k, v, mask=None, tolerance=1e-5, is_causal=False):
    assert attention._fits_kernel(q, k, v, mask, 0.0, is_causal)
    expected = PLAIN(q.double(), k.double(), v.double(), mask, is_causal=is_causal).float()
    torch.testing.assert_close(attention_kernel(q, k, v, mask, is_causal), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dim", [8, 16, 24, 64])
@pytest.mark.parametrize("keys", [1, 2, 7, 8, 9, 33, 400])
def test_the_kernel_is_attention(keys, dim):
    for queries in (1, 3, 6, 25, 50):
        q, k, v = (torch.randn(2, 3, n, dim) for n in (queries, keys, keys))
        same_as_plain(q, k, v)
        same_as_plain(q, k, v, is_causal=True)
        mask = torch.rand(2, 1, 1, keys) > 0.4
        mask[..., keys // 2] = True
        same_as_plain(q, k, v, mask)
        same_as_plain(q, k, v, mask[:1])
        same_as_plain(20 * q, k, v, mask, 1e-4)  # scores of 100, to float32's 1e-5


@pytest.mark.usefixtures("kernels")
def test_the_kernel_reads_views():
    q, k, v = torch.randn(2, 5, 3, 4, 16).permute(2, 0, 3, 1, 4)  # of one projection: (batch, tokens, 3, heads, dim)
    same_as_plain(q, k, v)
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)
    mask[0, ..., 1:] = False
    same_as_plain(q, k, v, mask[..., :5])
    cache = torch.randn(2, 2, 4, 12, 16)  # keys and values, with space for more tokens
    cache[:, :, :, 9:] = math.nan
    same_as_plain(q, *cache[..., :9, :], mask[..., :9])
    same_as_plain(q[:, :, -1:], *cache[:, :, :, :9].transpose(2, 3).contiguous().transpose(2, 3), mask[..., :9])
    same_as_plain(q[:1], *(t[:1].expand(1, -1, -1, -1) for t in cache[..., :9, :]))
    threads = torch.get_num_threads()
    q, k, v = torch.randn(3, 1, 2, 50, 16)
    expected = [attention_kernel(q[:, :, :queries], k, v) for queries in (1, 5, 50)]
    try:
        torch.set_num_threads(3)
        for queries, one in zip((1, 5, 50), expected, strict=True):
            assert torch.equal(attention_kernel(q[:, :, :queries], k, v), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("queries", [2, 7])
def test_the_kernel_with_no_key_and_with_what_is_no_number(queries):
    q, k, v = (torch.randn(2, 3, n, 16) for n in (queries, 9, 9))
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1] = False
    same_as_plain(q, k, v, mask)
    assert (attention_kernel(q, k, v, mask)[1] == 0).all()
    for bad in (math.nan, math.inf):
        spoilt, mask = k.clone(), torch.ones(2, 1, 1, 9, dtype=torch.bool)
        spoilt[0, 1, 4, 3] = bad
        y = attention_kernel(q.abs(), spoilt, v, mask)
        assert y[0, 1].isnan().all()
        assert y[1].isfinite().all()
        mask[..., 4] = False  # what is not seen may be anything
        assert attention_kernel(q.abs(), spoilt, v, mask).isfinite().all()


def fits(q, k, v, mask=None, dropout_p=0.0, is_causal=False):
    return attention._fits_kernel(q, k, v, mask, dropout_p, is_causal)


def test_what_the_kernel_takes():
    q, k, v = (torch.randn(2, 3, n, 16) for n in (4, 9, 9))
    row, own = torch.ones(2, 1, 1, 9, dtype=torch.bool), torch.ones(2, 1, 4, 9, dtype=torch.bool)
    assert fits(q, k, v)
    assert fits(q, k, v, row)
    assert not fits(q, k, v, own)
    assert not fits(q, k, v, row[..., :1])
    assert not fits(q, k, v, torch.ones(2, 1, 1, 18, dtype=torch.bool)[..., ::2])
    assert not fits(q, k, v, dropout_p=0.1)
    assert fits(q, k, v, is_causal=True)
    assert not fits(q, k, v, row, is_causal=True)
    assert not fits(q.double(), k.double(), v.double())
    assert not fits(q[..., :12], k[..., :12], v[..., :12])
    assert not fits(q, k, v.transpose(1, 2).contiguous().transpose(1, 2))
    assert not fits(q, k.mT.contiguous().mT, v.mT.contiguous().mT)
    both = torch.randn(2, 3, 9, 32)
    assert not fits(q, both[..., :16], both)


@pytest.mark.parametrize("path", ["plain", "products", "kernel"])
@pytest.mark.parametrize("grad", [True, False])
def test_each_path_is_taken_and_is_attention(path, grad, take, monkeypatch):
    if path == "kernel" and attention.native.load() is None:
        pytest.skip("no compiled kernels")
    calls = []
    for name in ("attention_by_products", "attention_kernel"):
        function = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *a, name=name, f=function: calls.append(name) or f(*a))
    take(path)
    q, k, v = (torch.randn(2, 3, n, 8) for n in (4, 9, 9))
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., 5:] = False
    with torch.set_grad_enabled(grad):
        y = scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(y, PLAIN(q, k, v, mask), atol=1e-5, rtol=1e-5)
    taken = {("products", True): ["attention_by_products"], ("kernel", False): ["attention_kernel"]}
    assert calls == taken.get((path, grad), [])


def test_small_attention_is_torchs_and_looks_up_no_choice(monkeypatch):
    monkeypatch.setattr(attention, "choose", lambda *_, **__: pytest.fail("a choice was looked up"))
    q, k, v = torch.randn(3, 1, 2, 9, 16)
    with torch.inference_mode():
        assert torch.equal(scaled_dot_product_attention(q, k, v), PLAIN(q, k, v))


def test_where_plain_torch_is_taken_unseen(take, monkeypatch):
    take("products")
    q, k, v = (t.bfloat16() for t in qkv(*SHAPES["cross"]))

    def is_plain(q, k, v):
        return torch.equal(scaled_dot_product_attention(q, k, v), PLAIN(q, k, v))

    assert not is_plain(q, k, v)
    assert scaled_dot_product_attention(*(t.to("meta") for t in (q, k, v))).device.type == "meta"
    with monkeypatch.context() as few:
        few.setattr(attention, "MAX_KEYS", k.shape[2] - 1)
        assert is_plain(q, k, v)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert is_plain(q, k, v)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_a_timed_path_is_attention(dtype, grad, monkeypatch):
    monkeypatch.setattr(attention, "SMALL", 0)
    q, k, v = (torch.randn(2, 3, n, 8).to(dtype) for n in (4, 9, 9))
    with torch.set_grad_enabled(grad):
        y = scaled_dot_product_attention(q, k, v, dropout_p=0.0)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    expected = PLAIN(q.float(), k.float(), v.float())
    torch.testing.assert_close(y.float(), expected, atol=tolerance, rtol=tolerance)


def test_operations_are_counted(take):
    take("products")
    q, k, v = (t.detach().bfloat16().requires_grad_() for t in qkv(4, 2, 50, 50, 16, 16))

    def flops(function):
        with FlopCounterMode(display=False) as counter:
            function(q, k, v).float().sum().backward()
        return counter.get_total_flops()

    assert flops(scaled_dot_product_attention) == flops(PLAIN)
