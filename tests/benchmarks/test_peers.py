"""Peers compute what our models compute: llama.cpp writes the same text, ONNX Runtime gives the same outputs."""

import pytest
import torch
from torch import nn

from glocal.inference import DecodingConfig, generate
from glocal.models import create_model


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_writes_the_text_that_ours_writes(tmp_path, kind):
    pytest.importorskip("xllamacpp")
    from llamacpp import Writer, write_gguf

    model = create_model("gpt-tiny", vocab_size=300, depth=2, pad_id=None, bos_id=None, eos_id=None).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    write_gguf(model, tmp_path / "model.gguf", kind)
    writer = Writer(tmp_path / "model.gguf", length=24)
    prompt = torch.randint(0, 300, (1, 8))
    [[text]] = generate(model, prompt, torch.ones_like(prompt).bool(), DecodingConfig(beams=1, extra_length=16))
    assert len(set(text.ids)) > 2
    for _ in range(2):  # a second text does not depend on the first
        assert writer.write(prompt[0].tolist(), 16) == text.ids


def test_onnx_runtime_gives_the_outputs_of_what_was_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from onnx_runtime import check_close, export, quantize, session

    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)).eval()
    inputs = torch.randn(4, 64)
    expected = model(inputs).detach()
    export(model, (inputs,), tmp_path / "float32.onnx")
    quantize(tmp_path / "float32.onnx", tmp_path / "int8.onnx")
    for precision in ("float32", "int8"):
        output = session(tmp_path / f"{precision}.onnx", 1)(inputs)
        check_close(output, expected, precision)
        with pytest.raises((AssertionError, ValueError)):
            check_close(output.flip(0), expected, precision)
    assert not torch.equal(output, expected)  # int8 is another model
