"""`glocal explain`"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glocal.cli.arguments import announce
from glocal.cli.predict import lines
from glocal.errors import GlocalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from glocal.explain import TokenAttention
    from glocal.explain.texts import Text
    from glocal.tasks import AnyPredictor, ImagePredictor, TextReader, Translator

FORMATS = (".png", ".svg", ".pdf", ".jpg", ".webp")
PAGE = ".html"
"""What the name of a page ends in."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "input", metavar="INPUT", help="an image file, or a text, or a file of one, as for `glocal predict`"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=picture,
        required=True,
        metavar="FIGURE",
        help=f"{' or '.join(FORMATS)}, or {PAGE}: a page with all layers and heads",
    )
    parser.add_argument("--layer", type=int, help="the heads of this layer, from 0")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--head", type=int, help="this head alone, of --layer or of the last layer")
    which.add_argument("--heads", action="store_true", help="all heads: of all layers over an image, of one over words")
    which.add_argument(
        "--patterns",
        action="store_true",
        help="of BERT or GPT: which heads look at the previous token, the next, ...; INPUT may be a file of texts",
    )
    parser.add_argument(
        "--sight",
        choices=["cross", "encoder", "decoder"],
        help="of a translation: words to source (default), source to source, words to words",
    )


def picture(path: str) -> Path:
    """Take a path whose ending names a kind of picture, or a page."""
    if not path.lower().endswith((*FORMATS, PAGE)):
        raise argparse.ArgumentTypeError(f"{path} names no picture; expected a file {' or '.join((*FORMATS, PAGE))}")
    return Path(path)


def run(args: argparse.Namespace) -> None:
    """Draw where a model looks in an image, a text or a sentence that it translates, or write a page that shows all."""
    announce(f"glocal explain {args.model}", to_terminal=True)
    from glocal.tasks import ImagePredictor, TextReader, Translator, load

    model = load(args.model)
    if args.output.suffix.lower() == PAGE:
        print(write_page(model, args))
        return
    if isinstance(model, ImagePredictor):
        figure = explain_image(model, args)
    elif isinstance(model, Translator):
        figure = explain_translation(model, args)
    else:
        assert isinstance(model, TextReader)
        figure = explain_text(model, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)
    print(args.output)


def write_page(model: "AnyPredictor", args: argparse.Namespace) -> Path:
    """Write all that there is to see of an input as a page."""
    from glocal import page
    from glocal.tasks import ImagePredictor

    for option in ("layer", "head", "heads", "patterns", "sight"):
        if getattr(args, option) not in (None, False):
            raise GlocalError(f"--{option} chooses what a figure shows, and {args.output.name} shows all; leave it out")
    image = isinstance(model, ImagePredictor)
    return page.write_page(model, args.input if image else one_text(model, args.input), args.output)


def explain_image(model: "ImagePredictor[object]", args: argparse.Namespace) -> "Figure":
    """Draw attention rollout over the image, or a layer's heads, or one head."""
    from glocal.reports import figures

    refuse(args, "sight", "patterns")
    explanation = model.explain(args.input)
    image, heads = explanation.image, explanation.heads
    check_place(args, *heads.shape[:2])
    label = "{} {:.0%}".format(*explanation.probabilities[0]) if explanation.probabilities else ""
    if args.head is not None:
        layer = len(heads) - 1 if args.layer is None else args.layer
        return figures.attention_map(image, heads[layer, args.head], label, f"layer {layer}, head {args.head}")
    if args.layer is not None or args.heads:
        layers = range(len(heads)) if args.layer is None else [args.layer]
        local_heads = [explanation.local_heads[layer] for layer in layers]
        return figures.attention_heads(image, heads[list(layers)], layers, local_heads)
    return figures.attention_map(image, explanation.rollout, label, "rollout through all layers")


def explain_translation(model: "Translator", args: argparse.Namespace) -> "Figure":
    """Draw the attention from the translation's words to the sentence's, or what else --sight asks for."""
    refuse(args, "patterns")
    seen, sight = model.explain(one_text(model, args.input)).attention, args.sight or "cross"
    if sight not in seen:
        raise GlocalError(f"--sight {sight} was asked for; this model has {', '.join(seen)}")
    return draw_words(seen[sight], args)


def explain_text(model: "TextReader[str, object]", args: argparse.Namespace) -> "Figure":
    """Draw the attention between the tokens of a text, or of a pair; with --patterns, what heads do over some texts."""
    refuse(args, "sight")
    if args.patterns:
        return explain_patterns(model, args)
    return draw_words(model.explain(one_text(model, args.input)), args)


def read_texts(model: "AnyPredictor", given: str) -> Iterator["Text"]:
    """Read the texts that an input stands for as `glocal predict` does, blank lines left out."""
    return (text for text in lines([given], model) if text is not None)


def one_text(model: "AnyPredictor", given: str) -> Any:
    """Return the text that an input stands for. Raises GlocalError where a file holds none, or several."""
    texts = list(islice(read_texts(model, given), 2))
    if len(texts) != 1:
        raise GlocalError(f"{given} holds {'several texts' if texts else 'no text'}; expected one to draw")
    return texts[0]


def draw_words(seen: "TokenAttention", args: argparse.Namespace) -> "Figure":
    """Draw the attention of a layer, the last by default: all its heads, one of them, or their mean."""
    from glocal.reports import figures

    check_place(args, *seen.weights.shape[:2])
    layer = len(seen.weights) - 1 if args.layer is None else args.layer
    weights = seen.weights[layer]
    global_heads = len(weights) - (seen.local_heads[layer] if seen.local_heads else 0)
    names = [f"head {head}" if head < global_heads else f"head {head}, local" for head in range(len(weights))]
    if args.head is not None:
        weights, titles = weights[[args.head]], [f"layer {layer}, {names[args.head]}"]
    elif args.heads:
        titles = names
    else:
        weights, titles = weights.mean(dim=0, keepdim=True), [f"layer {layer}, mean of its heads"]
    return figures.attention_words(weights, seen.queries, seen.keys, titles)


def explain_patterns(model: "TextReader[str, object]", args: argparse.Namespace) -> "Figure":
    """Print which heads look most at the previous token, the next, ...; and draw how much all heads do."""
    from rich.console import Console
    from rich.table import Column, Table

    from glocal.explain import head_patterns, strongest
    from glocal.reports import figures

    if args.layer is not None:
        raise GlocalError(f"--patterns shows all layers, and --layer {args.layer} was asked for; leave one of them out")
    patterns = head_patterns(model, list(read_texts(model, args.input)))

    def column(values: "Tensor", form: str) -> list[str]:
        return [f"{layer}.{head} {value:{form}}" for layer, head, value in strongest(values)]

    columns = {name: column(share, "4.0%") for name, share in patterns.shares.items()}
    columns["entropy"] = column(patterns.entropy, "4.1f")
    headers = [Column(name, justify="right") for name in columns]
    table = Table(*headers, title="the heads that do most of each: layer.head", title_justify="left", box=None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    Console(markup=False).print(table)
    return figures.head_patterns(patterns.shares, patterns.entropy)


def refuse(args: argparse.Namespace, *options: str) -> None:
    """Raise GlocalError where one of these options was given, of which the model has nothing to show."""
    for option in options:
        if getattr(args, option):
            raise GlocalError(
                f"--{option} does not apply to {args.model}; `glocal explain --help` says what it applies to"
            )


def check_place(args: argparse.Namespace, layers: int, heads: int) -> None:
    """Raise GlocalError where the model has no such layer or head."""
    for value, count, what in ((args.layer, layers, "layer"), (args.head, heads, "head")):
        if value is not None and not 0 <= value < count:
            raise GlocalError(f"--{what} {value} was asked for; this model has {count}: 0 to {count - 1}")
