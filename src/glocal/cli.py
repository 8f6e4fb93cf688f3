"""The command line: each command is a few lines over what Python users call."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from glocal import __version__
from glocal.errors import GlocalError

# torch takes seconds to import, so a command imports what it needs when it runs; `glocal --help` needs nothing.


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Bad input ends in one line and exit code 2, an interrupted run in 130."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command is not train:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    try:
        args.command(args)
    except GlocalError as error:
        if args.debug:
            raise
        print(f"glocal: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("glocal: stopped", file=sys.stderr)
        sys.exit(130)


def train(args: argparse.Namespace) -> None:
    """Train or fine-tune by a recipe, or continue a run."""
    from glocal import experiment
    from glocal.recipes import recipe_parser

    if args.help_fields:
        recipe_parser().print_help()
    elif args.resume:
        if args.recipe or args.overrides:
            raise GlocalError(f"--resume {args.resume} continues a run as it was begun; give it no recipe and no fields")
        experiment.resume(args.resume)
    elif args.recipe:
        shorthands = {"--model.from": args.start, "--data.source": args.data}
        overrides = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
        experiment.train(args.recipe, [*overrides, *args.overrides])
    else:
        raise GlocalError("which recipe? `glocal list recipes` names them; a YAML file of yours is one too")


def test(args: argparse.Namespace) -> None:
    """Measure a run on its test split, or on other data with the same classes."""
    from glocal import experiment

    experiment.test(args.run, args.data)


def predict(args: argparse.Namespace) -> None:
    """Print labels with probabilities."""
    from glocal.inference import load

    predictor = load(args.run)
    for prediction in predictor.predict(args.inputs, top=args.top):
        if args.json:
            print(json.dumps(prediction))
        else:
            print(prediction)


def explain(args: argparse.Namespace) -> None:
    """Draw where a model looks."""
    from glocal.inference import load


def info(args: argparse.Namespace) -> None:
    """Print parameters and MACs, block by block."""


def list_(args: argparse.Namespace) -> None:
    """Name the models or the recipes."""
    if args.what in (None, "models"):
        from glocal.models import list_models

        print("\n".join(list_models()))
    if args.what in (None, "recipes"):
        from glocal.recipes import list_recipes

        for name, headline in list_recipes().items():
            print(f"{name:24} {headline}")


def build_parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    parser = argparse.ArgumentParser(prog="glocal", description="The Transformer family in one house.")
    parser.add_argument("--version", action="version", version=f"glocal {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    return parser
