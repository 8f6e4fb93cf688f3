"""From a trained model to answers, explanations and reports.

Beside what is named here stand `figures`, `page` (an HTML report) and `explain` (attention maps), imported by name.
"""

from pathlib import Path

from glocal.data.text import Tokenizer
from glocal.errors import GlocalError
from glocal.inference.cost import count
from glocal.inference.decoding import DecodingConfig, Hypothesis, generate
from glocal.inference.predictor import Predictor, find_images
from glocal.inference.translator import Precision, Translation, Translator
from glocal.layers.fused import pack
from glocal.models import load_model
from glocal.models.generative import EncoderDecoder
from glocal.models.pretrained import find_folder

__all__ = [
    "DecodingConfig",
    "Hypothesis",
    "Predictor",
    "Translation",
    "Translator",
    "count",
    "find_images",
    "generate",
    "load",
]


def load(source: str | Path, device: str | None = None, precision: Precision = "float32") -> Predictor | Translator:
    """Open the model of a finished run, or a folder that a model was saved to, in any layout that models read.

    What has an encoder and a decoder becomes a Translator, what sees images a Predictor, always in float32. Without
    `device` it goes to the machine's accelerator if there is one. Raises GlocalError where there is no such folder or
    no model.
    """
    model = load_model(source)
    if isinstance(model, EncoderDecoder):
        translator = Translator(model, Tokenizer.load(find_folder(source)), device, precision)
        pack(translator.model)
        return translator
    if precision != "float32":
        raise GlocalError(f"precision {precision} for a {type(model).__name__}; images are answered in float32 alone")
    return Predictor(model, device)
