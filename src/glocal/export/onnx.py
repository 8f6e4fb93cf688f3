"""ONNX: graphs that ONNX Runtime and others compute, each checked against the model before it is kept.

model.onnx            inputs → logits, for any batch and any length
step.onnx             with `cache`: one more token, given keys and values of those before it
encoder.onnx          with `cache`, of a Transformer: a source → keys and values for the decoder
labels.json           names of the classes, in the order of the logits
preprocessing.json    how an image becomes pixel values
tokenizer.json        how a text becomes ids
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.export.format import Exported, Format, Settings
from glocal.export.onnx_graphs import (
    Graph,
    Inputs,
    bert_graph,
    classifier_graph,
    image_graph,
    transformer_graph,
)
from glocal.export.onnx_steps import decoder_step_graph, encoder_graph, gpt_graph, gpt_step_graph
from glocal.files import write_json
from glocal.layers.mixer import Mixer
from glocal.models import BERT, GPT, Baseline, Model, Transformer, ViT
from glocal.models.loading import bytes_of

MAX_BYTES = 1_900_000_000
"""Bytes of the weights that one file holds; protobuf ends at 2 GiB, and larger ones lie beside it."""
TOLERANCE = 1e-4
"""How far an output in float32 may be from ours, in shares of the largest one, or of 1."""
ALIKE = 0.95
"""Cosine that the outputs in int8 must have with ours."""
TRACED = 3, 6
"""Batch and tokens of the example that is traced."""
CHECKED = (1, 4), (4, 9)
"""Batches and tokens that are compared."""
PRODUCTS = ("MatMul", "Gemm")
"""Operations whose weights become integers; the rest stays in float32."""


def refusal(exported: Exported) -> str | None:
    """Return why there is no graph of a model."""
    if isinstance(exported.model, ViT | Baseline | BERT | GPT | Transformer):
        return None
    return (
        f"a {exported.model.family} reads its texts by their lengths, which a graph has no operation for; there are "
        "graphs of vit, glit, timm, bert, gpt and transformer"
    )


def graphs_of(model: Model, cache: bool) -> list[Graph]:
    """Return the graphs of a model: all of it, and with `cache` what generates token by token.

    Raises GlocalError for `cache` and a decoder with local heads, which keep more than keys and values.
    """
    if cache and any(mixer.local_heads for mixer in model.modules() if isinstance(mixer, Mixer)):
        raise GlocalError("a graph of a step keeps keys and values, and this model has local heads; leave --cache out")
    if isinstance(model, ViT | Baseline):
        return [image_graph(model)]
    if isinstance(model, BERT):
        return [bert_graph(model)]
    if isinstance(model, GPT) and model.config.head == "classification":
        return [classifier_graph(model)]
    if isinstance(model, GPT):
        return [gpt_graph(model, cache), *([gpt_step_graph(model)] if cache else [])]
    assert isinstance(model, Transformer)
    return [transformer_graph(model), *([encoder_graph(model), decoder_step_graph(model)] if cache else [])]


def write(exported: Exported, folder: Path, settings: Settings) -> None:
    """Write the graphs of a model, and what belongs to its inputs and outputs.

    Raises GlocalError if the outputs in ONNX Runtime are not ours.
    """
    with torch.random.fork_rng(devices=[]):  # examples are drawn, and the caller's random numbers stay as they are
        torch.manual_seed(0)
        for graph in graphs_of(exported.model, settings.cache):
            file = folder / f"{graph.name}.onnx"
            if settings.precision == "int8":
                write_integers(graph, file)
            else:
                write_graph(graph, file)
                verify(graph, file)
    if exported.model.labels:
        write_json(folder / "labels.json", exported.model.labels)
    if exported.model.preprocessing:
        write_json(folder / "preprocessing.json", exported.model.preprocessing)
    if exported.tokenizer is not None:
        exported.tokenizer.save(folder)


def write_graph(graph: Graph, file: Path) -> None:
    """Write a graph by torch's exporter, in the opset that it recommends."""
    batch, tokens = TRACED
    trace(
        graph.module,
        graph.example(batch, min(tokens, graph.longest)),
        file,
        input_names=graph.inputs,
        output_names=graph.outputs,
        dynamic_shapes=graph.axes,
        external_data=bytes_of(graph.module.parameters()) > MAX_BYTES,
    )


def write_integers(graph: Graph, file: Path) -> None:
    """Write the int8 form of a graph."""
    with TemporaryDirectory() as folder:
        floats = Path(folder) / file.name
        write_graph(graph, floats)
        verify(graph, floats)
        quantize(floats, file)
    verify(graph, file, integers=True)


def trace(module: nn.Module, inputs: Inputs | tuple[Tensor, ...], file: Path, **options: Any) -> None:
    """Write a module as ONNX, given inputs by name or by place; torch.onnx.export takes the `options`."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, None)
    with quiet(), torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(module, args, str(file), kwargs=kwargs, dynamo=True, verbose=False, **options)


def quantize(source: Path, target: Path, operations: Sequence[str] | None = PRODUCTS) -> None:
    """Write the int8 form of an ONNX file: weights by output channel, activations as they come.

    Only weights of these operations become integers; without any named, of all that ONNX Runtime can compute so.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = None if operations is None else list(operations)
    with quiet():
        quantize_dynamic(source, target, op_types_to_quantize=kinds, per_channel=True, weight_type=QuantType.QInt8)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what the exporters print of their own steps."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def verify(graph: Graph, file: Path, integers: bool = False) -> None:
    """Compare a file with the model, for other batches and lengths than it was traced with.

    Raises GlocalError if an output in float32 is off by more than 1e-4, or one in int8 points elsewhere.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for batch, tokens in CHECKED:
        inputs = graph.example(batch, min(tokens, graph.longest))
        arrays = dict(zip(graph.inputs, map(Tensor.numpy, flatten(inputs)), strict=True))
        given = {name: array for name, array in arrays.items() if name in {one.name for one in session.get_inputs()}}
        with torch.inference_mode():
            expected = graph.module(**inputs)
        expected = (expected,) if isinstance(expected, Tensor) else expected
        for name, output, ours in zip(graph.outputs, session.run(None, given), expected, strict=True):
            check_close(f"{name} of {file.name}", output, ours.numpy(), integers)


def flatten(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of a graph's inputs, in their order."""
    return [one for value in inputs.values() for one in (value if isinstance(value, list) else [value])]


def check_close(name: str, output: np.ndarray, ours: np.ndarray, integers: bool) -> None:
    """Raise GlocalError if an output is not ours."""
    if output.shape != ours.shape:
        raise GlocalError(f"{name} has the shape {output.shape} in ONNX Runtime, and {ours.shape} here: not exported")
    scale = max(1.0, float(np.abs(ours).max()))
    error = float(np.abs(output - ours).max()) / scale
    if not integers and not error <= TOLERANCE:
        raise GlocalError(
            f"{name} is off by {error:.1g} of its size in ONNX Runtime, more than {TOLERANCE:g}: not exported"
        )
    norms = float(np.linalg.norm(output) * np.linalg.norm(ours))
    cosine = float((output * ours).sum()) / norms if norms else 1.0
    if integers and not cosine >= ALIKE:
        raise GlocalError(
            f"{name} has a cosine of {cosine:.3f} with ours in int8, less than {ALIKE}: this model loses too much; "
            "export it in float32"
        )


def usage(exported: Exported) -> str:
    """Return the lines that run the graph."""
    model = exported.model
    names = graphs_of(model, cache=False)[0].inputs
    imports = ["import numpy as np", "import onnxruntime"]
    if isinstance(model, ViT | Baseline):
        channels, (height, width) = model.config.in_chans, model.config.image_size
        lines = [
            f"pixels = np.zeros((1, {channels}, {height}, {width}), np.float32)  # made as preprocessing.json says",
            'inputs = {"pixel_values": pixels}',
        ]
    else:
        imports.append("from tokenizers import Tokenizer")
        begin = getattr(model.config, "bos_id", None)
        given = {
            "input_ids": "text.ids",
            "attention_mask": "text.attention_mask",
            "token_type_ids": "text.type_ids",
            "decoder_input_ids": f"[{begin}]",
        }
        fields = ", ".join(f'"{name}": np.array([{given[name]}])' for name in names)
        lines = [
            'text = Tokenizer.from_file("FOLDER/tokenizer.json").encode("A text.")',
            f"inputs = {{{fields}}}",
        ]
    opening = 'session = onnxruntime.InferenceSession("FOLDER/model.onnx")'
    return "\n".join([*imports, "", opening, *lines, "outputs = session.run(None, inputs)"])


FORMAT = Format(
    name="onnx",
    reader="ONNX Runtime",
    refusal=refusal,
    write=write,
    usage=usage,
    library="onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
    precisions=("float32", "int8"),
    cached=("gpt", "transformer"),
)
