"""Peers compute what our models compute: llama.cpp writes the same text, ONNX Runtime gives the same outputs."""

import pytest
import torch
from torch import nn

from glocal.generation import DecodingConfig, generate
from glocal.models import create_model


@pytest.mark.parametrize(("kind", "error"), [("f16", 0.02), ("q8_0", 0.2)])
def test_llama_cpp_writes_the_tokens_that_are_the_best_of_ours(tmp_path, kind, error):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    from language import shortfall
    from llamacpp import Writer, write_gguf

    model = create_model("gpt-tiny", vocab_size=300, depth=2, pad_id=None, bos_id=None, eos_id=None).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that each tensor counts, and no token is the best everywhere
            parameter += torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1)
        model.embedding.weight[-1] = 0  # the last token ends a text for llama.cpp, and is never written
    write_gguf(model, tmp_path / "model.gguf", kind)
    writer = Writer(tmp_path / "model.gguf", length=24)
    prompt = torch.randint(0, 299, (1, 8))
    text = writer.write(prompt[0].tolist(), 16)
    assert text == writer.write(prompt[0].tolist(), 16)
    assert len(set(text)) > 4
    assert len(text) == 16
    assert shortfall(model, prompt, text) < error
    assert shortfall(model, prompt, text[::-1]) > 1


def test_llama_cpp_writes_the_text_of_a_model_that_is_sure(tmp_path):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    from llamacpp import Writer, write_gguf

    model = create_model("gpt-tiny", vocab_size=300, depth=1, pad_id=None, bos_id=None, eos_id=None).eval()
    nn.init.normal_(model.pos_embed)  # a place has its own token, by far the likeliest
    nn.init.zeros_(model.embedding.weight[-1])  # never the one that ends a text for llama.cpp
    write_gguf(model, tmp_path / "model.gguf", "f16")
    prompt = torch.randint(0, 299, (1, 8))
    [[text]] = generate(model, prompt, torch.ones_like(prompt).bool(), DecodingConfig(beams=1, extra_length=16))
    assert len(set(text.ids)) > 4
    assert Writer(tmp_path / "model.gguf", length=24).write(prompt[0].tolist(), 16) == text.ids


@pytest.mark.slow
def test_onnx_runtime_gives_the_outputs_of_what_was_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from onnx_runtime import check_close, session

    from glocal.export.onnx import quantize, trace

    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    inputs = torch.randn(4, 64)
    expected = model(inputs).detach()
    trace(model, (inputs,), tmp_path / "float32.onnx")
    quantize(tmp_path / "float32.onnx", tmp_path / "int8.onnx", operations=None)
    for precision in ("float32", "int8"):
        output = session(tmp_path / f"{precision}.onnx", 1)(inputs)
        check_close(output, expected, precision)
        with pytest.raises((AssertionError, ValueError)):
            check_close(output.flip(0), expected, precision)
    assert not torch.equal(output, expected)  # int8 is another model
