"""From whatever a file holds to an upright 8-bit image, grey or RGB."""

from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from glocal.errors import GlocalError

Encoded = str | Path | bytes | np.ndarray | Image.Image
"""An image as a source holds it: a file's path, a file's bytes, or pixels already decoded."""


def open_image(source: Encoded, channels: int = 3, name: str = "") -> Image.Image:
    """Decode one image to mode RGB (`channels` 3) or L (1), turned as its EXIF orientation says.

    `source` is a path, the bytes of a file, an array (H, W), (H, W, 1) or (H, W, 3) of uint8, or a PIL image.
    Transparent parts become white; 16-bit greys keep their upper 8 bits. Raises GlocalError, with `name` or the path,
    where it is empty, broken or no image.
    """
    try:
        with _opened(source) as image:
            upright = image if isinstance(source, np.ndarray) else ImageOps.exif_transpose(image)
            return _convert(upright, "RGB" if channels == 3 else "L")
    # A damaged file makes PIL's readers raise nearly anything: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        name = name or (str(source) if isinstance(source, (str, Path)) else "the image")
        raise GlocalError(f"{name} cannot be read as an image: {_reason(source, error)}") from None


def pixel_count(source: Encoded) -> int:
    """Return height times width, read from a file's header alone; 0 where there is none."""
    try:
        with _opened(source) as image:
            return image.width * image.height
    except Exception:
        return 0


def _opened(source: Encoded) -> AbstractContextManager[Image.Image]:
    """Open a file, to be closed on leaving; what is no file is left as it is."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, np.ndarray):
        return nullcontext(Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source))
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # 16 bits; PIL alone would clip at 255 where the file's mode is I
        wide = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((wide >> 8).astype(np.uint8))
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
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is unknown, or its beginning is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
