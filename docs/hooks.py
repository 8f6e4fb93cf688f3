"""What MkDocs is told beyond mkdocs.yml: pages that are made from the repository, and links that leave this folder.

    reference/PACKAGE.md     a package's public names and its modules' docstrings, found by walking src/
    recipes.md               the shipped recipes, by their headers
    examples/NAME.md         a notebook's cells with their outputs
    source/PATH.md           a file of code that some page links to
    project/, results/       other Markdown of the repository that some page links to

A link between two files of the repository so leads to the same file on the site, and one to a file that does not exist
stays as it is, which fails the strict build.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
LINK = re.compile(r"\]\(([^)#\s]+)((?:#[^)\s]*)?)\)")
FENCE = re.compile(r"```+|~~~+")
ITEM = re.compile(r"(?:[-*+]|\d+[.)]) +")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cpp": "cpp", ".toml": "toml"}
IMAGES = (".png", ".svg", ".csv")
HIDDEN = "---\nsearch: {exclude: true}\n---\n\n"
"""The head of a page that the search leaves out."""

origins: dict[str, str] = {}
"""A page's file in the repository, by its place on the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation what is not named in it: the reference of each package, and new pages of docs/."""
    nav: list[Any] = [] if config.nav is None else config.nav
    named = set(named_pages(nav))
    more = [path.name for path in sorted(Path(config.docs_dir).glob("*.md")) if path.name not in named]
    if more:
        nav.append({"More": more})
    nav.append({"Reference": [{name: f"reference/{name}.md"} for name in packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages that are not in docs/, and those that they link to."""
    origins.clear()

    def add(uri: str, content: str) -> None:
        files.append(File.generated(config, uri, content=content))

    library: Any = griffe.load("glocal", search_paths=[SOURCE])
    for name, modules in packages().items():
        add(f"reference/{name}.md", reference(library[name.partition(".")[2]] if "." in name else library, modules))
    add("recipes.md", recipes())

    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None]
    waiting += [
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *(uri for uri in named_pages(config.nav) if uri.startswith("results/")),
    ]
    waiting += [f"src/{module.replace('.', '/')}.py" for modules in packages().values() for module in modules]
    waiting += sorted(f"examples/{path.name}" for path in (ROOT / "examples").glob("*.ipynb"))
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done or not (ROOT / path).is_file():
            continue
        done.add(path)
        uri = place(path)
        if path.endswith((".md", ".ipynb")):
            origins[uri] = path
            text = notebook(path) if path.endswith(".ipynb") else (ROOT / path).read_text(encoding="utf-8")
            waiting += [target for match in LINK.finditer(text) if (target := resolve(path, match[1]))]
            if not path.startswith("docs/"):
                add(uri, text)
        elif path.endswith(IMAGES):
            if not path.startswith("docs/"):
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        else:
            add(uri, code(path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their file is on the site, and indent lists as Python-Markdown reads them."""
    here = page.file.src_uri

    def lead(match: re.Match[str]) -> str:
        target = resolve(origins[here], match[1])
        if target is None:
            return match[0]
        return f"]({posixpath.relpath(place(target), posixpath.dirname(here))}{match[2]})"

    if here in origins:
        markdown = LINK.sub(lead, markdown)
    return "\n".join(indented(markdown.split("\n")))


def named_pages(nav: Any) -> Iterator[str]:
    """Every page that a part of the navigation names."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from named_pages(part)


def packages() -> dict[str, list[str]]:
    """Each package of the library and the public modules that are directly in it, by their dotted names."""
    found = {}
    for init in sorted(SOURCE.rglob("__init__.py")):
        name = ".".join(init.parent.relative_to(SOURCE).parts)
        modules = sorted(path.stem for path in init.parent.glob("*.py") if not path.stem.startswith("_"))
        found[name] = [f"{name}.{module}" for module in modules]
    return found


def reference(package: Any, modules: list[str]) -> str:
    """A package's page: its docstring, its public names with their first lines, and its modules."""
    own = [name for name, member in package.members.items() if not member.is_alias and not member.is_module]
    shown = json.dumps([name for name in own if not name.startswith("_")] or False)
    parts = [f"# {package.path}\n", f"::: {package.path}\n    options: {{members: {shown}, heading_level: 2}}\n"]
    rows = []
    for name in sorted(package.exports or [], key=str):
        member = package.members.get(str(name))
        if member is None or (member.is_alias and not member.resolved):
            continue
        if member.kind is griffe.Kind.MODULE:
            continue
        if member.docstring is None:  # no heading of its own
            rows.append(f"| `{name}` | |")
            continue
        first = member.docstring.value.split("\n")[0].replace("|", "\\|")
        rows.append(f"| [`{name}`][{member.canonical_path}] | {first} |")
    if rows:
        parts += ["## Public names\n", f"`from {package.path} import NAME`\n", "| | |\n| --- | --- |", *rows, ""]
    for module in modules:
        path = f"src/{module.replace('.', '/')}.py"
        parts += [f"## {module} {{#{module}}}\n", f"[{path}](../{place(path)})\n", f"::: {module}\n"]
    return "\n".join(parts)


def recipes() -> str:
    """Every shipped recipe with what its first line says, and its file."""
    folder = SOURCE / "glocal" / "recipes"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    rows = [f"| [`{name}`](#{name}) | {text.splitlines()[0].lstrip('# ')} |" for name, text in texts.items()]
    head = [
        "# Recipes\n",
        "A recipe is one experiment. `glocal train RECIPE` runs it, `glocal train RECIPE --fields` shows its fields,",
        "and any field is set by its dotted name: `--train.epochs 3`. A YAML file of your own is a recipe too.\n",
        "| | |\n| --- | --- |",
    ]
    return "\n".join([*head, *rows, *(f"\n## {name}\n\n{fenced(text, 'yaml')}" for name, text in texts.items())])


def notebook(path: str) -> str:
    """A notebook as a page: its cells, what they printed, and the figures that they drew."""
    parts = []
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(fenced(text, "python") if cell["cell_type"] == "code" else text)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            picture = next((kind for kind in data if kind.startswith("image/")), None)
            if picture:
                parts.append(f'<img alt="" src="data:{picture};base64,{"".join(data[picture]).strip()}">')
            elif said := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(fenced(said, "text"))
    title, *rest = parts
    return "\n\n".join([title, f"This page is the notebook `{path}`.", *rest]) + "\n"


def code(path: str) -> str:
    """A file of code as a page."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"{HIDDEN}# {path}\n\n{fenced((ROOT / path).read_text(encoding='utf-8'), language)}"


def fenced(text: str, language: str) -> str:
    """A block of code, between fences that are not in it."""
    fence = "`" * (3 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def resolve(page: str, target: str) -> str | None:
    """The file or folder of the repository that a page's link leads to; None of anything else."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return path if "://" not in target and not path.startswith("..") and (ROOT / path).exists() else None


def place(path: str) -> str:
    """Where a file or folder of the repository is on the site."""
    folder, name = posixpath.split(path)
    if path in ("README.md", "."):
        return "index.md"
    if path == "src/glocal/recipes":
        return "recipes.md"
    if (ROOT / path / "__init__.py").exists():
        return f"reference/{path.removeprefix('src/').replace('/', '.')}.md"
    if folder.split("/")[0] == "docs":
        return path.removeprefix("docs/")
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    if path.endswith(IMAGES):
        return path
    if path.endswith(".md"):
        return path if folder else f"project/{name.lower()}"
    return f"source/{path}.md"


def indented(lines: list[str]) -> Iterator[str]:
    """Indent what belongs to an item of a list by four spaces, where CommonMark is content with the marker's width."""
    rest = iter(lines)
    line = next(rest, None)
    while line is not None:
        if fence := FENCE.match(line):
            yield line
            for line in rest:
                yield line
                if line.startswith(fence[0]):
                    break
            line = next(rest, None)
        elif item := ITEM.match(line):
            width = len(item[0])
            body = [line[width:]]
            for line in rest:
                if line.strip() and not line.startswith(" " * width):
                    break
                body.append(line[width:])
            else:
                line = None
            first, *others = indented(body)
            yield item[0] + first
            yield from (f"    {other}" if other else "" for other in others)
            if "" in body and body[-1]:
                yield ""  # else the next item would belong to this one's last paragraph
        else:
            yield line
            line = next(rest, None)
