"""A model as a Ray Serve deployment, with the HTTP API of `glocal serve`.

serve run examples.ray_serve:app run=runs/reviews
"""

from pathlib import Path

from ray import serve

import glocal


def application(run: str) -> FastAPI:
    """Return the API of one model, called as its folder."""
    return create_app({Path(run).name: glocal.load(run, precision="auto")})


def app(args: dict[str, str]) -> serve.Application:
    """Return the deployment that `serve run` starts: Ray adds replicas while requests wait."""
    ingress = serve.ingress(lambda: application(args["run"]))
    scale = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32}
    return serve.deployment(autoscaling_config=scale, max_ongoing_requests=256)(ingress(type("Model", (), {}))).bind()
