"""Seeded mutations of bytes, of lines of text, and of JSON trees: what a damaged or foreign file may hold.

Each function returns a changed copy and draws all its choices from the given generator, so a seed gives the same file.
"""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD_TEXTS = (
    "",
    " ",
    "\t",
    "\0",
    "\r",
    "\x0c",
    "\x85",
    "\u2028",
    "\ufeff",
    "\u200b",
    "e\u0301",
    "\U0001f469\u200d\U0001f4bb",
    "\ud800",
    '"',
    "'",
    ",",
    "{",
    "[[",
    "# id = 1",
    "-DOCSTART-",
    "O",
    "B-",
    "nan",
    "inf",
    "-1",
    "0.5",
    "1e999",
    "true",
    "null",
    "no",
    "../../x",
    "\x1b[31m",
    "[/]",
    "$$",
    "x" * 5000,
)
"""Texts that formats, encodings, terminals or libraries give a meaning of their own."""

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    0.5,
    2**31,
    2**63,
    10**30,
    -(10**9),
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": None},
    *ODD_TEXTS,
)
"""Values of JSON that a reader may not expect."""


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change a file as damage does: bits flipped, a part cut, doubled, zeroed, exchanged or inserted."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 1, 4, 64, 1024)))
        part = bytes(changed[start:end])
        action = rng.choice(("flip", "cut", "double", "zero", "insert", "truncate", "number"))
        if action == "flip" and part:
            changed[start] ^= 1 << rng.randrange(8)
        elif action == "cut":
            del changed[start:end]
        elif action == "double":
            changed[start:start] = part * rng.choice((1, 2, 100))
        elif action == "zero":
            changed[start:end] = bytes(len(part))
        elif action == "insert":
            changed[start:start] = rng.randbytes(rng.choice((1, 4, 64)))
        elif action == "truncate":
            del changed[start:]
        elif action == "number":  # lengths and offsets of binary formats
            changed[start : start + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x80"))
    return bytes(changed)


def mutate_text(content: str, rng: random.Random) -> str:
    """Change a file of lines as editors and exports do: lines cut, doubled, exchanged, joined, and odd texts put in."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(lines) + 1)
        line = lines[place] if place < len(lines) else ""
        inside = rng.randrange(len(line) + 1)
        odd = rng.choice(ODD_TEXTS)
        action = rng.choice(("cut", "double", "swap", "blank", "insert", "replace", "word", "end", "separator", "bom"))
        if action == "cut":
            del lines[place : place + 1]
        elif action == "double":
            lines[place:place] = [line] * rng.choice((1, 2, 100))
        elif action == "swap" and lines:
            other = rng.randrange(len(lines))
            lines[place : place + 1], lines[other] = [lines[other]], line or lines[other]
        elif action == "blank":
            lines[place:place] = [rng.choice(("\n", "\r\n", "  \n", "\t\n"))]
        elif action == "insert":
            lines[place : place + 1] = [line[:inside] + odd + line[inside:]]
        elif action == "replace":
            lines[place : place + 1] = [odd + "\n"]
        elif action == "word" and line.split():
            lines[place] = line.replace(rng.choice(line.split()), odd, 1)
        elif action == "end":
            lines[place : place + 1] = [line.rstrip("\n") + rng.choice(("", "\r", "\r\n", "\t\n", " \n"))]
        elif action == "separator":
            lines[place : place + 1] = [line.replace(*rng.choice((("\t", " "), (",", ";"), (" ", "\t"), ('"', ""))))]
        elif action == "bom":
            lines[:0] = ["\ufeff"]
    return "".join(lines)


def mutate_json(tree: Any, rng: random.Random) -> Any:
    """Change a tree of JSON as other programs write it: values of another kind, keys missing, renamed, or nested."""
    root = {"root": copy.deepcopy(tree)}
    for _ in range(rng.choice((1, 1, 2, 5))):
        places = _places(root)
        holder, key = rng.choice(places)
        action = rng.choice(("value", "value", "remove", "rename", "nest", "double", "negate", "exchange"))
        value = holder[key]
        if action == "remove" and holder is not root:
            del holder[key]
        elif action == "rename" and isinstance(holder, dict) and holder is not root:
            holder[rng.choice((key.upper(), key + "_", ""))] = holder.pop(key)
        elif action == "nest":
            for _ in range(rng.choice((1, 2, 50))):
                value = rng.choice(([value], {"x": value}))
            holder[key] = value
        elif action == "double" and isinstance(value, (str, list)):
            holder[key] = value * rng.choice((2, 3, 100))
        elif action == "negate" and isinstance(value, (int, float)):
            holder[key] = rng.choice((-value, value * 10**6, float(value), str(value), value == 1))
        elif action == "exchange":
            other_holder, other_key = rng.choice(places)
            holder[key] = copy.deepcopy(other_holder[other_key]) if _is_there(other_holder, other_key) else None
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return root["root"]


def mutate_json_text(content: str, rng: random.Random) -> str:
    """Change a document of JSON: mostly its tree, sometimes its text, and rarely nest it deeper than readers go."""
    kind = rng.random()
    if kind < 0.02:
        depth = rng.choice((200, 2000, 100_000))
        return rng.choice(("[", '{"a":')) * depth + rng.choice(("", content))
    if kind < 0.25:
        return mutate_text(content, rng)
    return json.dumps(mutate_json(json.loads(content), rng), ensure_ascii=rng.random() < 0.5)


def _places(root: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return each dictionary or list of a tree with each of its keys."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], (dict, list))]
    return found


def _is_there(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


Mutation = Callable[[bytes, random.Random], bytes]


def of_text(mutate: Callable[[str, random.Random], str]) -> Mutation:
    """Return a mutation of a UTF-8 file from one of its text; a lone surrogate becomes bytes that are no text."""

    def mutated(content: bytes, rng: random.Random) -> bytes:
        return mutate(content.decode(), rng).encode(errors="surrogatepass")

    return mutated
