"""Feature extraction: one vector for each input, from the last layer of any model.

    Reimers and Gurevych 2019, *Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks*, section 3
    https://arxiv.org/abs/1908.10084

`Predictor.features` returns the vectors of some inputs; `write_features` writes the vectors of any number to a file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, cast, get_args

import numpy as np
import pyarrow
import torch
from jaxtyping import Bool, Float
from numpy.lib import format as npy
from pyarrow import parquet
from torch import Tensor, nn
from torch.nn import functional as F

from glocal.data.encoding import Batch
from glocal.errors import GlocalError, printable
from glocal.files import replacing
from glocal.models import Model
from glocal.models.generative import EncoderDecoder, Generative

Pooling = Literal["cls", "mean", "last"]
"""The vector of an input: its class token, the mean of its tokens, or its last token."""

# -------------------------------------------------------------------------------------------------------------- pooling


def poolings(model: Model) -> tuple[Pooling, ...]:
    """Return the poolings that a model allows, its default first.

    | model                                          | default | others       |
    | ---------------------------------------------- | ------- | ------------ |
    | of images, with a class token                  | `cls`   | `mean`       |
    | of images, without one                         | `mean`  |              |
    | encoder of texts                               | `cls`   | `mean last`  |
    | decoder                                        | `last`  | `mean`       |
    | encoder-decoder: the tokens of its encoder     | `mean`  | `last`       |
    """
    if isinstance(model, EncoderDecoder):
        return "mean", "last"
    if isinstance(model, Generative):
        return "last", "mean"
    if hasattr(model.config, "vocab_size"):
        return "cls", "mean", "last"
    return ("cls", "mean") if num_prefix_tokens(model) and has_class_token(model) else ("mean",)


def choose_pooling(model: Model, pooling: Pooling | None) -> Pooling:
    """Return a pooling, or a model's default for None. Raises GlocalError if the model does not allow it."""
    allowed = poolings(model)
    if pooling is None:
        return allowed[0]
    if pooling not in get_args(Pooling):
        raise GlocalError(f"pooling {pooling!r:.40}; expected {', '.join(get_args(Pooling))}, or None for the default")
    if pooling not in allowed:
        kind = "of images" if not hasattr(model.config, "vocab_size") else "of texts"
        raise GlocalError(
            f"pooling {pooling!r} was given for a {type(model).__name__} {kind}, which has no such token; expected "
            f"{' or '.join(allowed)}"
        )
    return pooling


def network(model: Model) -> nn.Module:
    """Return the module that holds the parameters: for a network of timm, that network."""
    inner: nn.Module = getattr(model, "net", model)
    return inner


def has_class_token(model: Model) -> bool:
    """Whether the first token of an image is a class token; some networks of timm have register tokens alone."""
    return getattr(network(model), "cls_token", True) is not None


def num_prefix_tokens(model: Model) -> int:
    """Return how many tokens of an image precede its patches."""
    inner = network(model)
    return int(getattr(inner, "num_prefix_tokens", getattr(inner, "cls_token", None) is not None))


class Encoder(Protocol):
    """An encoder-decoder, of which the encoder is used."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the refined tokens of the source, and what else the decoder needs."""
        ...


@torch.inference_mode()
def pooled_features(model: Model, batch: Batch, pooling: Pooling) -> Float[Tensor, "batch dim"]:
    """Return the vector of each input of a batch, in float32."""
    if isinstance(model, EncoderDecoder):
        encoded = cast(Encoder, model).encode(batch["input_ids"], batch["attention_mask"])
        tokens = encoded[0] if isinstance(encoded, tuple) else encoded  # an LSTM returns its last states too
    else:
        tokens = model.forward_features(**batch)
    mask = batch.get("attention_mask")
    return pool(tokens.float(), mask, pooling, num_prefix_tokens(model) if mask is None else 0)


def pool(
    tokens: Float[Tensor, "batch tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    pooling: Pooling,
    num_prefix_tokens: int = 0,
) -> Float[Tensor, "batch dim"]:
    """Return one vector for each row of tokens.

    The mask is True at a text's own tokens, special tokens included (as in sentence-transformers), and False at the
    padding after them. The mean over an image is over its patches, without the `num_prefix_tokens` (as in timm).
    """
    if pooling == "cls":
        return tokens[:, 0]
    if mask is None:
        return tokens[:, num_prefix_tokens:].mean(dim=1)
    if pooling == "last":
        return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(dim=1) - 1]
    return (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def stack_features(vectors: Sequence[Float[Tensor, " dim"]], normalise: bool) -> Float[np.ndarray, "inputs dim"]:
    """Return vectors as one array, each of length 1 where they are to be normalised; (0, 0) where there are none."""
    stacked = torch.stack(list(vectors)) if vectors else torch.zeros(0, 0)
    return (F.normalize(stacked, dim=-1) if normalise else stacked).numpy()


# ---------------------------------------------------------------------------------------------------------------- files

ENDINGS = (".npy", ".parquet")


class Chunk(NamedTuple):
    """Some inputs and their vectors, in the order of the inputs."""

    names: list[str]
    """Each input as a line; "" for a blank one."""
    features: list[np.ndarray | None]
    """float32 (D,); None for a blank input."""


class Written(NamedTuple):
    """The size of a file of features."""

    inputs: int
    dim: int


Write = Callable[[Chunk], None]


def output_files(path: Path) -> list[Path]:
    """Return the files that `write_features` writes. Raises GlocalError for another ending than .npy and .parquet."""
    if path.suffix not in ENDINGS:
        raise GlocalError(f"{path} was given for the features; expected a name that ends in {' or '.join(ENDINGS)}")
    return [path, path.with_suffix(".inputs.txt")] if path.suffix == ".npy" else [path]


def write_features(path: Path, chunks: Iterable[Chunk]) -> Written:
    """Write features chunk by chunk, with one chunk in memory, and return their number and their dimension D.

    A .npy file holds float32 (N, D), with a row of NaN for a blank input; OUT.inputs.txt beside it holds the inputs,
    one a line, in which control characters are escaped. A .parquet file has the columns `input` and `features`, a list
    of float32 or null, and a row group for each chunk. The files appear once they are complete. Raises GlocalError
    where all inputs are blank.
    """
    files = output_files(path)
    inputs, dim = 0, 0
    with ExitStack() as stack:
        drafts = [stack.enter_context(replacing(file)) for file in files]
        write = stack.enter_context(npy_writer(*drafts) if path.suffix == ".npy" else parquet_writer(*drafts))
        for chunk in chunks:
            inputs += len(chunk.names)
            dim = next((len(vector) for vector in chunk.features if vector is not None), dim)
            write(chunk)
        if not dim:
            raise GlocalError(f"no features for {path}: all {inputs} inputs are blank; give a text or an image")
    return Written(inputs, dim)


@contextmanager
def npy_writer(array: Path, names: Path) -> Iterator[Write]:
    """Return a function that appends a chunk; the number of rows is written into the header at the end."""
    rows, dim = 0, 0
    with array.open("wb") as file, names.open("w", encoding="utf-8", newline="\n") as lines:

        def write_header() -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
            npy.write_array_header_1_0(file, header)  # it is padded, so that a larger number of rows fits later

        def write(chunk: Chunk) -> None:
            nonlocal rows, dim
            found = next((vector for vector in chunk.features if vector is not None), None)
            if not dim and found is not None:
                dim = len(found)
                write_header()
                file.write(np.full((rows, dim), np.nan, "<f4").tobytes())  # the blank inputs so far
            rows += len(chunk.features)
            if dim:
                blank = np.full(dim, np.nan)
                stacked = np.stack([blank if vector is None else vector for vector in chunk.features])
                file.write(stacked.astype("<f4").tobytes())
            lines.writelines(f"{printable(name)}\n" for name in chunk.names)

        yield write
        file.seek(0)
        write_header()


@contextmanager
def parquet_writer(path: Path) -> Iterator[Write]:
    """Return a function that appends a chunk as a row group."""
    schema = pyarrow.schema({"input": pyarrow.string(), "features": pyarrow.list_(pyarrow.float32())})
    with parquet.ParquetWriter(path, schema) as writer:

        def write(chunk: Chunk) -> None:
            writer.write_table(pyarrow.table([chunk.names, chunk.features], schema=schema))

        yield write
