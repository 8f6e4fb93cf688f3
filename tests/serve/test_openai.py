"""OpenAI's own client against a server of ours: completions, streams, embeddings, errors."""

import threading
import time

import httpx
import numpy as np
import openai
import pytest
from tiny_server import picture, predictors, running, write_models

from glocal.generation import ContinuousBatch, DecodingConfig

PROMPTS = ["John Smith", "Where does he live ?", "He", "far from Hà Nội"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return predictors(root)


@pytest.fixture(scope="module")
def url(models):
    with running(models, max_tokens=60) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def texts_of(predictor, prompt, **decoding):
    (result,) = predictor.predict(prompt, DecodingConfig(**decoding))
    return [text for text, _ in result.nbest]


def test_a_greedy_completion_is_that_of_predict(client, models):
    for prompt in PROMPTS:
        done = client.completions.create(model="writer", prompt=prompt, temperature=0, max_tokens=30)
        (choice,) = done.choices
        assert [choice.text] == texts_of(models["writer"], prompt, extra_length=30)
        ids = models["writer"].encode_prompts(prompt)[0]
        assert done.usage.prompt_tokens == len(ids)
        assert done.usage.total_tokens == len(ids) + done.usage.completion_tokens
        assert choice.finish_reason in ("stop", "length")
        assert (choice.finish_reason == "length") == (done.usage.completion_tokens == 30)


def test_samples_are_those_of_generate(client, models):
    options = {"temperature": 0.9, "top_p": 0.8, "seed": 5}
    done = client.completions.create(model="writer", prompt=PROMPTS, max_tokens=12, n=3, **options)
    assert [choice.index for choice in done.choices] == list(range(12))
    for number, prompt in enumerate(PROMPTS):
        found = {choice.text for choice in done.choices[3 * number : 3 * number + 3]}
        assert found == set(texts_of(models["writer"], prompt, extra_length=12, nbest=3, **options))


def test_without_a_seed_each_request_draws_its_own(client):
    ask = {"model": "writer", "prompt": "He", "max_tokens": 20, "temperature": 1.0}
    assert client.completions.create(**ask).choices[0].text != client.completions.create(**ask).choices[0].text
    seeded = [client.completions.create(**ask, seed=1).choices[0].text for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_a_text_ends_at_a_stop_string(client, models):
    whole = client.completions.create(model="writer", prompt="He", temperature=0, max_tokens=30).choices[0].text
    stop = whole[5:7]
    for stops in (stop, [stop, "never said"]):
        choice = client.completions.create(
            model="writer", prompt="He", temperature=0, max_tokens=30, stop=stops
        ).choices[0]
        assert choice.text == whole[: whole.index(stop)]
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize("stop", [None, ["o", "e "]])
def test_a_stream_is_the_completion_in_pieces(client, stop):
    ask = {"model": "writer", "prompt": PROMPTS, "max_tokens": 20, "temperature": 1.0, "n": 2, "seed": 7, "stop": stop}
    whole = client.completions.create(**ask)
    pieces = list(client.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage
    for choice in whole.choices:
        own = [piece.choices[0] for piece in pieces[:-1] if piece.choices[0].index == choice.index]
        assert "".join(piece.text for piece in own) == choice.text
        assert [piece.finish_reason for piece in own] == [None] * (len(own) - 1) + [choice.finish_reason]
    assert len({piece.id for piece in pieces}) == 1


def test_log_probabilities_are_those_of_the_model(client, models):
    done = client.completions.create(model="writer", prompt="He lives", temperature=0, max_tokens=8, logprobs=2)
    (choice,) = done.choices
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == [len("".join(found.tokens[:n])) for n in range(len(found.tokens))]
    for logprob, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(logprob)  # greedy
        assert len(top) <= 2
    streamed = client.completions.create(
        model="writer", prompt="He lives", temperature=0, max_tokens=8, logprobs=2, stream=True
    )
    assert [token for piece in streamed for token in piece.choices[0].logprobs.tokens] == found.tokens


def test_prompts_may_be_tokens(client, models):
    ids = models["writer"].encode_prompts(PROMPTS[:2])
    given = [client.completions.create(model="writer", prompt=prompt, temperature=0) for prompt in (ids, PROMPTS[:2])]
    assert [choice.text for choice in given[0].choices] == [choice.text for choice in given[1].choices]
    alone = client.completions.create(model="writer", prompt=ids[0], temperature=0)
    assert alone.choices[0].text == given[0].choices[0].text


def test_many_at_once_are_as_each_alone(client, models):
    prompts = [f"{prompt} {number}" for number in range(4) for prompt in PROMPTS]
    found = {}

    def ask(prompt):
        done = client.completions.create(model="writer", prompt=prompt, temperature=0, max_tokens=10 + len(prompt) % 9)
        found[prompt] = done.choices[0].text

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        assert [found[prompt]] == texts_of(models["writer"], prompt, extra_length=10 + len(prompt) % 9)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"model": "writer", "max_tokens": 61}, "61 tokens to generate; expected 60 at most"),
        ({"model": "writer", "max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"model": "writer", "prompt": "x" * 500}, "the model takes 96 tokens"),
        ({"model": "writer", "prompt": []}, "no input was given"),
        ({"model": "writer", "prompt": [5000]}, "each an id of 0 to"),
        ({"model": "writer", "echo": True}, "echo: Input should be False"),
        ({"model": "writer", "presence_penalty": 1.0}, "presence_penalty: Input should be less than or equal to 0"),
        ({"model": "writer", "temperature": -1}, "temperature: Input should be greater than or equal to 0"),
        ({"model": "writer", "stop": [""]}, "strings of a character or more"),
        ({"model": "writer", "stop": [""], "stream": True}, "strings of a character or more"),
        ({"model": "writer", "prompt": "x" * 500, "stream": True}, "the model takes 96 tokens"),
        ({"model": "writer", "n": 200}, "200 inputs were given"),
        ({"model": "reviews"}, "reviews does not continue texts; give /v1/reviews/predict its inputs"),
    ],
)
def test_bad_requests_raise_the_clients_own_error(client, ask, says):
    with pytest.raises((openai.BadRequestError, openai.APIStatusError), match=says) as caught:
        client.completions.create(**{"prompt": "He"} | ask)
    assert caught.value.status_code in (400, 413)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_an_unknown_model_and_a_wrong_token_have_errors_of_their_own(client, models):
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        client.completions.create(model="gpt-9", prompt="He")
    with running({"writer": models["writer"]}, token="s3cret") as url:
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as wrong,
            pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"),
        ):
            wrong.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0) as right:
            assert [model.id for model in right.models.list()] == ["writer"]


def test_defaults_of_the_protocol_may_be_given(client):
    given = {"echo": False, "best_of": 1, "suffix": None, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me"}
    assert client.completions.create(model="writer", prompt="He", **given).choices


@pytest.mark.parametrize("name", ["reviews", "writer", "translator", "tagger"])
def test_embeddings_are_features(client, models, name):
    for inputs in ("John lives here", PROMPTS):
        done = client.embeddings.create(model=name, input=inputs)
        found = np.array([each.embedding for each in done.data])
        given = [inputs] if isinstance(inputs, str) else inputs
        np.testing.assert_allclose(found, models[name].features(given, normalise=True), atol=1e-5)
        assert done.usage.prompt_tokens == sum(len(row["input_ids"]) for row in models[name].encode_texts(given))
        as_floats = client.embeddings.create(model=name, input=inputs, encoding_format="float")
        np.testing.assert_allclose(np.array([each.embedding for each in as_floats.data]), found, atol=1e-6)


def test_embeddings_take_pooling_and_images(client, models, url):
    from base64 import b64encode

    done = client.embeddings.create(
        model="reviews", input="He", extra_body={"pooling": "mean", "normalise": False}, encoding_format="float"
    )
    np.testing.assert_allclose(done.data[0].embedding, models["reviews"].features(["He"], "mean")[0], atol=1e-5)
    image = b64encode(picture()).decode()
    assert len(client.embeddings.create(model="digits", input=image).data) == 1
    with pytest.raises(openai.BadRequestError, match="pooling 'cls' was given for a GPT"):
        client.embeddings.create(model="writer", input="He", extra_body={"pooling": "cls"})
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="reviews", input="He", dimensions=5)


def unfinished(url):
    line = next(line for line in httpx.get(f"{url}/metrics").text.splitlines() if "glocal_queue_length{" in line)
    return float(line.split()[1])


@pytest.fixture
def slowly(monkeypatch):
    """Have each token of a text take some time."""
    step = ContinuousBatch.step

    def slow(batch):
        time.sleep(0.02)
        return step(batch)

    monkeypatch.setattr(ContinuousBatch, "step", slow)


def test_a_client_that_goes_away_ends_its_texts(models, slowly):
    with running({"writer": models["writer"]}) as url:
        body = {"model": "writer", "prompt": "He", "max_tokens": 90, "temperature": 1.0, "n": 50, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            assert unfinished(url) > 0
            del lines  # closes the connection
        end = time.monotonic() + 10
        while unfinished(url):
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=body | {"stream": False}, timeout=0.1)
        while unfinished(url):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_stream_that_takes_too_long_says_so(models, slowly):
    with running({"writer": models["writer"]}, timeout=3) as url:
        body = {"model": "writer", "prompt": "He", "max_tokens": 90, "n": 30, "stream": True, "temperature": 1.0}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        assert "the texts are not finished after 3 s" in lines[-1]
        assert "[DONE]" not in lines[-1]
        assert unfinished(url) == 0
