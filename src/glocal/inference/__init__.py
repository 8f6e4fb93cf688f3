"""From a trained model to answers, explanations and reports.

Beside what is named here stand `figures`, `page` (an HTML report) and `explain` (attention maps), imported by name.
"""

from glocal.inference.cost import count
from glocal.inference.predictor import Predictor, find_images, load

__all__ = ["Predictor", "count", "find_images", "load"]
