"""The clients of benchmarks/serving.py count what is answered, what is wrong and what fails."""

import asyncio
import os

from loads import Load, place
from serving import Address, overhead, press
from tiny_server import predictors, running, write_models


def test_clients_count_answers(tmp_path):
    write_models(tmp_path)
    reviews = predictors(tmp_path)["reviews"]
    texts = ["John", "New York", "Hà Nội"]
    right = [reviews.to_json(result) for result in reviews.predict(texts)]
    wrong = [[{"label": "bad", "probability": 2.0}] * 3] * 3
    bodies = [{"input": text} for text in texts]
    load = Load("reviews", texts, "/v1/reviews/predict", bodies, lambda *_: right, place("results", 0, "labels"))
    failing = Load("none", texts, "/v1/none/predict", bodies, lambda *_: right, place("results", 0, "labels"))
    with running({"reviews": reviews}) as url:
        at = Address("127.0.0.1", int(url.rpartition(":")[2]), 0)
        good = asyncio.run(press(at, load, right, clients=3, seconds=0.3))
        assert good.answers > 0
        assert good.wrong == good.failed == 0
        bad = asyncio.run(press(at, load, wrong, clients=3, seconds=0.3))
        assert bad.wrong == bad.answers > 0
        lost = asyncio.run(press(at, failing, right, clients=3, seconds=0.3))
        assert lost.failed == lost.answers > 0
        core = min(os.sched_getaffinity(0))
        assert abs(asyncio.run(overhead(at, load, core, 3))) < 10_000
