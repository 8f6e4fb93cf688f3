"""The parts of a block by each of their paths against plain torch: values, gradients, error in bf16, and the path."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from glocal.ops import Linear, depthwise, glu, mlp, pack, scaled_dot_product_attention
from glocal.ops.blocks import depthwise_by_products, glu_by_halves
from glocal.ops.linear import round_weights

blocks = importlib.import_module("glocal.ops.blocks")

PLAIN = F.scaled_dot_product_attention

def layers(dim=8, hidden=32, bias=True, dtype=torch.float64, approximate="none"):
    act = nn.GELU(approximate)
    return Linear(dim, hidden, bias, dtype=dtype), act, Linear(hidden, dim, bias, dtype=dtype)


def plain_mlp(x, fc1, act, fc2):
    return fc2(act(fc1(x)))


def same(actual, expected, inputs, **tolerance):
    """Both values and their gradients agree."""
    torch.testing.assert_close(actual, expected, **tolerance)
    grad = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, **tolerance)


gelus = pytest.mark.parametrize("approximate", ["none", "tanh"])


@gelus
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(6,), (2, 3)])
def test_mlp(batch, bias, approximate):
    x = torch.randn(*batch, 8, dtype=torch.float64, requires_grad=True)
    mlp = layers(bias=bias, approximate=approximate)
    parameters = [*mlp[0].parameters(), *mlp[2].parameters()]
    assert "_MLP" in type(fused.mlp(x, *mlp).grad_fn).__name__
    same(fused.mlp(x, *mlp), plain_mlp(x, *mlp), (x, *parameters))
    assert torch.autograd.gradcheck(lambda x: fused.mlp(x, *mlp), x)


def test_mlp_trains_only_what_is_not_frozen():
    x, mlp = torch.randn(3, 8, dtype=torch.float64), layers()
    mlp[0].requires_grad_(False)
    mlp[2].bias.requires_grad_(False)
    same(fused.mlp(x, *mlp), plain_mlp(x, *mlp), (mlp[2].weight,))
    fused.mlp(x, *mlp).sum().backward()
    assert [p.grad is None for linear in (mlp[0], mlp[2]) for p in linear.parameters()] == [True, True, False, True]


@gelus
def test_mlp_under_autocast(approximate):
    x, mlp = torch.randn(4, 5, 8, requires_grad=True), layers(dtype=torch.float32, approximate=approximate)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = fused.mlp(x, *mlp), plain_mlp(x, *mlp)
    assert actual.dtype == torch.bfloat16
    same(actual, expected, (x, *mlp[0].parameters(), *mlp[2].parameters()), atol=1e-2, rtol=2e-2)


@gelus
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_in_bf16_without_gradients(bias, approximate):
    x, mlp = torch.randn(4, 5, 64), layers(64, 256, bias, torch.float32, approximate)
    exact = copy.deepcopy(nn.Sequential(*mlp)).double()(x.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, plain = fused.mlp(x, *mlp), plain_mlp(x, *mlp)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours, exact) < 1.1 * relative_error(plain, exact)


def test_mlp_keeps_the_hidden_layer_once():
    x, mlp = torch.randn(100, 8, dtype=torch.float64, requires_grad=True), layers()

    def kept(function):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.setdefault(t.data_ptr(), t.nbytes), lambda t: t):
            function(x, *mlp)
        return sum(sizes.values())

    assert kept(plain_mlp) - kept(fused.mlp) == 100 * 32 * 8


def test_mlp_calls_what_is_more_than_a_linear_layer():
    x, (fc1, act, fc2), calls = torch.randn(3, 8, dtype=torch.float64), layers(), []

    class Adapter(nn.Linear):
        def forward(self, x):
            calls.append("adapter")
            return super().forward(x)

    fused.mlp(x, Adapter(8, 32, dtype=torch.float64), act, fc2)
    handle = fc2.register_forward_hook(lambda *_: calls.append("hook"))
    fused.mlp(x, fc1, act, fc2)
    handle.remove()
    assert calls == ["adapter", "hook"]
    for other in (nn.ReLU(), nn.SiLU()):
        torch.testing.assert_close(fused.mlp(x, fc1, other, fc2), plain_mlp(x, fc1, other, fc2), atol=0, rtol=0)


class Layer(nn.Module):
    """A pre-norm block whose sublayers are given."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.qkv, self.proj, self.mlp = (
            nn.Linear(dim, 3 * dim),
            nn.Linear(dim, dim),
            nn.ModuleList(layers(dim, 4 * dim)),
        )

    def forward(self, x, attention, mlp):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attention(q, k, v).transpose(1, 2).flatten(2))
        return x + mlp(self.norm(x), *self.mlp)


def gradients(network, x, attention, mlp, dtype, autocast=False):
    network = copy.deepcopy(network).to(dtype)
    x = x.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for layer in network:
            x = layer(x, attention, mlp)
    return torch.autograd.grad(x.square().mean(), list(network.parameters()))


@pytest.mark.parametrize("bias", [True, False])
def test_glu(bias):
    x, layer = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True), nn.Linear(6, 8, bias, dtype=torch.float64)
    same(fused.glu(x, layer), F.glu(layer(x)), (x, *layer.parameters()))
    layer.register_forward_hook(lambda _module, _args, y: 2 * y)
    torch.testing.assert_close(fused.glu(x, layer), F.glu(layer(x)))


def depthwise_layer(channels=6, width=9, bias=True, dtype=torch.float64):
    return nn.Conv2d(channels, channels, (1, width), padding=(0, width // 2), groups=channels, bias=bias, dtype=dtype)


def tokens(batch, count, channels, dtype=torch.float64):
    """As local heads have them: one row, the channels last in memory."""
    return torch.randn(batch, count, channels, dtype=dtype).mT.unsqueeze(2).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "count"), [(9, 70), (9, 64), (31, 5), (9, 1)])
def test_depthwise(width, count, bias):
    x, conv = tokens(2, count, 3), depthwise_layer(3, width, bias)
    assert "_Depthwise" in type(fused.depthwise(x, conv).grad_fn).__name__
    same(fused.depthwise(x, conv), conv(x), (x, *conv.parameters()))
    assert torch.autograd.gradcheck(lambda x: fused.depthwise(x, conv), x)


def test_depthwise_in_bf16_is_as_exact_as_the_plain_one():
    x, conv, errors = tokens(16, 70, 24, torch.float32), depthwise_layer(24, 17, dtype=torch.float32), {}
    exact, grad = copy.deepcopy(conv).double(), torch.randn(16, 70, 24).mT.unsqueeze(2)
    expected = torch.autograd.grad(exact(x.double()), (x, *exact.parameters()), grad.double())
    for function in (fused.depthwise, lambda x, conv: conv(x)):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, conv)
        assert y.dtype == torch.bfloat16
        actual = torch.autograd.grad(y, (x, *conv.parameters()), grad.bfloat16())
        errors[function] = [relative_error(a, b) for a, b in zip(actual, expected, strict=True)]
    for ours, plain in zip(*errors.values(), strict=True):
        assert ours < 1.25 * plain < 1e-2


@pytest.mark.parametrize("height", [1, 9])
@pytest.mark.parametrize("grad", [True, False])
def test_depthwise_of_few_channels_is_never_in_bf16(grad, height, monkeypatch):
    """oneDNN would not come back, from wider kernels over more tokens."""
    conv = nn.Conv2d(16, 16, (height, 9), padding=(height // 2, 4), groups=16)
    x = torch.randn(2, height, 12, 16).permute(0, 3, 1, 2).requires_grad_(grad)
    expected, kinds, plain = conv(x), [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *others, **more: kinds.append(x.dtype) or plain(x, *others, **more))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        y = fused.depthwise(x, conv)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=2e-2, rtol=2e-2)
    if grad:
        y.float().sum().backward()
    assert kinds
    assert set(kinds) == {torch.float32}


def test_depthwise_trains_only_what_is_not_frozen():
    x, conv = tokens(2, 12, 6), depthwise_layer()
    conv.weight.requires_grad_(False)
    same(fused.depthwise(x, conv), conv(x), (x, conv.bias))
    fused.depthwise(x.detach(), conv).sum().backward()
    assert conv.weight.grad is None


def test_depthwise_leaves_small_kernels_and_inference_to_the_layer():
    x, calls = tokens(2, 12, 6), []
    for conv in (depthwise_layer(width=7), depthwise_layer()):
        conv.register_forward_hook(lambda *_: calls.append(1))  # more than a layer, so it is called, too
        assert "_Depthwise" not in type(fused.depthwise(x, conv).grad_fn).__name__
    assert len(calls) == 2
    with torch.no_grad():
        torch.testing.assert_close(fused.depthwise(x, depthwise := depthwise_layer()), depthwise(x))
    assert "_Depthwise" not in type(fused.depthwise(x, depthwise_layer(width=7)).grad_fn).__name__


def relative_error(actual, exact):
    return ((actual.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("sharpness", [1.0, 4.0], ids=["even attention", "sharp attention"])
def test_gradients_in_bf16_are_as_exact_as_the_plain_ones(sharpness):
    ours, plain = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        network, x = nn.ModuleList(Layer(64, 2) for _ in range(3)), torch.randn(4, 50, 64)
        with torch.no_grad():
            for layer in network:
                layer.qkv.weight[:128] *= sharpness
        exact = gradients(network, x, PLAIN, plain_mlp, torch.float64)
        for errors, functions in ((ours, (fused.attention, fused.mlp)), (plain, (PLAIN, plain_mlp))):
            bf16 = gradients(network, x, *functions, torch.float32, autocast=True)
            errors += [relative_error(a, b) for a, b in zip(bf16, exact, strict=True)]
    assert 1e-3 < sum(plain) / len(plain) < 5e-2
    assert sum(ours) <= 1.2 * sum(plain)


def test_operations_are_counted():
    q, k, v = (t.detach().bfloat16().requires_grad_() for t in qkv(4, 2, 50, 50, 16, 16))
    x, mlp = torch.randn(10, 8, dtype=torch.bfloat16), layers(dtype=torch.bfloat16)

    def flops(attention, function):
        with FlopCounterMode(display=False) as counter:
            attention(q, k, v).float().sum().backward()
            with torch.no_grad():
                function(x, *mlp)
        return counter.get_total_flops()

    assert flops(fused.attention, fused.mlp) == flops(PLAIN, plain_mlp)


