"""Every way to multiply by packed weights against `F.linear`, and when the laid-out weights are used."""

import copy
import importlib
import inspect
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from glocal.errors import GlocalError
from glocal.ops import PRECISIONS, Linear, fastest_precision, native, pack
from glocal.ops import linear as multiply

implementations = importlib.import_module("glocal.ops.implementations")
products = importlib.import_module("glocal.ops.products")

ROWS = [0, 1, 5, 6, 7, 16, 100]
FEW_ROWS = 6
"""Rows up to which inputs beside int8 weights have 16 bits."""
SIZES = [(1, 1), (1, 16), (7, 17), (64, 48), (333, 50)]  # inputs, outputs
ACTS = {"none": nn.Identity(), "relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""Of one number, and of a sum in float32 as a share of the sum of its terms' sizes."""


def input_rounding(name, precision, dtype, x, weight):
    """How much the sums may change because an implementation rounds its inputs."""
    if name == "bfloat16":
        return ROUNDING[implementations.DTYPES[precision]] * x.abs() @ weight.abs().T
    if name == "kernel" and precision == "int8":
        if len(x) <= FEW_ROWS:
            step = x.abs().amax(-1, keepdim=True) / min(32767, (2**31 - 1) // (127 * x.shape[-1]))
        else:
            zero = x.new_zeros(1)
            step = (x.amax(-1, keepdim=True).maximum(zero) - x.amin(-1, keepdim=True).minimum(zero)) / 127
        return 0.5 * step * weight.abs().sum(1)
    return 0.0


def check_product(name, precision, dtype, x, weight, bias, act="none"):
    """Check an implementation within what its roundings of inputs, sums and outputs may make of the exact product."""
    path = implementations.candidate_implementations(precision, dtype)[name]
    with torch.inference_mode():
        y = path.product(x, path.lay_out(weight), bias, act)
        rounded = implementations.round_weights(weight.float(), precision).to(dtype).double()
        exact = F.linear(x.double(), rounded, None if bias is None else bias.double())
        sizes = x.double().abs() @ rounded.abs().T + (0.0 if bias is None else bias.double().abs())
        kind = implementations.DTYPES[precision] if name == "bfloat16" else dtype
        bound = 2 * ROUNDING[kind] * (sizes + exact.abs()) + 1e-6 * sizes + 1e-9
        bound = bound + input_rounding(name, precision, dtype, x.double(), rounded)
        expected = ACTS[act](exact)
        if act != "none":  # its slope is at most 1.13, and its own rounding
            bound = 1.13 * bound + 2 * ROUNDING[dtype] * exact.abs()
    assert y.dtype == dtype
    assert y.shape == expected.shape
    assert ((y.double() - expected).abs() <= bound).all(), (
        f"{name}, {precision}, {tuple(x.shape)}, {tuple(weight.shape)}"
    )


def each_implementation(precision, dtype):
    return list(implementations.candidate_implementations(precision, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_implementation_is_the_product(precision, dtype):
    for name in each_implementation(precision, dtype):
        for dim, out in SIZES:
            weight, bias = torch.randn(out, dim).to(dtype), torch.randn(out).to(dtype)
            for rows in ROWS:
                check_product(name, precision, dtype, torch.randn(rows, dim).to(dtype), weight, bias)
            check_product(name, precision, dtype, torch.randn(2, 3, dim).to(dtype), weight, None)
            check_product(name, precision, dtype, torch.randn(dim, 4).to(dtype).T, weight, bias)  # strided


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_implementation_applies_the_non_linearity(precision, dtype):
    weight, bias = torch.randn(40, 24).div(5).to(dtype), torch.randn(40).to(dtype)
    for name in each_implementation(precision, dtype):
        for act in ACTS:
            for rows in (1, 9):
                check_product(name, precision, dtype, torch.randn(rows, 24).to(dtype), weight, bias, act)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_and_small_weights_and_inputs(precision):
    for name in each_implementation(precision, torch.float32):
        largest = 3
        weight = torch.randn(20, 31) * torch.logspace(-3, largest, 20)[:, None]
        weight[3] = 0.0
        x = torch.randn(8, 31)
        x[5] = 0.0
        check_product(name, precision, torch.float32, x, weight, None)
        if precision != "fp16":
            check_product(name, precision, torch.float32, 1e12 * x, 1e12 * weight, None)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 36], ids=["in a vector", "in the rest"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_stays_in_its_row_and_stays_none(precision, place, bad):
    x, weight = torch.randn(8, 37), torch.randn(20, 37)
    for name, path in implementations.candidate_implementations(precision, torch.float32).items():
        layout = path.lay_out(weight)
        expected = path.product(x, layout, None, "none")
        spoilt = x.clone()
        spoilt[2, place] = bad
        y = path.product(spoilt, layout, None, "none")
        assert not y[2].isfinite().any(), name
        others = [0, 1, 3, 4, 5, 6, 7]
        torch.testing.assert_close(y[others], expected[others], msg=name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_is_no_number_spoils_its_output_alone(precision, bad):
    x, weight = torch.randn(8, 37), torch.randn(20, 37)
    weight[7, 5] = bad
    for name, path in implementations.candidate_implementations(precision, torch.float32).items():
        y = path.product(x, path.lay_out(weight), None, "none")
        assert not y[:, 7].isfinite().any(), name
        assert y[:, torch.arange(20) != 7].isfinite().all(), name


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_is_the_same_in_any_batch_and_by_any_number_of_threads(precision):
    x, weight, bias = torch.randn(21, 333), torch.randn(50, 333), torch.randn(50)
    path = implementations.candidate_implementations(precision, torch.float32)["kernel"]
    layout, threads = path.lay_out(weight), torch.get_num_threads()

    def by(rows):
        return torch.cat([path.product(some, layout, bias, "none") for some in x.split(rows)])

    together = by(21)
    try:
        torch.set_num_threads(3)
        assert torch.equal(by(21), together)
    finally:
        torch.set_num_threads(threads)
    if precision == "int8":  # integers are summed exactly
        assert torch.equal(by(7), together)
        assert torch.equal(by(1), by(3))
    else:
        torch.testing.assert_close(by(1), together, atol=1e-4, rtol=1e-5)


def test_int8_is_the_nearest_of_its_integers():
    weight = torch.randn(6, 50) * torch.logspace(-30, 30, 6)[:, None]
    weight[2] = 0.0
    integers, scales = implementations.quantise(weight)
    assert integers.dtype == torch.int8
    assert integers.abs().amax(1).tolist() == [127, 127, 0, 127, 127, 127]
    assert ((integers * scales[:, None] - weight).abs() <= 0.501 * scales[:, None]).all()
    assert torch.equal(implementations.round_weights(weight, "int8"), integers * scales[:, None])


class Model(nn.Module):
    """An embedding whose weights the output layer shares, and a layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(40, 24), Linear(24, 24), Linear(24, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids):
        return self.head(self.layer(self.embedding(input_ids)))


INPUT_IDS = torch.arange(6).view(2, 3)


def rounded(model, precision):
    """The model with its layers' weights at a precision, by plain torch."""
    x = F.embedding(INPUT_IDS, model.embedding.weight)
    x = F.linear(x, implementations.round_weights(model.layer.weight, precision), model.layer.bias)
    return F.linear(x, implementations.round_weights(model.embedding.weight, precision))


TOLERANCE = {"float32": 1e-5, "int8": 1e-2, "fp16": 1e-2, "bf16": 1e-1}
"""Of logits of the size of 5: some implementations round inputs, too."""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_packed_model_computes_at_its_precision(precision):
    model = Model()
    with torch.inference_mode():
        expected = rounded(model, precision)
        assert pack(model, precision) is model
        y = model(INPUT_IDS)
        assert model.embedding.weight is model.head.weight
    torch.testing.assert_close(y.float(), expected, atol=TOLERANCE[precision], rtol=0)
    assert model.layer.weight.packed.layouts  # it was laid out
    assert model.embedding.weight.packed.precision == precision


def test_layouts_are_dropped_where_a_gradient_is_wanted_or_a_weight_changes():
    model, ids = pack(Model()), INPUT_IDS
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def check():
        with torch.no_grad():
            torch.testing.assert_close(model(ids), rounded(model, "float32"), atol=1e-5, rtol=1e-5)
            assert model.layer.weight.packed.layouts

    check()
    loss = model(ids).square().mean()
    assert not model.layer.weight.packed.layouts
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()
    check()
    model.load_state_dict(Model().state_dict())
    check()
    with torch.no_grad():
        model.layer.weight.mul_(2)
    check()
    model.layer.weight.data = torch.randn(24, 24)
    check()


def test_a_packed_model_may_become_another_type():
    model = pack(Model(), "int8").bfloat16()
    with torch.inference_mode():
        expected = rounded(copy.deepcopy(model).float(), "int8")
        torch.testing.assert_close(model(INPUT_IDS).float(), expected, atol=0.3, rtol=0)


def test_training_pays_no_heed_to_the_precision():
    model = Model()
    expected = model(INPUT_IDS)
    pack(model, "int8")
    assert torch.equal(model(INPUT_IDS), expected)
    with torch.no_grad():
        assert not torch.equal(model(INPUT_IDS), expected)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_packed_model_can_be_copied_and_pickled(precision):
    model, file = pack(Model(), precision), io.BytesIO()
    with torch.no_grad():
        expected = model(INPUT_IDS)
        assert torch.equal(pickle.loads(pickle.dumps(model))(INPUT_IDS), expected)
        torch.save(model, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(INPUT_IDS), expected)
        other = copy.deepcopy(model)
        torch.testing.assert_close(other(INPUT_IDS), rounded(model, "float32"), atol=1e-5, rtol=1e-5)
        assert torch.equal(pack(other, precision)(INPUT_IDS), expected)
        assert torch.equal(model(INPUT_IDS), expected)


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(GlocalError, match="precision 'int4'; expected one of float32, bf16, fp16, int8"):
        inspect.unwrap(pack)(Model(), "int4")  # without the tests' check of types
    with pytest.raises(GlocalError, match="precision int8 of a Conv2d, whose layers compute in float32 alone"):
        pack(nn.Conv2d(1, 1, 1), "int8")
    assert pack(nn.Conv2d(1, 1, 1)) is not None


def test_other_devices_convert_the_model():
    model = Model().to("meta")
    with pytest.raises(
        GlocalError, match="precision int8 on meta; int8 is computed on CPUs: choose fp16, or --device cpu"
    ):
        pack(model, "int8")
    assert next(pack(model, "fp16").parameters()).dtype == torch.float16
    assert not hasattr(model.layer.weight, "packed")
    assert pack(model, "float32")(INPUT_IDS.to("meta")).shape == (2, 3, 40)


def test_inputs_of_another_size_are_torchs_error():
    layer = pack(Linear(24, 8))
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        inspect.unwrap(multiply)(torch.randn(3, 25), layer.weight, layer.bias)


def test_packed_weights_are_left_under_autocast_and_transformations():
    layer, x = pack(Linear(24, 8), "int8"), torch.randn(3, 24)
    plain = F.linear(x, layer.weight, layer.bias)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(layer)(x), plain, atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert not layer.weight.packed.layouts


def test_a_weight_that_is_not_packed_is_plain():
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
    with torch.inference_mode():
        assert torch.equal(multiply(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(multiply(x, weight), F.linear(x, weight))


def test_the_fastest_precision(monkeypatch):
    model = Model()
    monkeypatch.setattr(products, "choose", lambda *_, **__: "fp16")
    assert fastest_precision(model, 1) == "fp16"
    assert fastest_precision(nn.Conv2d(1, 1, 1), 1) == "float32"
    with torch.no_grad():
        model.layer.weight[0, 0] = 1e5  # more than fp16 holds
    assert fastest_precision(model, 1) == "float32"
    assert fastest_precision(Model().to("meta"), 1) == "float32"
    monkeypatch.setattr(products, "choose", lambda *_, **__: "plain")
    assert fastest_precision(Model(), 1) == "float32"


def test_the_fastest_precision_is_timed():
    model = Model()
    assert fastest_precision(model, 1) in ("float32", "fp16")
    assert not hasattr(model.layer.weight, "packed")  # nothing was done to the model


@pytest.mark.parametrize("able", [True, False])
def test_bf16_is_computed_in_bf16_where_the_processor_does(able, monkeypatch):
    monkeypatch.setattr(products, "native_bf16", lambda: able)
    assert next(pack(Model(), "bf16").parameters()).dtype == (torch.bfloat16 if able else torch.float32)
    assert next(pack(Model(), "int8").parameters()).dtype == torch.float32


def test_an_implementation_that_this_process_lacks_is_plain(monkeypatch):
    """As where the choice was kept by a process with a compiler."""
    monkeypatch.setattr(products, "choose", lambda *_, **__: "kernel")
    monkeypatch.setattr(native, "load", lambda: None)
    layer, x = pack(Linear(24, 8)), torch.randn(3, 24)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
