"""Decoding of small data sets at the start, so that epochs only augment."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from glocal.data.decoding import open_image, pixel_count
from glocal.data.image_source import Source
from glocal.data.progress import progress
from glocal.errors import GlocalError

LIMIT = 512 * 2**20
"""Largest size of a decoded data set in memory, in bytes."""


def hold(source: Source, wanted: np.ndarray, channels: int, on_error: str) -> tuple[Source, list[int]]:
    """Return the source with its `wanted` images decoded, if these fit into memory, and the broken images.

    Images that do not fit stay encoded. They are decoded here only if `on_error` is `skip`, to find the broken ones
    before the splits are cut. With `raise`, the first broken image raises GlocalError.
    """
    if isinstance(source.items, np.ndarray):  # already decoded
        return source, []
    some = wanted[:: max(1, len(wanted) // 256)].tolist()
    expected = channels * len(wanted) * sum(pixel_count(source.items[index]) for index in some) / len(some)
    if expected > LIMIT and on_error == "raise":
        return source, []
    pixels = [np.empty((0, 0), dtype=np.uint8)] * len(source.items)
    broken: list[int] = []

    def decode(indices: np.ndarray) -> None:
        for index in indices.tolist():
            try:
                image = open_image(source.items[index], channels, source.describe(index))
                if expected <= LIMIT:
                    pixels[index] = np.asarray(image)
            except GlocalError:
                if on_error == "raise":
                    raise
                broken.append(index)

    # PIL decodes outside of the interpreter's lock, so that threads run in parallel; chunks reduce their overhead.
    chunks = np.array_split(wanted, math.ceil(len(wanted) / 64))
    with ThreadPoolExecutor() as pool:
        done = pool.map(decode, chunks)
        for _ in progress(done, "Reading images", len(chunks)):
            pass
    return (replace(source, items=pixels) if expected <= LIMIT else source), sorted(broken)
