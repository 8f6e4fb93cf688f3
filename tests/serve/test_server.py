"""`glocal serve` as a process: its names, its token, its end."""

import importlib.util
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml
from tiny_server import write_models

import glocal
from glocal.cli import build_parser, main
from glocal.errors import GlocalError
from glocal.serve import ServeConfig
from glocal.serve.config import read_token
from glocal.serve.served import parse_names


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


def test_names_are_those_of_the_folders_unless_given(tmp_path, monkeypatch):
    run = tmp_path / "vit-digits"
    (run / "model").mkdir(parents=True)
    assert parse_names([str(run), f"best={run}", "owner/bert"]) == {
        "vit-digits": str(run),
        "best": str(run),
        "bert": "owner/bert",
    }
    assert parse_names([str(run / "model")]) == {"vit-digits": str(run / "model")}
    monkeypatch.chdir(run)
    assert parse_names(["."]) == {"vit-digits": "."}
    odd = tmp_path / "a=b"
    odd.mkdir()
    with pytest.raises(GlocalError, match="'a=b' is not a valid model name; give NAME="):
        parse_names([str(odd)])
    assert parse_names([f"x={odd}"]) == {"x": str(odd)}
    with pytest.raises(GlocalError, match="are both called bert; give one another name"):
        parse_names(["owner/bert", "other/bert"])


def test_the_package_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(glocal.serve)) is glocal.serve


def test_a_token_is_one_word(tmp_path):
    file = tmp_path / "token"
    file.write_text(" s3cret\n")
    assert read_token(file) == "s3cret"
    for content in ("", "two words", "é"):
        file.write_text(content)
        with pytest.raises(GlocalError, match="holds no token"):
            read_token(file)
    with pytest.raises(GlocalError, match="cannot be read: No such file"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "70000"], "port is 70000"),
        (["--token-file", "no/such/file"], "--token-file no/such/file cannot be read"),
        (["--max-batch", "0"], "expected a whole number of 1 or more"),
        (["--host", "300.0.0.1"], "give another --port or --host"),
        (["--device", "toaster"], "device 'toaster' is not on this machine"),
    ],
)
def test_the_command_refuses_in_one_line(root, capsys, words, says):
    with pytest.raises(SystemExit) as end:
        main(["serve", str(root / "stars"), *words])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert says in said
    assert len([line for line in said.splitlines() if line.startswith("glocal: ")]) == 1


def test_a_taken_port_is_named(root, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["serve", str(root / "stars"), "--port", str(taken.getsockname()[1])])
    assert "cannot be opened: address already in use; give another --port" in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install(root, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("glocal.serve.config.find_spec", lambda name: None if name == "fastapi" else find_spec(name))
    with pytest.raises(SystemExit):
        main(["serve", str(root / "stars")])
    assert "serving needs fastapi; pip install 'glocal[serve]'" in capsys.readouterr().err


def test_a_signal_under_load_loses_no_answer(root, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    models = [str(root / "stars"), f"gpt={root / 'writer'}"]
    options = ["--port", "0", "--token-file", str(tmp_path / "token"), "--precision", "float32", "--device", "cpu"]
    command = [sys.executable, "-m", "glocal", "serve", *models, *options]
    with (tmp_path / "log").open("w") as log_file:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log_file, text=True)
    lines = [server.stdout.readline() for _ in range(3)]
    assert lines[0].startswith("stars: TextRegressor(BERT")
    assert lines[1].startswith("gpt: TextGenerator(GPT")
    url = re.fullmatch(r"serving at (http://127\.0\.0\.1:\d+); .*\n", lines[2])[1]
    answered, headers, began = [], {"Authorization": "Bearer s3cret"}, threading.Event()

    def ask(path, body):
        while True:
            try:
                answer = httpx.post(url + path, json=body, headers=headers, timeout=120)
            except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
                return  # the server has ended, and took no request
            answered.append((answer.status_code, answer.text))
            began.set()

    sampled = {"model": "gpt", "prompt": "He", "max_tokens": 60, "seed": 1}
    asked = [("/v1/stars/predict", {"inputs": ["John lives"] * 9})] * 4 + [("/v1/completions", sampled)] * 4
    threads = [threading.Thread(target=ask, args=each) for each in asked]
    for thread in threads:
        thread.start()
    assert began.wait(60)
    time.sleep(1)
    server.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    server.communicate(timeout=60)
    log = (tmp_path / "log").read_text()
    assert server.returncode == 0, log
    recorded = [line for line in log.splitlines() if " POST " in line]
    assert all(" 200 " in line for line in recorded), log
    assert len(recorded) == len(answered)
    assert {status for status, _ in answered} == {200}
    assert len({text.partition('"choices"')[2] for _, text in answered}) == 2  # always the same two
    assert "Traceback" not in log


def test_the_compose_file_of_the_docs_runs_commands_that_exist():
    text = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    services = yaml.safe_load(block)["services"]
    assert services["one"] == services["two"]
    args = build_parser().parse_args(services["one"]["command"].split()[1:])
    assert (args.models, args.host, args.port) == (["/runs/reviews"], "0.0.0.0", 8000)
    grace = int(services["one"]["stop_grace_period"].removesuffix("s"))
    assert grace > ServeConfig().timeout
