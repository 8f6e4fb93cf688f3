"""Decoding of files and arrays to upright 8-bit images, grey or RGB."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from glocal.data.files import files_below
from glocal.errors import GlocalError

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Formats that are read. PIL reads more, some of them by starting other programs."""
UNREAD = frozenset((".heic", ".heif", ".jxl", ".svg", ".psd", ".eps", ".exr", ".hdr", ".dcm", ".raw", ".dng", ".cr2",
                    ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"))  # fmt: skip
"""Endings of images that are not read."""
MAX_PIXELS = 2**27
"""Pixels of the largest image that is read; decoding one takes 1 to 2 GiB."""
NARROWEST = 200
"""Largest ratio of an image's sides; models are given the shorter one whole."""
LOW_BITS = {"1": 255, "L;2": 85, "L;4": 17}
"""The factors by which PIL multiplies the greys of a PNG of fewer than 8 bits."""

_ALONE = Lock()
"""Held while a thread opens a file, because filters of warnings are shared by all threads."""

ImageLike = str | Path | Image.Image | np.ndarray
"""A file's path, a PIL image, or pixels: uint8, (H, W), (H, W, 1) or (H, W, 3)."""
Encoded = ImageLike | bytes
"""An image as a source holds it, also as the bytes of a file."""


def open_image(source: Encoded, channels: int = 3, name: str = "") -> Image.Image:
    """Decode one image to mode RGB (`channels` 3) or L (1), rotated as its EXIF orientation says.

    `source` is a path, the bytes of a file, an array (H, W), (H, W, 1) or (H, W, 3) of uint8, or a PIL image.
    Transparent parts become white; 16-bit greys keep their upper 8 bits. Raises GlocalError, with `name` or the path,
    where it is empty, broken, too large or no image.
    """
    with _errors_of(source, name), _opened(source) as image:
        _check_size(image.width, image.height)
        _scale_transparency(image)
        upright = image if isinstance(source, np.ndarray) else ImageOps.exif_transpose(image)
        return _convert(upright, "RGB" if channels == 3 else "L")


def open_header(content: bytes) -> Image.Image:
    """Return the image of a file's bytes, of which only the header was read: its size is known, its pixels are not.

    `open_image` decodes it. Raises GlocalError if it is too large or no image.
    """
    with _errors_of(content):
        image = _open_file(content)
        _check_size(image.width, image.height)
        return image


@contextmanager
def _errors_of(source: Encoded, name: str = "") -> Iterator[None]:
    """Turn whatever PIL raises into one GlocalError, with `name` or the path.

    A damaged file makes its readers raise nearly anything: OSError, SyntaxError, ValueError, struct.error ...
    """
    try:
        yield
    except Exception as error:
        name = name or (str(source) if isinstance(source, (str, Path)) else "the image")
        raise GlocalError(f"{name} cannot be read as an image: {_reason(source, error)}") from None


def pixel_count(source: Encoded) -> int:
    """Return height times width, from a file's header alone; 0 where it cannot be read."""
    try:
        with _opened(source) as image:
            return image.width * image.height
    except Exception:
        return 0


def _opened(source: Encoded) -> AbstractContextManager[Image.Image]:
    """Open an image; a file is closed on leaving the block."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, np.ndarray):
        return nullcontext(Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source))
    return _open_file(source)


def _open_file(source: str | Path | bytes) -> Image.Image:
    """Read the header of a file in one of the formats that are read."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` decides which size is too large
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the endings of images, in small letters."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as an image's."""
    return Path(name).suffix.lower() in image_suffixes()


def images_below(folder: str | Path, left_out: Counter[str]) -> list[str]:
    """Return the images in and below a folder, and count images of other formats by their endings."""

    def is_read(name: str) -> bool:
        if (ending := Path(name).suffix.lower()) in UNREAD:
            left_out[ending] += 1
        return is_image_name(name)

    return list(files_below(folder, is_read))


def warn_of_unread(name: str, left_out: Counter[str]) -> None:
    """Warn of images that `images_below` counted."""
    if left_out:
        found = ", ".join(f"{count} {ending}" for ending, count in sorted(left_out.items()))
        warnings.warn(f"{name}: {found} left out, which are not read; save them as PNG or JPEG", stacklevel=3)


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels; expected 1 to {MAX_PIXELS:,}")
    if max(width, height) > NARROWEST * min(width, height):
        raise ValueError(f"it has {width} x {height} pixels; expected a side of up to {NARROWEST} times the other")


def _scale_transparency(image: Image.Image) -> None:
    """Scale the transparent grey or colour of a PNG to 8 bits, as PIL has scaled its pixels."""
    transparent, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or image.mode not in ("1", "L", "RGB") or not tiles:
        return
    kind = str(tiles[0][3])
    if isinstance(transparent, int):
        image.info["transparency"] = transparent * LOW_BITS.get(kind, 1)
    elif isinstance(transparent, tuple) and kind.startswith("RGB;16"):
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode == "F":
        raise ValueError("its pixels are fractions; save it with 8 or 16 bits a channel")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode.startswith("I"):  # 16 bits; PIL alone would clip at 255 where the file's mode is I
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"its greys are from {wide.min()} to {wide.max()}; expected 0 to 65535, 16 bits")
        transparent = wide == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(transparent, 255, wide >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _reason(source: Encoded, error: Exception) -> str:
    size = len(source) if isinstance(source, bytes) else None
    if isinstance(source, (str, Path)) and Path(source).is_file():
        size = Path(source).stat().st_size
    if size == 0:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        return "its format is unknown, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has too many pixels; expected 1 to {MAX_PIXELS:,}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
