"""Models in the layouts of others: what each format takes, how it is written, and a card that says what it is.

A format is a module of this package with a `FORMAT`; `FORMATS` is the only list of them. `glocal.export.hub` uploads
one. The package can be called: `glocal.export(run, folder, "onnx")` is `glocal.export.exporter.export`.
"""

from glocal.modules import make_callable

__all__ = ["FORMATS"]

FORMATS = ("glocal", "transformers", "timm", "onnx", "gguf", "ctranslate2")
"""The names of the formats, which are those of their modules."""

make_callable(__name__, "glocal.export.exporter", "export")
