"""The deployment of examples/ray_serve.py answers as `predict` does."""

import pytest
from tiny_server import predictors, write_models


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_ray_deployment_answers_as_predict(tmp_path):
    pytest.importorskip("ray")
    import httpx
    from ray import serve
    from ray_serve import app

    write_models(tmp_path)
    predictor = predictors(tmp_path)["stars"]
    try:
        serve.run(app({"run": str(tmp_path / "stars")}))
        answer = httpx.post("http://127.0.0.1:8000/v1/stars/predict", json={"input": "John lives"}, timeout=60)
        assert answer.json()["results"] == [{"score": pytest.approx(predictor.predict("John lives")[0], abs=1e-5)}]
        assert httpx.post("http://127.0.0.1:8000/v1/stars/predict", json={"input": 5}).status_code == 400
    finally:
        serve.shutdown()
