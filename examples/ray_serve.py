"""A model as a deployment of Ray Serve, with the HTTP API of `glocal serve`.

serve run ray_serve:app run=/models/reviews          # in this folder
"""

from pathlib import Path

from ray import serve

import glocal


def app(args: dict[str, str]) -> serve.Application:
    """Return the deployment of `args["run"]`; Ray starts replicas of it while requests wait, up to four."""
    run = args["run"]

    @serve.deployment(
        max_ongoing_requests=256,
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32},
    )
    @serve.ingress(lambda: glocal.serve.create_app({Path(run).name: glocal.load(run, precision="auto")}))
    class Model:
        """A replica: the model, and the API in front of it."""

    bound: serve.Application = Model.bind()  # type: ignore[attr-defined]  # Ray's decorators give a deployment
    return bound
