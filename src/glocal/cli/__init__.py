"""The command line, a file a command: each is a few lines over what Python users call.

torch takes seconds to import, so a command imports what it needs when it runs, and `glocal --help` needs nothing.
"""

import argparse
import io
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from glocal import __version__
from glocal.cli import explain, export, features, info, list, predict, push, search, serve, test, train
from glocal.cli.arguments import Parser, check_words, overrides
from glocal.errors import GlocalError, printable

COMMANDS: tuple[ModuleType, ...] = (train, search, test, predict, features, explain, serve, export, push, info, list)
TAKE_FIELDS = (train, search, predict)
"""Commands that take a recipe's fields by their dotted names."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Bad input ends in one line and exit code 2, an interrupted run in 130, a closed pipe in 141."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that the terminal's encoding lacks is no error
    words = [*sys.argv[1:]] if argv is None else [*argv]
    parser = build_parser()
    args, fields = parser.parse_known_args(words)
    args.fields = fields
    if args.fields and args.command not in TAKE_FIELDS:
        parser.error(f"unrecognized arguments: {' '.join(args.fields)}")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            check_words(words)
            if "--fields" in fields and args.command in (train, search):
                show_fields(args)
            else:
                args.command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `glocal list | head`: who reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's last flush would fail as well
        sys.exit(141)
    except (GlocalError, OSError) as error:  # a file's error names the file
        if args.debug:
            raise
        print(f"glocal: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print(f"glocal: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(130)


def show_warning(message: Warning | str, category: type[Warning], filename: str, *_: object) -> None:
    """Print a warning on one line, without the place in the code that it comes from.

    What PIL warns of is left out: it names no file, and an image that cannot be read is an error of its own.
    """
    if Path(filename).parent.name == "PIL":
        return
    print(f"glocal: {printable(' '.join(str(message).split()))}", file=sys.stderr)


def show_fields(args: argparse.Namespace) -> None:
    """Print every field of a recipe: its value there, its type and what it means."""
    from glocal.recipes import list_recipes, load_recipe
    from glocal.recipes.fields import list_fields

    name = args.command.__name__.rpartition(".")[2]
    if args.recipe is None:
        raise GlocalError(f"--fields lists the fields of a recipe; give one: glocal {name} RECIPE --fields")
    args.fields.remove("--fields")
    recipe = load_recipe(args.recipe, overrides(args))
    width = min(shutil.get_terminal_size().columns, 120)
    print(f"{args.recipe}: {list_recipes().get(args.recipe, 'a recipe of yours')}")
    for section, meaning, fields in list_fields(recipe, searching=args.command is search):
        print(f"\n{section}  {meaning}")
        for field in fields:
            print(f"  --{field.name} {field.value}   ({field.type})")
            if field.meaning:
                print(textwrap.fill(field.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6))


def build_parser() -> Parser:
    """Every command and its options."""
    parser = Parser(prog="glocal", description="The Transformer family.")
    parser.add_argument("--version", action="version", version=f"glocal {__version__}")
    common = Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        name, does = command.__name__.rpartition(".")[2], command.run.__doc__
        usage = getattr(command, "USAGE", None)
        one = commands.add_parser(name, parents=[common], help=does, description=does, usage=usage, allow_abbrev=False)
        command.add_options(one)
        one.set_defaults(command=command)
    return parser
