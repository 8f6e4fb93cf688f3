"""What README, docs and recipes tell the reader to type is there: commands, options, fields, names, files."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import glocal
from glocal.cli import TAKE_FIELDS, build_parser, search, train
from glocal.cli.arguments import overrides
from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.models import NAMED_CONFIGS
from glocal.recipes import list_recipes, load_recipe, read_decoding, recipe_parser
from glocal.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADERS = sorted((ROOT / "src/glocal/recipes").glob("*.yaml"))
GLOCAL = re.compile(r"^(?:\S*/)?glocal(?= )|^torchrun .*? -m glocal(?= )")
CONFIGS = {BlockConfig, *(type(config) for _, config in NAMED_CONFIGS.values())}
MODEL = {f"--model.{field.name}" for config in CONFIGS for field in fields(config)}
MODEL |= {f"--model.{name}" for name in ("name", "from", "arch", "depth")}
"""Fields of a model, of whichever family; those of other sections are in the recipe's parser."""
KNOWN = MODEL | {f"--{name}" for task in TASKS for name, _ in recipe_parser(task).get_defaults().items()}
NAME = {"RECIPE": "vit-digits", "ages.yaml": "vit-digits", "RUN/finalist-1/recipe.yaml": "glit-digits"}
"""Placeholders and files of a user, and a recipe that may stand in their place."""


def blocks(page):
    """Yield the lines of a page's blocks of code, indented or fenced; of a recipe, those of its header."""
    fenced, text = False, page.read_text()
    if page.suffix == ".yaml":
        text = re.sub(r"^# *(?:(?:command|variants?) )? *", "    ", text, flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def spans(page):
    """Yield what stands in a page between backticks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()) if page.suffix == ".md" else []


def commands(page):
    """Yield the words of each command of glocal, without the name of the program; in prose one may stand alone."""
    named = re.compile(r"glocal [a-z]+")
    for line in (*blocks(page), *(span for span in spans(page) if not named.fullmatch(span))):
        for part in re.split(r"(?<=\S)   +(?=glocal )| or (?=glocal )", line):
            if GLOCAL.match(part):
                said = re.split(r"\s[<>|]\s|   +[(#]|\s\.\.\.$", GLOCAL.sub("", part))[0]
                yield shlex.split(said, comments=True)


def check(words):
    """Parse a command as the program does, and its fields by its recipe; nothing runs."""
    args, args.fields = build_parser().parse_known_args(words)
    if args.command in (train, search):
        given = [word for word in overrides(args) if word != "--fields"]
        if args.recipe:
            load_recipe(NAME.get(args.recipe, args.recipe), given)
        assert not {word.split("=")[0] for word in given if word.startswith("--model.")} - MODEL
    elif args.fields:
        assert args.command in TAKE_FIELDS, f"{words[0]} takes no {args.fields}"
        read_decoding(args.fields)


@pytest.mark.parametrize("page", [*PAGES, *HEADERS], ids=lambda page: page.name)
def test_commands_parse(page, capsys):
    found = [*commands(page)]
    for words in found:
        try:
            check(words)
        except (SystemExit, GlocalError, AssertionError) as error:
            pytest.fail(f"{page.name}: glocal {shlex.join(words)}\n{capsys.readouterr().err}{error}")
    assert found or page.name in ("CONTRIBUTING.md", "gpu.md", "glossary.md")


@pytest.mark.parametrize("page", [*PAGES, *HEADERS], ids=lambda page: page.name)
def test_fields_and_settings_exist(page):
    text = "\n".join((*blocks(page), *spans(page)))
    for field in re.findall(r"--[a-z_]+(?:\.[a-z_]+)+", text):
        assert field in KNOWN, f"{page.name} names {field}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_python_and_targets_of_make_exist(page):
    code = "\n".join((*blocks(page), *spans(page)))
    for dotted in re.findall(r"(?<![\w./-])glocal((?:\.[a-zA-Z_]+)+)", code):
        place = glocal
        for name in dotted[1:].split("."):
            place = getattr(place, name)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE):
        assert target in targets, f"{page.name} names make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / link[0] if link[0] else page
        assert file.exists(), f"{page.name} links to {link[0]}"
        if link[1]:
            titles = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            assert link[1] in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_recipe_says_what_to_type():
    for name, file in zip(list_recipes(), HEADERS, strict=True):
        said = [words for words in commands(file) if name in words]
        assert said, f"the header of {name} has no command of its own"


@pytest.mark.parametrize(
    "words", ["trains vit-digits", "train vit-digit", "test RUN --datum x", "train vit-digits --train.epoch 3"]
)
def test_a_wrong_command_is_found(words, capsys):
    with pytest.raises((SystemExit, GlocalError, AssertionError)):
        check(words.split())
