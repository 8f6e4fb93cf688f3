"""The command line: each command is a few lines over what Python users call.

torch takes seconds to import, so a command imports what it needs when it runs, and `glocal --help` needs nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glocal import __version__
from glocal.errors import GlocalError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from glocal.inference import DecodingConfig, Predictor, TextGenerator, Translator
    from glocal.inference.explain import TokenAttention
    from glocal.inference.texts import TextPredictor


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Bad input ends in one line and exit code 2, an interrupted run in 130."""
    parser = build_parser()
    args, fields = parser.parse_known_args(argv)
    args.fields = fields
    if args.fields and args.run not in (train, search, predict):
        parser.error(f"unrecognized arguments: {' '.join(args.fields)}")
    try:
        args.run(args)
    except GlocalError as error:
        if args.debug:
            raise
        print(f"glocal: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"glocal: {stop or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def train(args: argparse.Namespace) -> None:
    """Train or fine-tune by a recipe, or continue a run that was stopped."""
    from glocal import experiment
    from glocal.recipes import load_recipe, recipe_parser

    if args.recipe and args.fields == ["--fields"]:
        recipe_parser(type(load_recipe(args.recipe))).print_help()
    elif args.resume:
        if args.recipe or args.fields:
            raise GlocalError(
                f"--resume {args.resume} continues a run as it was begun; give it no recipe and no fields"
            )
        print(experiment.resume(args.resume))
    elif args.recipe:
        shorthands = {"--model.from": args.start, "--data.source": args.data}
        fields = [f"{name}={value}" for name, value in shorthands.items() if value is not None]
        print(experiment.train(args.recipe, [*fields, *args.fields]))
    else:
        raise GlocalError("which recipe? `glocal list recipes` names them; a YAML file of yours is one too")


def search(args: argparse.Namespace) -> None:
    """Search an architecture by a recipe and train its finalists; or continue a search that was stopped."""
    from glocal import experiment
    from glocal.training import RunFolder

    if args.resume and (args.recipe or args.fields):
        raise GlocalError(f"--resume {args.resume} continues a search as it was begun; give it no recipe and no fields")
    if not (args.resume or args.recipe):
        raise GlocalError("which recipe? `glocal list recipes` names them; a search has `glit-` in its name")
    fields = [f"--data.source={args.data}"] if args.data else []
    run = experiment.search(args.resume or args.recipe, [*fields, *args.fields])
    report = RunFolder(run).read_report()
    print(*report["reading"]["sentences"], sep="\n")
    print(
        f"found: {report['found']['cost']:,.0f} {report['found']['unit']}, "
        f"top1 {report['found']['val_top1']:.2%} on validation after training: {run / 'arch.json'}"
    )
    print(run)


def test(args: argparse.Namespace) -> None:
    """Measure a run on its test split, or on other data of the same kind."""
    from glocal import experiment

    experiment.test(args.model, args.data)
    print(*experiment.summary(args.model), sep="\n")


def predict(args: argparse.Namespace) -> None:
    """Print labels of images or texts, translations, texts that go on, masked words, entities or answers."""
    from glocal.inference import Predictor, TextGenerator, find_images, load
    from glocal.inference.printing import FORMS
    from glocal.recipes import read_decoding

    model = load(args.model, precision=args.precision)
    form = FORMS[type(model)]
    if args.fields and form.option != "decoding":
        raise GlocalError(f"{' '.join(args.fields)}: only what writes texts is asked so")
    decoding = read_decoding(args.fields)
    watched = sys.stdout.isatty() and not args.json and decoding.width(continues=True) == 1
    if isinstance(model, TextGenerator) and watched:
        stream(model, args.inputs, decoding)
        return
    values: dict[str, Any] = {"top": args.top, "decoding": decoding}
    options = {form.option: values[form.option]} if form.option else {}
    inputs: Iterator[Any] = iter(find_images(args.inputs) if isinstance(model, Predictor) else lines(args.inputs))
    size = 1 if sys.stdin.isatty() and "-" in args.inputs else 1024  # who types a line waits for its answer
    while chunk := list(islice(inputs, size)):
        answers = model.predict([form.read(given) for given in chunk], **options)
        for given, answer in zip(map(str, chunk), answers, strict=True):
            record = {"input": given, form.key: form.record(answer)}
            print(json.dumps(record, ensure_ascii=False) if args.json else form.line(given, answer), flush=True)


def lines(inputs: Sequence[str]) -> Iterator[str]:
    """Texts as they were given, the lines of files, and, for -, those of standard input as they come."""
    for given in inputs:
        if given == "-":
            yield from (line.rstrip("\n") for line in sys.stdin)
        elif os.path.isfile(given):  # noqa: PTH113  # pathlib's raises where a text is too long to be a name
            yield from Path(given).read_text(encoding="utf-8").splitlines()
        else:
            yield given


def stream(model: "TextGenerator", inputs: Sequence[str], decoding: "DecodingConfig") -> None:
    """Print each prompt, and what goes on from it as it is written."""
    for prompt in lines(inputs):
        print(prompt, end="", flush=True)
        for piece in model.stream(prompt, decoding):
            print(piece, end="", flush=True)
        print()


def explain(args: argparse.Namespace) -> None:
    """Draw where a model looks: over an image, between the words of a text, or from a translation's to its source's."""
    from glocal.inference import Predictor, Translator, load

    model = load(args.model)
    if isinstance(model, Predictor):
        figure = explain_image(model, args)
    elif isinstance(model, Translator):
        figure = explain_translation(model, args)
    else:
        figure = explain_text(model, args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output)
    print(args.output)


def explain_image(model: "Predictor", args: argparse.Namespace) -> "Figure":
    """Draw attention rollout over the image, or a layer's heads, or one head."""
    from glocal.inference import figures
    from glocal.inference.explain import explain

    refuse(args, "sight", "patterns")
    explanation = explain(model, args.input)
    image, heads = explanation.image, explanation.heads
    check_place(args, *heads.shape[:2])
    label, probability = explanation.answer[0]
    if args.head is not None:
        layer = len(heads) - 1 if args.layer is None else args.layer
        return figures.attention_map(image, heads[layer, args.head], f"{label} {probability:.0%}")
    if args.layer is not None or args.heads:
        layers = range(len(heads)) if args.layer is None else [args.layer]
        return figures.attention_heads(image, heads[list(layers)], layers)
    return figures.attention_map(image, explanation.rollout, f"{label} {probability:.0%}")


def explain_translation(model: "Translator", args: argparse.Namespace) -> "Figure":
    """Draw the attention from the translation's words to the sentence's, or what else --sight asks for."""
    from glocal.inference.explain import explain_translation

    refuse(args, "patterns")
    seen, sight = explain_translation(model, args.input).attention, args.sight or "cross"
    if sight not in seen:
        raise GlocalError(f"--sight {sight} was asked for; this model has {', '.join(seen)}")
    return draw_words(seen[sight], args)


def explain_text(model: "TextPredictor", args: argparse.Namespace) -> "Figure":
    """Draw the attention between the tokens of a text, or of a pair; with --patterns, what heads do over some texts."""
    from glocal.inference.explain import explain_text
    from glocal.inference.printing import FORMS

    refuse(args, "sight")
    if args.patterns:
        return explain_patterns(model, args)
    return draw_words(explain_text(model, FORMS[type(model)].read(args.input)), args)


def draw_words(seen: "TokenAttention", args: argparse.Namespace) -> "Figure":
    """Draw the attention of a layer, the last by default: all its heads, one of them, or their mean."""
    from glocal.inference import figures

    check_place(args, *seen.weights.shape[:2])
    layer = len(seen.weights) - 1 if args.layer is None else args.layer
    weights = seen.weights[layer]
    if args.head is not None:
        weights, titles = weights[[args.head]], [f"layer {layer}, head {args.head}"]
    elif args.heads:
        titles = [f"head {head}" for head in range(len(weights))]
    else:
        weights, titles = weights.mean(dim=0, keepdim=True), [f"layer {layer}, mean of its heads"]
    return figures.attention_words(weights, seen.queries, seen.keys, titles)


def explain_patterns(model: "TextPredictor", args: argparse.Namespace) -> "Figure":
    """Print which heads look most at the previous token, the next, ...; and draw how much all heads do."""
    from rich.console import Console
    from rich.table import Column, Table

    from glocal.inference import figures
    from glocal.inference.explain import head_patterns, strongest
    from glocal.inference.printing import FORMS

    if args.layer is not None:
        raise GlocalError(f"--patterns shows all layers, and --layer {args.layer} was asked for; leave one of them out")
    patterns = head_patterns(model, [FORMS[type(model)].read(line) for line in lines([args.input]) if line.strip()])

    def column(values: "Tensor", form: str) -> list[str]:
        return [f"{layer}.{head} {value:{form}}" for layer, head, value in strongest(values)]

    columns = {name: column(share, "4.0%") for name, share in patterns.shares.items()}
    columns["entropy"] = column(patterns.entropy, "4.1f")
    headers = [Column(name, justify="right") for name in columns]
    table = Table(*headers, title="the heads that do most of each: layer.head", title_justify="left", box=None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    Console().print(table)
    return figures.head_patterns(patterns.shares, patterns.entropy)


def refuse(args: argparse.Namespace, *options: str) -> None:
    """Raise GlocalError where one of these options was given, of which the model has nothing to show."""
    for option in options:
        if getattr(args, option):
            raise GlocalError(f"--{option} asks nothing of {args.model}; `glocal explain --help` says of what it does")


def check_place(args: argparse.Namespace, layers: int, heads: int) -> None:
    """Raise GlocalError where the model has no such layer or head."""
    for value, count, what in ((args.layer, layers, "layer"), (args.head, heads, "head")):
        if value is not None and not 0 <= value < count:
            raise GlocalError(f"--{what} {value} was asked for; this model has {count}: 0 to {count - 1}")


def info(args: argparse.Namespace) -> None:
    """Print parameters and MACs, block by block, at a named size; a GLiT's also as its authors count them."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from glocal.inference import count
    from glocal.models import GLiT, create_model, load_model

    fields = {} if args.image_size is None else {"image_size": args.image_size}
    if Path(args.model).exists():
        model = load_model(args.model, **fields)
    else:
        with torch.device("meta"):  # weights without data: nothing is computed, so no size is too large
            model = create_model(args.model, **fields)
    size = getattr(model.config, "image_size", args.tokens)
    cost = count(model, size, getattr(model.config, "in_chans", 3))
    table = Table(box=None, title=f"{args.model}, {cost.example}", title_justify="left")
    for name in ("part", "", "parameters", "MACs"):
        table.add_column(name, justify="right" if name in ("parameters", "MACs") else "left")
    for row in cost.rows:
        table.add_row(row.name, row.part, f"{row.parameters:,}", f"{row.macs:,}")
    table.add_row("all", "", f"{cost.parameters:,}", f"{cost.macs:,}", style="bold")
    if isinstance(model, GLiT):
        table.add_row("by the authors' formula", "", "", f"{cost.macs - model.unpublished_macs():,}")
    Console().print(table)


def list_(args: argparse.Namespace) -> None:
    """Name the models and the recipes."""
    if args.what in (None, "models"):
        from glocal.models import list_models

        print("\n".join(list_models()), "timm:NAME, any network of timm's", sep="\n")
    if args.what in (None, "recipes"):
        from glocal.recipes import list_recipes

        for name, headline in list_recipes().items():
            print(f"{name:22}{headline}")


def build_parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    parser = argparse.ArgumentParser(prog="glocal", description="The Transformer family in one house.")
    parser.add_argument("--version", action="version", version=f"glocal {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], usage: str | None = None
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, parents=[common], help=run.__doc__, description=run.__doc__, usage=usage, allow_abbrev=False
        )
        added.set_defaults(run=run)
        return added

    one = command("train", train, "glocal train RECIPE [--from MODEL] [--data SOURCE] [--SECTION.FIELD VALUE ...]")
    one.add_argument("recipe", nargs="?", help="a shipped recipe's name, or a YAML file")
    one.add_argument("--from", dest="start", metavar="MODEL", help="fine-tune a run, a model's folder or a hub id")
    one.add_argument("--data", metavar="SOURCE", help="short for --data.source")
    one.add_argument("--resume", metavar="RUN", help="continue a run to the weights it would have reached unstopped")
    one.epilog = (
        "Any field of a recipe is set by its dotted name (--train.epochs 3); `glocal train RECIPE --fields` lists them."
    )

    one = command("search", search, "glocal search RECIPE [--data SOURCE] [--SECTION.FIELD VALUE ...]")
    one.add_argument("recipe", nargs="?", help="a shipped recipe's name, or a YAML file, with a section `search`")
    one.add_argument("--data", metavar="SOURCE", help="short for --data.source")
    one.add_argument("--resume", metavar="RUN", help="continue a search that was stopped; what was judged stays judged")

    one = command("test", test)
    one.add_argument("model", metavar="RUN", help="a run's folder")
    one.add_argument("--data", metavar="SOURCE", help="other data than the run's own")

    one = command("predict", predict)
    one.add_argument("model", metavar="RUN", help="a run or a model's folder")
    one.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image files, folders of them, or patterns; or texts, files with one a line, or - for standard input; "
        "two texts, or a question and the text that answers it, with a tab between them",
    )
    one.add_argument("--top", type=int, default=5, help="labels, words or answers an input (default 5)")
    one.add_argument("--json", action="store_true", help="print one JSON object an input")
    one.add_argument(
        "--precision", choices=["float32", "bf16"], default="float32", help="of the weights that read texts"
    )
    one.epilog = (
        "How a text is looked for is set as in a recipe: --decoding.beams 8, --decoding.nbest 3, "
        "--decoding.extra_length 200, --decoding.temperature 0.7, --decoding.top_k 40, --decoding.stop '[\".\"]'."
    )

    one = command("explain", explain)
    one.add_argument("model", metavar="RUN", help="a run or a model's folder")
    one.add_argument("input", metavar="INPUT", help="an image file, or a text as `glocal predict` takes it")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="FIGURE", help="a .png, .svg or .pdf file")
    one.add_argument("--layer", type=int, help="the heads of this layer, from 0")
    which = one.add_mutually_exclusive_group()
    which.add_argument("--head", type=int, help="this head alone, of --layer or of the last layer")
    which.add_argument("--heads", action="store_true", help="all heads: of all layers over an image, of one over words")
    which.add_argument(
        "--patterns",
        action="store_true",
        help="of BERT or GPT: which heads look at the previous token, the next, ...; INPUT may be a file of texts",
    )
    one.add_argument(
        "--sight",
        choices=["cross", "encoder", "decoder"],
        help="of a translation: words to source (default), source to source, words to words",
    )

    one = command("info", info)
    one.add_argument("model", metavar="MODEL", help="a model's name, a run or a folder")
    one.add_argument("--image-size", type=int, help="side in pixels, where it is not the model's own")
    one.add_argument("--tokens", type=int, default=25, help="of a text; also of its translation (default 25)")

    one = command("list", list_)
    one.add_argument("what", nargs="?", choices=["models", "recipes"], help="only these")
    return parser
