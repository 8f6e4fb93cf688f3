"""The search for an architecture: space, cost, supernet, evaluator, evolution, journal and stages.

The package can be called: `glocal.search("glit-digits")` is `glocal.runner.search_run`.
"""

from glocal.modules import make_callable

make_callable(__name__, "glocal.runner", "search")
