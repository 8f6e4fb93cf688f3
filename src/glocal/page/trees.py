"""What generated text might have been: the tokens that a model considered, as a tree.

A tree is a list of nodes, each of which names its parent; the first one is the root, the end of the prompt or the
beginning of a translation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from glocal.errors import GlocalError
from glocal.generation import DecodingConfig, max_length_of
from glocal.generation.decoding import EMPTY, Decoder
from glocal.models.generative import GenerationState, Generative
from glocal.page.contract import Hypothesis, Node
from glocal.tasks import TextGenerator, Translator

OPTIONS = 6
"""Most probable tokens that are kept at each place of a generated text."""
BEAMS = 4
"""Hypotheses that beam search follows (Vaswani et al. 2017, section 6.1)."""


@dataclass
class Tree:
    """Nodes, and the names of their tokens."""

    writer: TextGenerator | Translator
    nodes: list[Node]

    def add(self, parent: int, token: int, probability: float) -> int:
        """Add a token that follows `parent`, and return the number of its node."""
        (name,) = self.writer.tokenizer.tokens([token])
        self.nodes.append({"parent": parent, "id": token, "token": name, "probability": round(probability, 5)})
        return len(self.nodes) - 1


def new_tree(writer: TextGenerator | Translator) -> Tree:
    """Return a tree of a root alone."""
    return Tree(writer, [{"parent": -1, "id": -1, "token": "", "probability": 1.0}])


@dataclass(frozen=True)
class Width:
    """How large a tree is."""

    steps: int = 24
    """Tokens that are written after the prompt."""
    branches: int = 2
    """Runners-up of each of them that are continued too."""
    branch_steps: int = 8
    """Tokens that follow such a runner-up."""


def writing_tree(generator: TextGenerator, prompt: Sequence[int], width: Width) -> tuple[Tree, list[int]]:
    """Return the tokens that may follow a prompt, and the nodes of those that greedy search writes.

    A prompt that is too long for the model with them loses its beginning.
    """
    tree = new_tree(generator)
    longest = max_length_of(generator.model)
    steps = int(min(width.steps, longest // 2))
    kept = int(min(longest - steps - width.branch_steps, len(prompt)))
    if kept < 1:
        raise GlocalError(f"a model of {longest} tokens is too short for the page; expected {width.branch_steps + 2}")
    begun = list(prompt[-kept:])
    (written,) = write(tree, [begun], [0], steps)
    places = [0, *written]
    branches = [
        (child, begun + [tree.nodes[node]["id"] for node in written[:place]] + [tree.nodes[child]["id"]])
        for place, parent in enumerate(places[: len(written)])
        for child in children(tree, parent)[1 : 1 + width.branches]
        if tree.nodes[child]["id"] != generator.model.config.eos_id
    ]
    if branches and width.branch_steps:
        write(tree, [ids for _, ids in branches], [child for child, _ in branches], width.branch_steps)
    return tree, written


def children(tree: Tree, parent: int) -> list[int]:
    """Return the nodes that follow a node, the most probable first."""
    return [number for number, node in enumerate(tree.nodes) if node["parent"] == parent]


@torch.inference_mode()
def write(tree: Tree, prompts: Sequence[list[int]], parents: Sequence[int], steps: int) -> list[list[int]]:
    """Continue prompts greedily from their nodes; return the nodes of each text, and leave the runners-up beside them.

    A text ends behind the token that ends it.
    """
    model: Generative[GenerationState] = tree.writer.model
    rows = [torch.tensor(ids) for ids in prompts]
    device = tree.writer.device
    ids = pad_sequence(rows, True, model.config.pad_id or 0, "left").to(device)
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True, False, "left").to(device)
    state = model.start(ids, mask, 1, steps)
    token, ends = ids[:, -1], list(parents)
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(steps):
        probabilities = model.step(token, state).float().softmax(dim=-1)
        best = probabilities.topk(min(OPTIONS, probabilities.shape[1]))
        token = best.indices[:, 0]
        for row, options in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            if written[row] and tree.nodes[ends[row]]["id"] == model.config.eos_id:
                continue
            numbers = [tree.add(ends[row], *option) for option in zip(*options, strict=True)]
            ends[row] = numbers[0]
            written[row].append(ends[row])
    return written


def beam_tree(translator: Translator, source: Sequence[int]) -> tuple[Tree, list[Hypothesis]]:
    """Return every beginning of a translation that beam search followed, and the hypotheses that it ended with.

    Raises GlocalError if the sentence is longer than the model takes.
    """
    if len(source) > max_length_of(translator.model):
        longest = max_length_of(translator.model)
        raise GlocalError(f"a sentence of {len(source)} tokens; the page shows up to {longest}: shorten it")
    tree = new_tree(translator)
    nodes: dict[tuple[int, ...], int] = {(): 0}
    ids = torch.tensor([list(source)], device=translator.device)
    config = DecodingConfig(beams=BEAMS, nbest=BEAMS)
    search = Decoder(translator.model, ids, torch.ones_like(ids, dtype=torch.bool), config, translator.tokenizer)
    total = {(): 0.0}
    for _ in search.run():
        for row, log_p in zip(search.state.ids[0].tolist(), search.state.total[0].tolist(), strict=True):
            text = tuple(token for token in row if token != EMPTY)
            if text in nodes or log_p == -torch.inf:
                continue
            before = text[:-1]
            probability = torch.tensor(log_p - total[before]).exp().item()
            nodes[text], total[text] = tree.add(nodes[before], text[-1], probability), log_p
    (best,) = search.best()
    texts = translator.tokenizer.decode([each.ids for each in best])
    return tree, [
        {"node": nodes[tuple(each.ids)], "text": text, "score": each.score or 0.0}
        for each, text in zip(best, texts, strict=True)
    ]


def path_to(tree: Tree, node: int) -> list[int]:
    """Return the nodes from the first token to a node."""
    path: list[int] = []
    while node > 0:
        path.insert(0, node)
        node = tree.nodes[node]["parent"]
    return path
