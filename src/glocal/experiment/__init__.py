"""Recipe in, run folder out: where a model, its data, its task and the loop meet.

Every kind of job has a file, which fits the three to each other; `run` trains and tests any of them.
"""

from glocal.experiment.architecture import search
from glocal.experiment.run import resume, summary, test, train

__all__ = ["resume", "search", "summary", "test", "train"]
