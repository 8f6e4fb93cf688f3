"""A recipe in, a run folder out: training, testing and searching, for any task."""

from glocal.runner.run import resume, summary, test, train
from glocal.runner.search_run import search

__all__ = ["resume", "search", "summary", "test", "train"]
