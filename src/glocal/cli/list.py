"""`glocal list`"""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("what", nargs="?", choices=["models", "recipes", "tasks"], help="list only these")


def run(args: argparse.Namespace) -> None:
    """List the models, the recipes and the tasks."""
    if args.what in (None, "models"):
        from glocal.models import list_models

        print("\n".join(list_models()), "timm:NAME, any network of timm's", sep="\n")
    if args.what in (None, "recipes"):
        from glocal.recipes import list_recipes

        recipes = list_recipes()
        width = max(map(len, recipes))
        for name, headline in recipes.items():
            print(f"{name:{width}}  {headline}")
    if args.what in (None, "tasks"):
        from glocal.tasks import TASKS

        width = max(map(len, TASKS))
        for name, task in TASKS.items():
            print(f"{name:{width}}  {task.description}")
