"""What the HTTP API returns for each task, alone and under load, and how it refuses."""

import asyncio
import json
import logging
import re
import threading
import time
from base64 import b64encode
from io import BytesIO

import httpx
import pytest
from PIL import Image
from tiny_server import INPUTS, picture, predictors, running, write_models

from glocal.data.decoding import open_header
from glocal.errors import GlocalError
from glocal.generation import DecodingConfig
from glocal.page import numbers
from glocal.serve import ServeConfig, create_app
from glocal.tasks import TASKS, task_of


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return predictors(root)


@pytest.fixture(scope="module")
def http(models):
    limits = {"max_text": 2000, "max_inputs": 20, "max_pixels": 10_000, "max_body": 200_000}
    with running(models, **limits) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def rounded(value):
    """Return JSON whose numbers are equal but for the rounding of sums."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return pytest.approx(value, abs=2e-5) if isinstance(value, float) else value


def expected(predictor, inputs, **options):
    """Return what `glocal predict --json` prints for inputs, apart from the inputs themselves."""
    results = predictor.predict([predictor.read_json(each) for each in inputs], **options)
    return [{predictor.json_key: rounded(predictor.to_json(result))} for result in results]


def json_input(name, seed=0):
    return INPUTS[name] or b64encode(picture(seed)).decode()


def refused(response, status, says):
    """Check that a response is one clear line in OpenAI's form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert "\n" not in error["message"]


def test_every_task_is_served(models):
    assert {type(predictor) for predictor in models.values()} >= {
        task.predictor for task in TASKS.values() if task.modality == "text"
    }
    assert task_of(models["digits"].model).name == "image-classification"
    assert task_of(models["writer"].model).name == "causal-lm"


@pytest.mark.parametrize("name", INPUTS)
def test_a_result_is_that_of_predict(http, models, name):
    given = json_input(name)
    one = http.post(f"/v1/{name}/predict", json={"input": given})
    assert one.status_code == 200, one.text
    assert one.json() == {"model": name, "results": expected(models[name], [given])}
    several = http.post(f"/v1/{name}/predict", json={"inputs": [given] * 3})
    assert several.json()["results"] == expected(models[name], [given] * 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"top": 1}),
        ("reviews", {"top": 2}),
        ("topics", {"threshold": 0.2}),
        ("topics", {"top": 2, "threshold": 0.0}),
        ("reader", {"top": 3, "longest": 2, "may_have_none": True, "threshold": -1}),
        ("words", {"top": 2}),
        ("translator", {"decoding": {"beams": 3, "nbest": 2, "extra_length": 5}}),
        ("writer", {"decoding": {"temperature": 0.5, "top_k": 20, "seed": 3, "stop": ["o"]}}),
    ],
)
def test_options_are_those_of_the_task(http, models, name, options):
    given = json_input(name)
    response = http.post(f"/v1/{name}/predict", json={"input": given} | options)
    assert response.status_code == 200, response.text
    if decoding := options.get("decoding"):
        options = {"decoding": DecodingConfig(**{**decoding, "stop": tuple(decoding.get("stop", ()))})}
    assert response.json()["results"] == expected(models[name], [given], **options)


def test_pairs_and_lists_of_words_are_inputs(http, models):
    for name, given in {
        "reviews": ["John lives", "in New York"],
        "tagger": ["John", "lives", "in", "New", "York"],
        "reader": ["Where ?", "in New York"],
    }.items():
        response = http.post(f"/v1/{name}/predict", json={"inputs": [given]})
        assert response.json()["results"] == expected(models[name], [given])


def test_images_come_as_files_too(http, models):
    files = [("file", (f"{seed}.png", picture(seed), "image/png")) for seed in (1, 2)]
    response = http.post("/v1/digits/predict", files=files, data={"top": "2"})
    given = [b64encode(picture(seed)).decode() for seed in (1, 2)]
    assert response.json() == {"model": "digits", "results": expected(models["digits"], given, top=2)}
    url = f"data:image/png;base64,{given[0]}"
    response = http.post("/v1/digits/predict", json={"input": url})
    assert response.json()["results"] == expected(models["digits"], given[:1])
    jpeg = {"file": ("a.jpg", picture(3, kind="JPEG"))}
    assert http.post("/v1/digits/predict", files=jpeg).status_code == 200


def test_results_under_load_are_those_of_requests_alone(http, models):
    texts = [f"{'John lives in New York . ' * (1 + i % 4)}{i}" for i in range(24)]

    async def ask():
        async with httpx.AsyncClient(base_url=http.base_url, timeout=120) as client:
            bodies = [{"input": text} if i % 3 else {"input": [text, "Hà Nội"]} for i, text in enumerate(texts)]
            tasks = [client.post("/v1/reviews/predict", json=body) for body in bodies]
            tasks += [
                client.post("/v1/digits/predict", json={"input": json_input("digits", seed)}) for seed in range(12)
            ]
            return await asyncio.gather(*tasks)

    responses = [response.json()["results"] for response in asyncio.run(ask())]
    for i, (text, results) in enumerate(zip(texts, responses[:24], strict=True)):
        assert results == expected(models["reviews"], [text if i % 3 else [text, "Hà Nội"]])
    for seed, results in enumerate(responses[24:]):
        assert results == expected(models["digits"], [json_input("digits", seed)])
    sizes = [line for line in http.get("/metrics").text.splitlines() if line.startswith("glocal_batch_size_")]
    batches, inputs = (sum(float(line.split()[1]) for line in sizes if kind in line) for kind in ("_count{", "_sum{"))
    assert inputs > 1.5 * batches  # many were computed together


@pytest.mark.parametrize(
    ("name", "body", "status", "says"),
    [
        ("nobody", {"input": "x"}, 404, "no model 'nobody'; expected one of digits, reader"),
        ("reviews", {}, 400, "none of them was given; expected one of input, inputs"),
        ("reviews", {"input": "a", "inputs": ["b"]}, 400, "input and inputs was given"),
        ("reviews", {"inputs": []}, 400, "no input was given"),
        ("reviews", {"input": 5}, 400, "5 was given; expected a text, or a list of two texts"),
        ("reviews", {"inputs": ["a", ["b", "c"]]}, 400, "1 pairs among 2 texts"),
        ("reviews", {"input": "a", "top": 0}, 400, "top 0 was given"),
        ("reviews", {"input": "a", "top": "5"}, 400, "top: Input should be a valid integer"),
        ("reviews", {"input": "a", "topp": 5}, 400, "topp: Extra inputs are not permitted"),
        ("reviews", {"input": "a", "decoding": {}}, 400, "decoding: Extra inputs are not permitted"),
        ("stars", {"input": "a", "top": 2}, 400, "top: Extra inputs"),
        ("translator", {"input": "a", "decoding": {"beam": 2}}, 400, "decoding"),
        ("translator", {"input": "a", "decoding": {"beams": 0}}, 400, "decoding was given beams 0"),
        ("translator", {"input": "a", "decoding": {"beams": 17}}, 400, "17 beams or texts; expected"),
        ("writer", {"input": "a", "decoding": {"extra_length": 10**9}}, 400, "1000000000 tokens to generate"),
        ("words", {"input": "no mask"}, 400, "no word of 'no mask' is masked"),
        ("reader", {"input": "no context"}, 400, 'expected {"question": a text'),
        ("reader", {"input": {"question": "a", "context": "b", "x": 1}}, 400, 'expected {"question": a text'),
        ("digits", {"input": "/etc/passwd"}, 400, "expected the bytes of an image file"),
        ("digits", {"input": "http://127.0.0.1/a.png"}, 400, "expected the bytes of an image file"),
        ("digits", {"input": b64encode(b"no image").decode()}, 400, "cannot be read as an image"),
        ("digits", {"input": b64encode(picture()[:60]).decode()}, 400, "cannot be read as an image"),
        ("digits", {"input": b64encode(picture(size=(101, 100))).decode()}, 413, "100 x 101 pixels"),
        ("reviews", {"input": "a" * 2001}, 413, "2,001 characters"),
        ("tagger", {"input": [""] * 3000}, 413, "2,999 characters"),
        ("reviews", {"inputs": ["a"] * 21}, 413, "21 inputs were given; expected 20"),
        ("reviews", {"input": "a" * 200_001}, 413, "more than 200,000 bytes"),
    ],
)
def test_bad_input_is_refused_in_one_line(http, name, body, status, says):
    refused(http.post(f"/v1/{name}/predict", json=body), status, says)


@pytest.mark.parametrize(
    ("content", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "Invalid JSON"),
        (b"[]", "application/json", 400, "Input should be an object"),
        (b"", "application/json", 400, "Invalid JSON"),
        (b"[" * 100_000, "application/json", 400, "Invalid JSON"),
        (b'{"input": "\\ud800"}', "application/json", 400, "Invalid JSON"),
        (b'{"input": "a", "top": 1e999}', "application/json", 400, "top"),
        (b'{"input": "a", "top": ' + b"9" * 5000 + b"}", "application/json", 400, ""),
        (b'{"input": "a"}', "text/plain", 415, "the Content-Type is text/plain; give application/json"),
        (b"x", "multipart/form-data", 400, "boundary"),
        (b"x", "multipart/form-data; boundary=y", 400, ""),
    ],
)
def test_bodies_that_are_no_requests_are_refused(http, content, kind, status, says):
    response = http.post("/v1/reviews/predict", content=content, headers={"Content-Type": kind})
    refused(response, status, says)


def test_a_file_is_no_text_and_a_form_without_one_may_be_a_request(http, models):
    refused(
        http.post("/v1/reviews/predict", files={"file": b"abc"}), 400, "a file of 3 bytes was given; expected a text"
    )
    form = http.post("/v1/reviews/predict", files={"input": (None, "John lives"), "top": (None, "1")})
    assert form.json()["results"] == expected(models["reviews"], ["John lives"], top=1)


def test_other_paths_and_methods_are_refused(http):
    refused(http.get("/nothing"), 404, "Not Found")
    refused(http.get("/v1/reviews/predict"), 405, "Method Not Allowed")
    assert http.get("/docs").status_code == 404


def test_models_health_and_openapi(http, models):
    listed = {each["id"]: each for each in http.get("/v1/models").json()["data"]}
    assert set(listed) == set(models)
    assert listed["reader"]["task"] == "question-answering"
    assert listed["reader"]["options"] == ["top", "longest", "may_have_none", "threshold"]
    assert listed["digits"]["labels"] == ["bad", "fair", "good"]
    assert http.get("/v1/models/stars").json() == listed["stars"]
    assert http.get("/health").json() == {"status": "ok"}
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/{model}/predict", "/v1/completions", "/v1/embeddings", "/v1/models", "/metrics"} <= set(paths)
    schema = json.dumps(paths["/v1/{model}/predict"])
    assert "may_have_none" in schema
    assert "multipart/form-data" in schema


def test_the_page_and_its_numbers(http, models):
    index = http.get("/")
    assert index.status_code == 200
    assert index.headers["content-type"].startswith("text/html")
    for name in re.findall(r'(?:src|href)="([\w.]+)"', index.text):
        assert http.get(f"/{name}").status_code == 200
    assert http.get("/main.js").headers["content-type"].partition(";")[0] in (
        "text/javascript",
        "application/javascript",
    )
    refused(http.get("/..%2fwrite.py"), 404, "Not Found")
    refused(http.get("/write.py"), 404, "Not Found")
    payload = {"text": "John lives", "parts": ["result"]}
    response = http.post("/v1/reviews/look", json=payload)
    assert response.status_code == 200, response.text
    assert response.json() == rounded(json.loads(json.dumps(numbers(models["reviews"], payload))))
    image = {"image": json_input("digits"), "parts": ["result"]}
    assert http.post("/v1/digits/look", json=image).status_code == 200
    refused(http.post("/v1/reviews/look", json={}), 400, "text")
    refused(http.post("/v1/reviews/look", json={"text": "a" * 2001}), 413, "2,001 characters")
    refused(http.post("/v1/digits/look", json={"image": "/etc/passwd"}), 400, "expected the bytes of an image file")
    large = b64encode(picture(size=(101, 100))).decode()
    refused(http.post("/v1/digits/look", json={"image": large}), 413, "100 x 101 pixels")


def test_metrics_count_requests_by_model_and_status(http):
    def count(line):
        found = [each.split()[1] for each in http.get("/metrics").text.splitlines() if each.startswith(line)]
        return float(found[0]) if found else 0.0

    right = 'glocal_requests_total{model="stars",route="/v1/{model}/predict",status="200"}'
    wrong = 'glocal_requests_total{model="stars",route="/v1/{model}/predict",status="400"}'
    latency = 'glocal_request_seconds_count{model="stars",route="/v1/{model}/predict"}'
    before = count(right), count(wrong), count(latency)
    http.post("/v1/stars/predict", json={"input": "a"})
    http.post("/v1/stars/predict", json={"input": "a", "top": 1})
    assert (count(right), count(wrong), count(latency)) == (before[0] + 1, before[1] + 1, before[2] + 2)
    assert 'glocal_queue_length{model="stars"} 0.0' in http.get("/metrics").text


def test_a_log_line_has_no_content(models, caplog):
    with caplog.at_level(logging.INFO, "glocal.serve"), running({"reviews": models["reviews"]}) as url:
        httpx.post(f"{url}/v1/reviews/predict", json={"inputs": ["secret one", "secret two"]})
        httpx.post(f"{url}/v1/secret/predict", json={"input": "secret three"})
        httpx.get(f"{url}/secret?secret=1")
    # the server of the other tests may log its last request only now, from its own thread
    lines = [record.getMessage() for record in caplog.records if record.threadName == url]
    assert len(lines) == 3
    assert lines[0].startswith("POST /v1/{model}/predict reviews 200 ")
    assert lines[0].endswith(" ms 2 inputs")
    assert "secret" not in "".join(lines)


def test_the_token_opens_everything_but_health(models):
    with running({"reviews": models["reviews"]}, token="s3cret") as url:
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            for path in ("/v1/models", "/metrics"):
                refused(httpx.get(url + path, headers=headers), 401, "the token is missing or wrong")
            refused(httpx.post(f"{url}/v1/reviews/predict", json={"input": "a"}, headers=headers), 401, "token")
        for path in ("/health", "/", "/main.js"):
            assert httpx.get(url + path).status_code == 200
        right = {"Authorization": "Bearer s3cret"}
        assert httpx.post(f"{url}/v1/reviews/predict", json={"input": "a"}, headers=right).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200


class Slow:
    """Holds up a predictor until a test lets it go on."""

    def __init__(self, predictor, monkeypatch):
        self.began, self.may_end, self.seen = threading.Event(), threading.Event(), []
        inner = predictor.predict

        def predict(inputs, *args, **options):
            self.seen += inputs
            self.began.set()
            assert self.may_end.wait(20)
            return inner(inputs, *args, **options)

        monkeypatch.setattr(predictor, "predict", predict)


def post_in_thread(url, body, answers):
    thread = threading.Thread(target=lambda: answers.append(httpx.post(url, json=body, timeout=120)))
    thread.start()
    return thread


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_says_when_to_come_again(models, monkeypatch):
    with running({"stars": models["stars"]}, max_queue=1) as url:
        slow = Slow(models["stars"], monkeypatch)
        answers, path = [], f"{url}/v1/stars/predict"
        threads = [post_in_thread(path, {"input": "one"}, answers)]
        slow.began.wait(10)
        threads.append(post_in_thread(path, {"input": "two"}, answers))
        wait_until(lambda: 'queue_length{model="stars"} 1.0' in httpx.get(f"{url}/metrics").text)
        third = httpx.post(path, json={"input": "three"})
        refused(third, 503, "1 requests are waiting for this model")
        assert third.headers["Retry-After"] == "1"
        slow.may_end.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]


def test_a_request_that_takes_too_long_ends(models, monkeypatch):
    with running({"stars": models["stars"]}, timeout=0.3) as url:
        slow = Slow(models["stars"], monkeypatch)
        refused(httpx.post(f"{url}/v1/stars/predict", json={"input": "one"}), 504, "no result after 0.3 s")
        slow.may_end.set()
        assert httpx.post(f"{url}/v1/stars/predict", json={"input": "two"}).status_code == 200


def test_a_body_that_does_not_come_ends(models):
    with running({"stars": models["stars"]}, timeout=0.3) as url:

        def body():
            yield b'{"input": '
            time.sleep(1)
            yield b'"a"}'

        response = httpx.post(f"{url}/v1/stars/predict", content=body(), headers={"Content-Type": "application/json"})
        refused(response, 408, "the body did not come within 0.3 s")


def test_a_body_of_unknown_size_is_limited_too(models):
    with running({"stars": models["stars"]}, max_body=1000) as url:
        chunks = (b"x" * 100 for _ in range(20))
        response = httpx.post(f"{url}/v1/stars/predict", content=chunks, headers={"Content-Type": "application/json"})
        refused(response, 413, "more than 1,000 bytes")


def test_a_client_that_leaves_the_queue_is_not_computed(models, monkeypatch):
    with running({"stars": models["stars"]}) as url:
        slow = Slow(models["stars"], monkeypatch)
        answers, path = [], f"{url}/v1/stars/predict"
        thread = post_in_thread(path, {"input": "one"}, answers)
        slow.began.wait(10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(path, json={"input": "two"}, timeout=0.2)
        wait_until(lambda: 'queue_length{model="stars"} 0.0' in httpx.get(f"{url}/metrics").text)
        slow.may_end.set()
        thread.join()
        assert answers[0].status_code == 200
        assert slow.seen == ["one"]
        assert 'route="/v1/{model}/predict",status="499"} 1.0' in httpx.get(f"{url}/metrics").text


def test_a_fault_of_ours_is_logged_and_not_shown(models, monkeypatch, caplog):
    def fault(*args, **options):
        raise RuntimeError("inner words")

    with running({"stars": models["stars"]}) as url:
        monkeypatch.setattr(models["stars"], "predict", fault)
        refused(httpx.post(f"{url}/v1/stars/predict", json={"input": "a"}), 500, "the server failed; its log says why")
        monkeypatch.undo()
        assert httpx.post(f"{url}/v1/stars/predict", json={"input": "a"}).status_code == 200
    assert "inner words" in caplog.text


def test_a_decompression_bomb_is_not_decoded(http):
    file = BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    assert len(file.getvalue()) < 10_000
    refused(
        http.post("/v1/digits/predict", files={"file": file.getvalue()}), 413, "5000 x 5000 pixels; expected 10,000"
    )
    file = BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    with pytest.raises(GlocalError, match="pixels; expected 1 to"):
        open_header(file.getvalue())


def test_names_are_parts_of_addresses(models):
    with pytest.raises(GlocalError, match="'a/b' is not a valid model name"):
        create_app({"a/b": models["stars"]})
    with pytest.raises(GlocalError, match="no model is given"):
        create_app({})


@pytest.mark.parametrize(
    ("field", "value"), [("port", 70000), ("max_batch", 0), ("max_wait", -1), ("timeout", 0), ("max_tokens", 0)]
)
def test_a_config_is_checked(field, value):
    with pytest.raises(GlocalError, match=f"{field} is"):
        ServeConfig(**{field: value})
