"""What the page is given, as JSON: the same in a file that `write_page` writes and from a server.

The page asks a server for

    GET  /v1/models           a list of models, each with `id`, `task` and `family` (or {"data": that list})
    POST /v1/{model}/look     a Payload in, Numbers out: what `numbers(predictor, payload)` returns

For bad input the server answers 4xx, and its JSON names the problem in `detail` or in `error.message`. In a file, the
Numbers stand in the element `numbers`, and the page fetches nothing.
"""

from typing import Literal, TypedDict

from glocal.explain import AttentionKind

Stack = Literal["blocks", "encoder", "decoder"]
"""The stacks of blocks that a model may have, by the fields of the models' configs."""
Part = Literal["result", "attention", "vectors", "positions", "masks"]


class Payload(TypedDict, total=False):
    """An input, and which numbers of it are wanted."""

    text: str
    """A text, a sentence to translate, or a prompt."""
    pair: str
    """The second text of a pair."""
    question: str
    context: str
    """The text that answers the question."""
    image: str
    """The bytes of an image file in base64, or a data URL."""
    parts: list[Part]
    """The parts that are wanted; by default all but `masks`."""
    layer: int
    """Attention and vectors of this layer alone; by default of as many layers as fit."""
    kind: AttentionKind
    """Attention and vectors of this kind alone; by default of all that the model has."""
    token: int
    """Of `masks`: the token that is masked; by default each in turn."""
    path: list[int]
    """Ids of the tokens that follow the prompt, or of the translation's; by default the model's own choice."""


class Array(TypedDict):
    """Numbers in base64, row by row, least significant byte first."""

    shape: list[int]
    data: str
    scale: float
    """What an integer is multiplied by. 0: each row (the last axis) of bytes is divided by its sum."""


class Input(TypedDict, total=False):
    """What the model was given: texts, or an image."""

    text: str
    pair: str
    question: str
    context: str
    image: str
    """A data URL of the image as the model saw it, resized and cropped."""
    grid: list[int]
    """Rows and columns of its patches."""
    prefix: int
    """Tokens in front of the patches."""


class Attention(TypedDict, total=False):
    """Which tokens attend to which."""

    queries: list[str]
    """The tokens that attend."""
    keys: list[str]
    """The tokens that are attended to."""
    causal: bool
    """Whether a token attends to itself and earlier tokens only."""
    layers: list[int]
    """The layers that are here, of `depth`."""
    depth: int
    heads: int
    """The heads that are here, the first ones, of `all_heads`."""
    all_heads: int
    weights: Array
    """Bytes, layers × heads × queries × keys."""
    local_heads: list[int]
    """How many heads of each layer that is here are local; they are the last ones."""
    patterns: dict[str, list[list[float]]]
    """Of a text: what each head of each layer gives to the previous, the next, ... token (`explain.HeadPatterns`)."""
    rollout: Array
    """Of an image: bytes, tokens × tokens (`explain.rollout`)."""


class Vectors(TypedDict):
    """Queries, keys and values of a layer's global heads: int16, heads × tokens × d_k."""

    layer: int
    queries: Array
    keys: Array
    values: Array


class Positions(TypedDict):
    """Position embeddings."""

    kind: Literal["sinusoidal", "learned"]
    values: Array
    """int16, positions × channels."""
    similarity: Array
    """int16, positions × positions: the cosine of the angle between two of them."""
    total: list[int]
    """Positions and channels of the model; here may be fewer."""
    prefix: int
    """Positions in front of an image's patches."""


class Label(TypedDict):
    """A class or a word, and its probability."""

    label: str
    probability: float


class Entity(TypedDict):
    """A part of the text that names something."""

    type: str
    start: int
    """Its first character."""
    end: int
    """The character after its last."""
    score: float


class Answer(TypedDict):
    """A part of the context that answers the question; empty where there is no answer."""

    text: str
    start: int
    end: int
    score: float


class Node(TypedDict):
    """A token that may follow others: a node of a tree, whose root is the first and has no token."""

    parent: int
    id: int
    token: str
    probability: float
    """Of the token after those before it."""


class Hypothesis(TypedDict):
    """A text that beam search found: its last node, and log P over the length penalty."""

    node: int
    text: str
    score: float


class Result(TypedDict, total=False):
    """What the model predicts; which fields there are depends on its task."""

    labels: list[Label]
    """The most probable classes."""
    exclusive: bool
    """Whether the classes exclude each other, so that their probabilities sum to one."""
    score: float
    entities: list[Entity]
    answers: list[Answer]
    tree: list[Node]
    """Of a generated text: what may follow the prompt; of a translation: what beam search followed."""
    prompt: list[str]
    """Tokens of the prompt that the tree continues."""
    written: list[int]
    """Nodes of the text that was written, in its order."""
    hypotheses: list[Hypothesis]
    """Of a translation, the best first."""


class Block(TypedDict):
    """A block of the model (`layers.BlockConfig`)."""

    stack: Stack
    global_heads: int
    local_heads: int
    local: str
    kernel_size: int
    expand_ratio: float
    qkv_ratio: float
    mlp_ratio: float


class Architecture(TypedDict):
    """The model."""

    family: str
    parameters: int
    blocks: list[Block]
    """None of an LSTM."""


class Numbers(TypedDict, total=False):
    """What the page shows. The first three are always there, the others are the requested parts."""

    task: str
    model: Architecture
    input: Input
    result: Result
    attention: dict[AttentionKind, Attention]
    vectors: dict[AttentionKind, list[Vectors]]
    """The layers that fit."""
    positions: Positions
    masks: dict[str, list[Label]]
    """By the number of the token that is masked: the most probable words in its place."""
