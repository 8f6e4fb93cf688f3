"""`glocal search`"""

import argparse
import shlex

from glocal.cli.arguments import announce, overrides
from glocal.errors import GlocalError

USAGE = "glocal search RECIPE [--data SOURCE] [--SECTION.FIELD VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("recipe", nargs="?", help="the name of a recipe with a section `search`, or a YAML file")
    parser.add_argument("--data", metavar="SOURCE", help="short for --data.source")
    parser.add_argument("--resume", metavar="RUN", help="continue a stopped search; no architecture is evaluated twice")
    parser.epilog = "`glocal search RECIPE --fields` lists the fields: --search.method, --search.budget.upper, ..."


def run(args: argparse.Namespace) -> None:
    """Search for an architecture by a recipe and train the finalists, or continue a stopped search."""
    if args.resume and (args.recipe or args.fields or args.data):
        raise GlocalError(
            f"--resume {args.resume} continues a search with its own recipe; give no recipe and no fields"
        )
    if not (args.resume or args.recipe):
        raise GlocalError("no recipe was given; give a name from `glocal list recipes` that begins with glit or search")
    announce(f"glocal search {args.recipe}" if args.recipe else f"glocal search --resume {args.resume}")
    from glocal import runner
    from glocal.search.stages import format_score
    from glocal.training import RunFolder

    run = runner.search(args.resume or args.recipe, overrides(args))
    report = RunFolder(run).read_report()
    print(*report["reading"]["sentences"], sep="\n")
    print(
        f"found: {round(report['found']['cost'], 2):,} {report['found']['unit']}, "
        f"{format_score(report['found']['val'], report['found']['score'])} on validation after training: "
        f"{run / 'arch.json'}"
    )
    print(f"next: glocal test {shlex.quote(str(run))}")
