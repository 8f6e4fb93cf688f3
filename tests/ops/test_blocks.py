"""The parts of a block by each of their paths against plain torch: values, gradients, error in bf16, and the path."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from glocal.ops import Linear, pack, scaled_dot_product_attention
from glocal.ops.implementations import round_weights

attention = importlib.import_module("glocal.ops.attention")
blocks = importlib.import_module("glocal.ops.blocks")

PLAIN = F.scaled_dot_product_attention

OTHERS = {
    "attention training": "products",
    "mlp training": "recompute",
    "glu": "halves",
    "glu training": "halves",
    "depthwise training": "products",
}


@pytest.fixture(params=["another path"])
def path(request, monkeypatch) -> str:
    """Take the path that is not plain torch, whatever this machine would choose."""
    for module in (attention, blocks):
        if request.param != "timed":
            taken = (lambda *_, **__: "plain") if request.param == "plain" else (lambda key, *_, **__: OTHERS[key[0]])
            monkeypatch.setattr(module, "choose", taken)
    return request.param


pytestmark = pytest.mark.usefixtures("path")
each_path = pytest.mark.parametrize("path", ["another path", "plain", "timed"], indirect=True)


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
    assert "_MLP" in type(blocks.mlp(x, *mlp).grad_fn).__name__
    same(blocks.mlp(x, *mlp), plain_mlp(x, *mlp), (x, *parameters))
    assert torch.autograd.gradcheck(lambda x: blocks.mlp(x, *mlp), x, fast_mode=True)


def test_mlp_trains_only_what_is_not_frozen():
    x, mlp = torch.randn(3, 8, dtype=torch.float64), layers()
    mlp[0].requires_grad_(False)
    mlp[2].bias.requires_grad_(False)
    same(blocks.mlp(x, *mlp), plain_mlp(x, *mlp), (mlp[2].weight,))
    blocks.mlp(x, *mlp).sum().backward()
    assert [p.grad is None for linear in (mlp[0], mlp[2]) for p in linear.parameters()] == [True, True, False, True]


@gelus
def test_mlp_under_autocast(approximate):
    x, mlp = torch.randn(4, 5, 8, requires_grad=True), layers(dtype=torch.float32, approximate=approximate)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = blocks.mlp(x, *mlp), plain_mlp(x, *mlp)
    assert actual.dtype == torch.bfloat16
    same(actual, expected, (x, *mlp[0].parameters(), *mlp[2].parameters()), atol=1e-2, rtol=2e-2)


@gelus
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_in_bf16_without_gradients(bias, approximate):
    x, mlp = torch.randn(4, 5, 64), layers(64, 256, bias, torch.float32, approximate)
    exact = copy.deepcopy(nn.Sequential(*mlp)).double()(x.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, plain = blocks.mlp(x, *mlp), plain_mlp(x, *mlp)
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours, exact) < 1.1 * relative_error(plain, exact)


def test_mlp_keeps_the_hidden_layer_once():
    x, mlp = torch.randn(100, 8, dtype=torch.float64, requires_grad=True), layers()

    def kept(function):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.setdefault(t.data_ptr(), t.nbytes), lambda t: t):
            function(x, *mlp)
        return sum(sizes.values())

    assert kept(plain_mlp) - kept(blocks.mlp) == 100 * 32 * 8


def test_mlp_calls_what_is_more_than_a_linear_layer():
    x, (fc1, act, fc2), calls = torch.randn(3, 8, dtype=torch.float64), layers(), []

    class Adapter(nn.Linear):
        def forward(self, x):
            calls.append("adapter")
            return super().forward(x)

    blocks.mlp(x, Adapter(8, 32, dtype=torch.float64), act, fc2)
    handle = fc2.register_forward_hook(lambda *_: calls.append("hook"))
    blocks.mlp(x, fc1, act, fc2)
    handle.remove()
    assert calls == ["adapter", "hook"]
    for other in (nn.ReLU(), nn.SiLU()):
        torch.testing.assert_close(blocks.mlp(x, fc1, other, fc2), plain_mlp(x, fc1, other, fc2), atol=0, rtol=0)


@each_path
def test_each_path_is_the_mlp(path):
    x = torch.randn(3, 8, requires_grad=True)
    for act in (nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU()):
        fc1, _, fc2 = layers(dtype=torch.float32)
        inputs = (x, *fc1.parameters(), *fc2.parameters())
        same(blocks.mlp(x, fc1, act, fc2), plain_mlp(x, fc1, act, fc2), inputs, atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            expected = plain_mlp(x, fc1, act, fc2)
            torch.testing.assert_close(blocks.mlp(x, fc1, act, fc2), expected)
            pack(nn.ModuleList([fc1, fc2]))
            torch.testing.assert_close(blocks.mlp(x, fc1, act, fc2), expected, atol=1e-5, rtol=1e-5)
            assert not isinstance(act, nn.GELU) or fc1.weight.packed.layouts


def test_mlp_under_transformations(monkeypatch):
    x, mlp = torch.randn(3, 8, dtype=torch.float64), layers()
    expected = torch.func.vmap(torch.func.grad(lambda x: plain_mlp(x, *mlp).sum()))(x)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda x: blocks.mlp(x, *mlp).sum()))(x), expected)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "_MLP" not in type(blocks.mlp(x, *mlp).grad_fn).__name__


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


@each_path
@pytest.mark.parametrize("bias", [True, False])
def test_glu(bias, path):
    x, layer = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True), Linear(6, 8, bias, dtype=torch.float64)
    same(blocks.glu(x, layer), F.glu(layer(x)), (x, *layer.parameters()))
    with torch.no_grad():
        torch.testing.assert_close(blocks.glu(x, layer), F.glu(layer(x)))
    layer.register_forward_hook(lambda _module, _args, y: 2 * y)
    torch.testing.assert_close(blocks.glu(x, layer), F.glu(layer(x)))


@each_path
def test_glu_keeps_the_precision_of_its_weights(path):
    x, layer = torch.randn(5, 64), pack(Linear(64, 8), "int8")
    with torch.no_grad():
        y = blocks.glu(x, layer)
        torch.testing.assert_close(y, F.glu(layer(x)), atol=0, rtol=0)
        rounded = F.glu(F.linear(x, round_weights(layer.weight, "int8"), layer.bias))
        torch.testing.assert_close(y, rounded, atol=1e-3, rtol=0)
        torch.testing.assert_close(blocks.glu(x, pack(layer)), F.glu(F.linear(x, layer.weight, layer.bias)))


def depthwise_layer(channels=6, width=9, bias=True, dtype=torch.float64, padding=None):
    padding = (0, width // 2 if padding is None else padding)
    return nn.Conv2d(channels, channels, (1, width), padding=padding, groups=channels, bias=bias, dtype=dtype)


def tokens(batch, count, channels, dtype=torch.float64):
    """As local heads have them: one row, the channels last in memory."""
    return torch.randn(batch, count, channels, dtype=dtype).mT.unsqueeze(2).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("width", "count"), [(9, 70), (9, 64), (31, 5), (9, 1)])
def test_depthwise(width, count, bias):
    x, conv = tokens(2, count, 3), depthwise_layer(3, width, bias)
    assert "_Depthwise" in type(blocks.depthwise(x, conv).grad_fn).__name__
    same(blocks.depthwise(x, conv), conv(x), (x, *conv.parameters()))
    assert torch.autograd.gradcheck(lambda x: blocks.depthwise(x, conv), x, fast_mode=True)


@pytest.mark.parametrize(("width", "count"), [(9, 70), (6, 70), (8, 8)])
def test_depthwise_of_a_causal_kernel_has_no_padding(width, count):
    x, conv = tokens(2, count, 3), depthwise_layer(3, width, padding=0)
    assert "_Depthwise" in type(blocks.depthwise(x, conv).grad_fn).__name__
    assert blocks.depthwise(x, conv).shape[3] == count - width + 1
    same(blocks.depthwise(x, conv), conv(x), (x, *conv.parameters()))


def test_depthwise_in_bf16_is_as_exact_as_the_plain_one():
    x, conv, errors = tokens(16, 70, 24, torch.float32), depthwise_layer(24, 17, dtype=torch.float32), {}
    exact, grad = copy.deepcopy(conv).double(), torch.randn(16, 70, 24).mT.unsqueeze(2)
    expected = torch.autograd.grad(exact(x.double()), (x, *exact.parameters()), grad.double())
    for function in (blocks.depthwise, lambda x, conv: conv(x)):
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
        y = blocks.depthwise(x, conv)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, atol=2e-2, rtol=2e-2)
    if grad:
        y.float().sum().backward()
    assert kinds
    assert set(kinds) == {torch.float32}


def test_depthwise_trains_only_what_is_not_frozen():
    x, conv = tokens(2, 12, 6), depthwise_layer()
    conv.weight.requires_grad_(False)
    same(blocks.depthwise(x, conv), conv(x), (x, conv.bias))
    blocks.depthwise(x.detach(), conv).sum().backward()
    assert conv.weight.grad is None


def test_depthwise_leaves_small_kernels_and_inference_to_the_layer():
    x, calls = tokens(2, 12, 6), []
    for conv in (depthwise_layer(width=1), depthwise_layer()):
        conv.register_forward_hook(lambda *_: calls.append(1))  # more than a layer, so it is called, too
        assert "_Depthwise" not in type(blocks.depthwise(x, conv).grad_fn).__name__
    assert len(calls) == 2
    with torch.no_grad():
        torch.testing.assert_close(blocks.depthwise(x, depthwise := depthwise_layer()), depthwise(x))
    assert "_Depthwise" not in type(blocks.depthwise(x, depthwise_layer(width=1)).grad_fn).__name__


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
        for errors, functions in ((ours, (scaled_dot_product_attention, blocks.mlp)), (plain, (PLAIN, plain_mlp))):
            bf16 = gradients(network, x, *functions, torch.float32, autocast=True)
            errors += [relative_error(a, b) for a, b in zip(bf16, exact, strict=True)]
    assert 1e-3 < sum(plain) / len(plain) < 5e-2
    assert sum(ours) <= 1.2 * sum(plain)


def test_operations_are_counted():
    q, k, v = (torch.randn(4, 2, 50, 16).bfloat16().requires_grad_() for _ in range(3))
    x, mlp = torch.randn(10, 8, dtype=torch.bfloat16), layers(dtype=torch.bfloat16)

    def flops(attention, function):
        with FlopCounterMode(display=False) as counter:
            attention(q, k, v).float().sum().backward()
            with torch.no_grad():
                function(x, *mlp)
        return counter.get_total_flops()

    assert flops(scaled_dot_product_attention, blocks.mlp) == flops(PLAIN, plain_mlp)
