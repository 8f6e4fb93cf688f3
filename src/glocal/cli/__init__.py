"""The command line, a file a command: each is a few lines over what Python users call.

torch takes seconds to import, so a command imports what it needs when it runs, and `glocal --help` needs nothing.
"""

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from glocal import __version__
from glocal.cli import explain, export, info, list, predict, search, test, train
from glocal.errors import GlocalError

COMMANDS: tuple[ModuleType, ...] = (train, search, test, predict, explain, export, info, list)
TAKE_FIELDS = (train, search, predict)
"""Commands that take a recipe's fields by their dotted names."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Bad input ends in one line and exit code 2, an interrupted run in 130."""
    parser = build_parser()
    args, fields = parser.parse_known_args(argv)
    args.fields = fields
    if args.fields and args.command not in TAKE_FIELDS:
        parser.error(f"unrecognized arguments: {' '.join(args.fields)}")
    try:
        if fields == ["--fields"] and getattr(args, "recipe", None):
            show_fields(args.recipe)
        else:
            args.command.run(args)
    except (GlocalError, OSError) as error:  # a file's error names the file
        if args.debug:
            raise
        print(f"glocal: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"glocal: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def show_fields(recipe: str) -> None:
    """Print every field that a recipe of this kind takes."""
    from glocal.recipes import load_recipe, recipe_parser

    recipe_parser(type(load_recipe(recipe))).print_help()


def build_parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    parser = argparse.ArgumentParser(prog="glocal", description="The Transformer family.")
    parser.add_argument("--version", action="version", version=f"glocal {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name, does = command.__name__.rpartition(".")[2], command.run.__doc__
        usage = getattr(command, "USAGE", None)
        one = commands.add_parser(name, parents=[common], help=does, description=does, usage=usage, allow_abbrev=False)
        command.add_options(one)
        one.set_defaults(command=command)
    return parser
