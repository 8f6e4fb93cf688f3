"""Every mode of image ends as the same colours, upright, in RGB or L."""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from glocal.data import open_image
from glocal.data.decoding import pixel_count
from glocal.errors import GlocalError

ORANGE = (240, 120, 40)


def encode(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orange(mode: str) -> Image.Image:
    return Image.new("RGB", (8, 6), ORANGE).convert(mode, palette=Image.Palette.ADAPTIVE)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("CMYK", "tiff"),
        ("CMYK", "jpeg"),
        ("YCbCr", "jpeg"),
        ("P", "gif"),
    ],
)
def test_colours_survive(mode, kind):
    image = open_image(encode(orange(mode), kind))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.array(image.getpixel((3, 3))) - ORANGE).max() <= 8


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA"])
def test_grey_out(mode):
    image = open_image(encode(Image.new("L", (8, 6), 255).convert(mode)), channels=1)
    assert (image.mode, image.getpixel((0, 0))) == ("L", 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_16_bits_keep_their_range(dtype):
    ramp = np.linspace(0, 65535, 6, dtype=dtype).reshape(2, 3)
    kind = "png" if dtype == np.uint16 else "tiff"
    assert np.asarray(open_image(encode(Image.fromarray(ramp), kind), 1)).tolist() == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize("greys", [(0, 65536), (-1, 65535), (0, 2**31 - 1)])
def test_more_than_16_bits_are_refused(greys):
    content = encode(Image.fromarray(np.array([greys], np.int32)), "tiff")
    with pytest.raises(GlocalError, match=rf"its greys are from {greys[0]} to {greys[1]}; expected 0 to 65535"):
        open_image(content)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    assert open_image(encode(image, **options)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_grey_or_colour_is_white(channels):
    colour, grey, deep = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 90, np.uint8), np.full((4, 4), 30000, np.uint16)
    colour[:2], grey[:2], deep[:2] = (200, 0, 0), 7, 0
    for pixels, transparent, opaque in ((colour, (200, 0, 0), 0), (grey, 7, 90), (deep, 0, 117)):
        image = open_image(encode(Image.fromarray(pixels), transparency=transparent), channels)
        assert {value for pixel in np.asarray(image).reshape(16, -1)[:8] for value in pixel} == {255}
        assert {value for pixel in np.asarray(image).reshape(16, -1)[8:] for value in pixel} == {opaque}


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_grey_of_few_bits(bits):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0))
    row = bytes([0, 1 << (8 - bits)])  # after the filter, a pixel of 1 and one of 0
    parts = header, chunk(b"tRNS", b"\0\1"), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")
    image = open_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts), 1)
    assert np.asarray(image).tolist() == [[255, 0]]


def test_half_transparent_is_blended():
    assert open_image(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 51)))).getpixel((0, 0)) == (204, 204, 204)


def test_exif_rotation():
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: what is left comes to the top
    upright = open_image(encode(image, "jpeg", exif=exif, quality=95))
    assert upright.size == (4, 8)
    assert upright.getpixel((2, 1))[0] > 200
    assert upright.getpixel((2, 6))[0] < 50


def test_every_form_of_input(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    path = tmp_path / "image.png"
    image.save(path)
    for source in (array, image, path, str(path), path.read_bytes()):
        assert np.array_equal(np.asarray(open_image(source)), array)
        assert pixel_count(source if not isinstance(source, bytes) else encode(image)) == 35
    assert open_image(array[..., :1], channels=1).size == (7, 5)
    assert open_image(array[..., 0]).mode == "RGB"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "its format is unknown"),
        (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "tiff"), "its pixels are fractions"),
        (b"no image at all", "its format is unknown, or its beginning is damaged"),
        (encode(Image.effect_noise((64, 64), 90), "jpeg")[:1500], "truncated"),
        (encode(Image.effect_noise((64, 64), 90), "png")[:1500], "truncated"),
    ],
)
def test_broken_files_are_named(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for source, name in ((path, str(path)), (content, "image 3 of pets")):
        with pytest.raises(GlocalError) as caught:
            open_image(source, name="" if source is path else name)
        assert str(caught.value).startswith(f"{name} cannot be read as an image: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_image_too_large_is_named(monkeypatch):
    monkeypatch.setattr("glocal.data.decoding.MAX_PIXELS", 20)
    with pytest.raises(GlocalError, match=r"photo cannot be read as an image: it has 7 x 3 pixels; expected 1 to 20"):
        open_image(encode(Image.new("L", (7, 3))), name="photo")


def test_a_large_image_brings_no_warning_and_a_larger_one_a_line(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    photo = encode(Image.new("L", (7, 5)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert (open_image(photo).size, pixel_count(photo)) == ((7, 5), 35)
    assert not said
    with pytest.raises(GlocalError, match=r"^photo cannot be read as an image: it has too many pixels; expected 1 to"):
        open_image(encode(Image.new("L", (7, 6))), name="photo")


@pytest.mark.parametrize("size", [(201, 1), (0, 4)])
def test_an_image_too_narrow_is_named(size):
    with pytest.raises(GlocalError, match=rf"it has {size[0]} x {size[1]} pixels; expected"):
        open_image(Image.new("L", size))


def test_missing_file(tmp_path):
    with pytest.raises(GlocalError, match=r"none.png cannot be read as an image: no such file"):
        open_image(tmp_path / "none.png")
    assert pixel_count(str(tmp_path / "none.png")) == 0
