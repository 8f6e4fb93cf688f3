"""A model of ours beside ONNX Runtime with the same weights, in float32 and in int8.

The other library's model (timm's, transformers') is exported for the shape of the inputs, so that its graph is
optimised for it. Before the two are timed, the outputs of both are compared with that model's.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from timing import CORES, Aims, compare, packed, take_turns, threads
from torch import Tensor, nn

from glocal.export.onnx import quantize, trace


def session(path: Path, threads: int) -> Callable[..., Tensor]:
    """Return a function from a model's inputs to its first output."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # its threads would go on spinning through our turn, and ours stop for it (see timing.PAUSE)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in opened.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(opened.run(None, arrays)[0])

    return run


def compare_inference(
    what: str,
    aims: Aims,
    ours: nn.Module,
    theirs: nn.Module,
    inputs: Tensor,
    pairs: int,
) -> list[dict[str, object]]:
    """Return rows of inference in float32 and int8, on one thread and on all: ours, and theirs in ONNX Runtime."""
    rows = []
    with TemporaryDirectory() as folder, torch.inference_mode():
        files = {precision: Path(folder) / f"{precision}.onnx" for precision in ("float32", "int8")}
        expected = theirs.eval()(inputs)
        expected = getattr(expected, "logits", expected)
        trace(theirs, (inputs,), files["float32"])
        quantize(files["float32"], files["int8"], operations=None)
        for precision, file in files.items():
            model = packed(ours, precision)
            for name, count in {"1 thread": 1, "all threads": CORES}.items():
                with threads(count):
                    peer = session(file, count)
                    for output in (model(inputs), peer(inputs)):
                        check_close(output, expected, precision)
                    times = take_turns(partial(model, inputs), partial(peer, inputs), pairs)
                row = f"{what}, {name}, {precision}"
                rows.append(compare(aims, row, f"ONNX Runtime {precision}", "ms", *times))
    return rows


def check_close(output: Tensor, expected: Tensor, precision: str) -> None:
    """Raise where an output is not the model's: by more than 1e-4 in float32, or another direction in int8."""
    if precision == "float32":
        torch.testing.assert_close(output, expected, atol=1e-4, rtol=0)
    elif (cosine := torch.cosine_similarity(output.flatten(), expected.flatten(), dim=0).item()) < 0.99:
        raise ValueError(f"outputs in {precision} have a cosine of {cosine:.3f} with those in float32, under 0.99")
