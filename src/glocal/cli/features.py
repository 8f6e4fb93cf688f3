"""`glocal features`"""

import argparse
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glocal.cli.arguments import announce
from glocal.cli.predict import join, lines
from glocal.errors import GlocalError

if TYPE_CHECKING:
    from glocal.tasks import Predictor
    from glocal.tasks.feature_extraction import Chunk, Pooling

CHUNK = 1024
"""Inputs that are held in memory at a time."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="as for glocal predict: image files, folders of them, or patterns; or texts, files with one a line, "
        "tables, or - for standard input; a blank line has a row of NaN (.npy) or null (.parquet)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="OUT.npy: float32, a row an input, with the inputs in OUT.inputs.txt; or OUT.parquet: input, features",
    )
    parser.add_argument(
        "--pooling",
        choices=["cls", "mean", "last"],
        help="the class token, the mean over the tokens, or the last token (default: cls where the model has a class "
        "token, last for a decoder, else mean)",
    )
    parser.add_argument("--normalise", action="store_true", help="divide each vector by its length")
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bf16", "fp16", "int8"],
        default="auto",
        help="of the weights; auto is the faster one of float32 and fp16 (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write one vector for each image or text, for search, clustering or another classifier."""
    announce(f"glocal features {args.model}", aside=True)
    from glocal.data.progress import progress
    from glocal.tasks import ImagePredictor, load
    from glocal.tasks.feature_extraction import choose_pooling, output_files, write_features
    from glocal.tasks.image_predictor import find_images

    check_inputs(args.inputs, output_files(args.output))
    predictor = load(args.model, precision=args.precision)
    if args.precision == "auto" and sys.stderr.isatty():
        print(f"weights in {predictor.precision}", file=sys.stderr)
    pooling = choose_pooling(predictor.model, args.pooling)
    if isinstance(predictor, ImagePredictor):
        images = find_images(args.inputs)
        inputs, total = iter(images), math.ceil(len(images) / CHUNK)
    else:
        inputs, total = lines(args.inputs, predictor), None
    chunks = extract(predictor, inputs, pooling, args.normalise)
    written = write_features(args.output, progress(chunks, "Extracting features", total))
    print(f"{written.inputs} inputs, {written.dim} numbers each, pooling {pooling}: {args.output}")


def extract(predictor: "Predictor", inputs: Iterable[Any], pooling: "Pooling", normalise: bool) -> Iterator["Chunk"]:
    """Yield the features of inputs, some at a time; None is a blank input."""
    from glocal.data.text_sources import reading
    from glocal.tasks.feature_extraction import Chunk

    inputs = iter(inputs)
    with reading("an input"):  # inside of what writes the output, an error of reading must not pass for one of writing
        while some := list(islice(inputs, CHUNK)):
            found = iter(predictor.features([one for one in some if one is not None], pooling, normalise))
            yield Chunk([join(one) for one in some], [None if one is None else next(found) for one in some])


def check_inputs(inputs: Sequence[str], outputs: Sequence[Path]) -> None:
    """Raise GlocalError where an output would replace an input."""
    for output in outputs:
        for given in inputs:
            if output.exists() and os.path.exists(given) and output.samefile(given):  # noqa: PTH110  # see find_file
                raise GlocalError(f"{given} is an input, and -o would replace it; give another name")
