"""`glocal features`"""

import argparse
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from glocal.cli.arguments import add_precision, announce, load_predictor
from glocal.cli.predict import join, lines
from glocal.errors import GlocalError

if TYPE_CHECKING:
    from glocal.tasks import Predictor
    from glocal.tasks.feature_extraction import Chunk, Pooling

CHUNK = 1024
"""Inputs in memory at a time."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images or texts, as for `glocal predict`; a blank line gives a row of NaN (.npy) or null (.parquet)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="OUT.npy: float32, one row for each input, and the inputs in OUT.inputs.txt; or OUT.parquet with the "
        "columns input and features",
    )
    parser.add_argument(
        "--pooling",
        choices=["cls", "mean", "last"],
        help="the vector of an input: its class token, the mean over its tokens, or its last token (default: cls where "
        "the model has a class token, last for a decoder, mean for others)",
    )
    parser.add_argument("--normalise", action="store_true", help="divide each vector by its length")
    add_precision(parser)


def run(args: argparse.Namespace) -> None:
    """Write one vector for each image or text, for search, clustering or another classifier."""
    announce(f"glocal features {args.model}", to_terminal=True)
    from glocal.data.progress import progress
    from glocal.tasks import ImagePredictor
    from glocal.tasks.feature_extraction import choose_pooling, output_files, write_features
    from glocal.tasks.image_predictor import find_images

    check_inputs(args.inputs, output_files(args.output))
    predictor = load_predictor(args.model, args.precision)
    pooling = choose_pooling(predictor.model, args.pooling)
    if isinstance(predictor, ImagePredictor):
        images = find_images(args.inputs)
        inputs, total = iter(images), math.ceil(len(images) / CHUNK)
    else:
        inputs, total = lines(args.inputs, predictor), None
    chunks = extract(predictor, inputs, pooling, args.normalise)
    written = write_features(args.output, progress(chunks, "Extracting features", total))
    print(f"{written.inputs} inputs, {written.dim} numbers each, pooling {pooling}: {args.output}")


def extract(predictor: "Predictor", inputs: Iterable[object], pooling: "Pooling", normalise: bool) -> Iterator["Chunk"]:
    """Yield the features of the inputs, CHUNK inputs at a time; a blank input is None and has no features."""
    from glocal.data.text_sources import reading
    from glocal.tasks.feature_extraction import Chunk

    inputs = iter(inputs)
    with reading("an input"):  # an error of reading must not be reported as one of writing the output
        while some := list(islice(inputs, CHUNK)):
            found = iter(predictor.features([one for one in some if one is not None], pooling, normalise))
            yield Chunk([join(one) for one in some], [None if one is None else next(found) for one in some])


def check_inputs(inputs: Sequence[str], outputs: Sequence[Path]) -> None:
    """Raise GlocalError if an output would replace an input."""
    for output in outputs:
        for given in inputs:
            if output.exists() and os.path.exists(given) and output.samefile(given):  # noqa: PTH110  # see find_file
                raise GlocalError(f"{given} is an input, and -o would replace it; give another name")
