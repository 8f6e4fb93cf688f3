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
    from glocal.tasks import AnyPredictor, ImagePredictor, SingleStackTextPredictor, Translator

FORMATS = (".png", ".svg", ".pdf", ".jpg", ".webp")
PAGE = ".html"
"""What the name of a page ends in."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "input", metavar="INPUT", help="an image file, a text, or a file with one text, as for `glocal predict`"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=picture,
        required=True,
        metavar="FIGURE",
        help=f"{' or '.join(FORMATS)}, or {PAGE}: a page with all layers and heads",
    )
    parser.add_argument("--layer", type=int, help="number of a layer, from 0")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--head", type=int, help="one head of --layer, by default of the last layer")
    which.add_argument(
        "--heads", action="store_true", help="all heads: of all layers for an image, of one layer for a text"
    )
    which.add_argument(
        "--patterns",
        action="store_true",
        help="for BERT and GPT: which heads attend to the previous token, the next, ...; INPUT may be a file of texts",
    )
    parser.add_argument(
        "--attention",
        choices=["cross", "encoder", "decoder"],
        help="for a translation: cross-attention (default), or self-attention of the encoder or the decoder",
    )


def picture(path: str) -> Path:
    """Take a path whose ending names a kind of picture, or a page."""
    if not path.lower().endswith((*FORMATS, PAGE)):
        raise argparse.ArgumentTypeError(f"{path} names no picture; expected a file {' or '.join((*FORMATS, PAGE))}")
    return Path(path)


def run(args: argparse.Namespace) -> None:
    """Draw a model's attention over an image, a text or a translation, or write a page with all layers and heads."""
    announce(f"glocal explain {args.model}", to_terminal=True)
    from glocal.tasks import ImagePredictor, SingleStackTextPredictor, Translator, load

    model = load(args.model)
    if args.output.suffix.lower() == PAGE:
        print(write_page(model, args))
        return
    if isinstance(model, ImagePredictor):
        figure = explain_image(model, args)
    elif isinstance(model, Translator):
        figure = explain_translation(model, args)
    else:
        assert isinstance(model, SingleStackTextPredictor)
        figure = explain_text(model, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)
    print(args.output)


def write_page(model: "AnyPredictor", args: argparse.Namespace) -> Path:
    """Write a page that explains the model's result for an input."""
    from glocal import page
    from glocal.tasks import ImagePredictor

    for option in ("layer", "head", "heads", "patterns", "attention"):
        if getattr(args, option) not in (None, False):
            raise GlocalError(f"--{option} chooses what a figure shows, and {args.output.name} shows all; leave it out")
    image = isinstance(model, ImagePredictor)
    return page.write_page(model, args.input if image else one_text(model, args.input), args.output)


def explain_image(model: "ImagePredictor[object]", args: argparse.Namespace) -> "Figure":
    """Draw attention rollout over the image, or a layer's heads, or one head."""
    from glocal.reports import figures

    refuse(args, "attention", "patterns")
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
    """Draw the attention that --attention names, by default from words of the translation to those of the source."""
    refuse(args, "patterns")
    attention, kind = model.explain(one_text(model, args.input)).attention, args.attention or "cross"
    if kind not in attention:
        raise GlocalError(f"--attention {kind}; this model has {', '.join(attention)}")
    return draw_words(attention[kind], args)


def explain_text(model: "SingleStackTextPredictor[str, object]", args: argparse.Namespace) -> "Figure":
    """Draw the attention between the tokens of a text or a pair; with --patterns, the patterns of heads over texts."""
    refuse(args, "attention")
    if args.patterns:
        return explain_patterns(model, args)
    return draw_words(model.explain(one_text(model, args.input)), args)


def read_texts(model: "AnyPredictor", given: str) -> Iterator["Text"]:
    """Read the texts that an input stands for as `glocal predict` does, blank lines left out."""
    return (text for text in lines([given], model) if text is not None)


def one_text(model: "AnyPredictor", given: str) -> Any:
    """Return the text that an input stands for. Raises GlocalError if a file holds none, or several."""
    texts = list(islice(read_texts(model, given), 2))
    if len(texts) != 1:
        raise GlocalError(f"{given} holds {'several texts' if texts else 'no text'}; expected one to draw")
    return texts[0]


def draw_words(attention: "TokenAttention", args: argparse.Namespace) -> "Figure":
    """Draw the attention of a layer, the last by default: all its heads, one of them, or their mean."""
    from glocal.reports import figures

    check_place(args, *attention.weights.shape[:2])
    layer = len(attention.weights) - 1 if args.layer is None else args.layer
    weights = attention.weights[layer]
    global_heads = len(weights) - (attention.local_heads[layer] if attention.local_heads else 0)
    names = [f"head {head}" if head < global_heads else f"head {head}, local" for head in range(len(weights))]
    if args.head is not None:
        weights, titles = weights[[args.head]], [f"layer {layer}, {names[args.head]}"]
    elif args.heads:
        titles = names
    else:
        weights, titles = weights.mean(dim=0, keepdim=True), [f"layer {layer}, mean of its heads"]
    return figures.attention_words(weights, attention.queries, attention.keys, titles)


def explain_patterns(model: "SingleStackTextPredictor[str, object]", args: argparse.Namespace) -> "Figure":
    """Print the heads that attend most to the previous token, the next, ...; draw how much every head does."""
    from rich.console import Console
    from rich.table import Column, Table

    from glocal.explain import head_patterns, strongest
    from glocal.reports import figures

    if args.layer is not None:
        raise GlocalError(f"--patterns shows all layers, and --layer {args.layer} one; leave one of the options out")
    patterns = head_patterns(model, list(read_texts(model, args.input)))

    def column(values: "Tensor", form: str) -> list[str]:
        return [f"{layer}.{head} {value:{form}}" for layer, head, value in strongest(values)]

    columns = {name: column(share, "4.0%") for name, share in patterns.shares.items()}
    columns["entropy"] = column(patterns.entropy, "4.1f")
    headers = [Column(name, justify="right") for name in columns]
    table = Table(*headers, title="the heads that attend most: layer.head", title_justify="left", box=None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    Console(markup=False).print(table)
    return figures.head_patterns(patterns.shares, patterns.entropy)


def refuse(args: argparse.Namespace, *options: str) -> None:
    """Raise GlocalError if one of these options was given, which do not apply to the model."""
    for option in options:
        if getattr(args, option):
            raise GlocalError(
                f"--{option} does not apply to {args.model}; `glocal explain --help` says what it applies to"
            )


def check_place(args: argparse.Namespace, layers: int, heads: int) -> None:
    """Raise GlocalError if the model has no such layer or head."""
    for value, count, what in ((args.layer, layers, "layer"), (args.head, heads, "head")):
        if value is not None and not 0 <= value < count:
            raise GlocalError(f"--{what} {value}; this model has {what}s 0 to {count - 1}")
