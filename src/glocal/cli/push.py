"""`glocal push`"""

import argparse
from typing import TYPE_CHECKING

from glocal.cli.arguments import announce
from glocal.cli.export import add_settings, settings
from glocal.errors import GlocalError, printable
from glocal.export import FORMATS

if TYPE_CHECKING:
    from glocal.export.hub import Upload


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="RUN", help="a run, a model's folder, or a hub id")
    parser.add_argument(
        "repository", metavar="OWNER/NAME", help="a repository of the hub, created if it does not exist"
    )
    parser.add_argument("--to", choices=FORMATS, default="glocal", help="format to write (default %(default)s)")
    parser.add_argument("--public", action="store_true", help="make the repository public (default: private)")
    parser.add_argument("--yes", action="store_true", help="upload without asking for confirmation")
    add_settings(parser)


def run(args: argparse.Namespace) -> None:
    """Upload a model and its card to the hub, after listing the files and asking for confirmation."""
    announce(f"glocal push {args.model}", to_terminal=True)
    from glocal.export.hub import push

    def confirm(upload: "Upload") -> bool:
        show(upload)
        return args.yes or ask("upload them? [y/N] ")

    address = push(args.model, args.repository, args.to, public=args.public, confirm=confirm, **settings(args))
    print("nothing was uploaded" if address is None else address)


def show(upload: "Upload") -> None:
    """Print the files and their sizes, and where they go."""
    width = max(map(len, upload.files))
    for name, bytes_of_file in upload.files.items():
        print(f"{printable(name):{width}}  {bytes_of_file:>14,} bytes")
    state = "exists; files of these names are replaced" if upload.exists else "will be made"
    readers = "its owners alone see it" if upload.private else "EVERYONE sees it"
    size = sum(upload.files.values())
    print(f"{len(upload.files)} files, {size:,} bytes, to {upload.address}, which {state}; {readers}")


def ask(question: str) -> bool:
    """Return whether the answer is yes. Raises GlocalError if there is no terminal to answer at."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        raise GlocalError(
            "nothing was uploaded: there is no terminal to confirm at; give --yes to upload without asking"
        ) from None
