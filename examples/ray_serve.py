"""A model as a deployment of Ray Serve, with the HTTP API of `glocal serve`.

serve run ray_serve:app run=/models/reviews          # in this folder
"""

from pathlib import Path

from ray import serve

import glocal


class Model:
    """A replica: the model, and the API in front of it."""


def app(args: dict[str, str]) -> serve.Application:
    """Return the deployment of `args["run"]`; Ray starts replicas of it while requests wait, up to four."""
    run = args["run"]
    api = serve.ingress(lambda: glocal.serve.create_app({Path(run).name: glocal.load(run)}))
    scale = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32}
    return serve.deployment(api(Model), max_ongoing_requests=256, autoscaling_config=scale).bind()
