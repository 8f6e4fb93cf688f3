"""`glocal push` uploads what it has listed, after a yes, to a hub on loopback."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import fake_hub
import pytest
from conftest import TINY, wake

from glocal.errors import GlocalError
from glocal.export.hub import push
from glocal.models import create_model

RUNS = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from glocal.cli import main

ended = []
for words, answer, token in json.load(sys.stdin):
    os.environ.update({"HF_TOKEN": token} if token else {})
    if not token:
        os.environ.pop("HF_TOKEN", None)
    sys.stdin, code = io.StringIO(answer), 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main(["push", *words])
        except SystemExit as end:
            code = end.code
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""
"""Commands in a process of their own: huggingface_hub reads its settings when it is imported."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


CASES = {
    "yes": (["owner/mine"], "y\n", fake_hub.TOKEN),
    "again": (["owner/kept", "--to", "timm", "--yes"], "", fake_hub.TOKEN),
    "no": (["owner/other"], "n\n", fake_hub.TOKEN),
    "return": (["owner/other"], "\n", fake_hub.TOKEN),
    "nobody": (["owner/other"], "", fake_hub.TOKEN),
    "seen": (["owner/seen", "--yes"], "", fake_hub.TOKEN),
    "public": (["owner/shown", "--yes", "--public", "--license", "mit"], "", fake_hub.TOKEN),
    "no token": (["owner/other", "--yes"], "", None),
    "wrong token": (["owner/other", "--yes"], "", "hf_wrong"),
    "other owner": (["others/theirs", "--yes"], "", fake_hub.TOKEN),
    "no owner": (["mine", "--yes"], "", fake_hub.TOKEN),
}
"""Words behind the model, what is typed, and the token."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "ours"
    model = wake(create_model("vit-tiny", **TINY))
    model.labels = ["a", "b", "c", "d", "e"]
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hub_and_ends(model):
    """The hub after all commands, and how each of them ended."""
    with fake_hub.serve() as hub:
        hub.repositories["owner/seen"] = {"private": False, "files": {}}
        hub.repositories["owner/kept"] = {"private": True, "files": {"notes.txt": b"mine", "README.md": b"old"}}
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(model.parent), "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        cases = [([str(model), *words], answer, token) for words, answer, token in CASES.values()]
        done = subprocess.run(
            [sys.executable, "-c", RUNS], env=environment, input=json.dumps(cases), capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return hub, dict(zip(CASES, (Ended(*end) for end in json.loads(done.stdout)), strict=True))


def test_it_lists_asks_and_uploads_privately(hub_and_ends, model):
    hub, ends = hub_and_ends
    assert ends["yes"].code == 0, ends["yes"].err
    repository = hub.repositories["owner/mine"]
    assert repository["private"]
    assert set(repository["files"]) == {"README.md", "config.json", "model.safetensors"}
    weights = repository["files"]["model.safetensors"]
    assert weights == (model / "model.safetensors").read_bytes()
    assert f"model.safetensors  {len(weights):>14,} bytes" in ends["yes"].out
    assert "3 files, " in ends["yes"].out
    assert f"to {hub.address}/owner/mine, which will be made; its owners alone see it" in ends["yes"].out
    assert ends["yes"].out.splitlines()[-1].endswith(f"{hub.address}/owner/mine/commit/{'1' * 40}")


def test_a_repository_that_exists_is_added_to(hub_and_ends):
    hub, ends = hub_and_ends
    assert ends["again"].code == 0, ends["again"].err
    assert "exists; files of these names are replaced; its owners alone see it" in ends["again"].out
    repository = hub.repositories["owner/kept"]
    assert repository["files"]["notes.txt"] == b"mine"
    assert b"library_name: timm" in repository["files"]["README.md"]
    assert repository["message"] == "glocal push --to timm"


def test_nothing_is_uploaded_without_a_yes(hub_and_ends):
    hub, ends = hub_and_ends
    for name in ("no", "return"):
        assert ends[name].code == 0
        assert ends[name].out.endswith("nothing was uploaded\n")
    assert ends["nobody"].code == 2
    assert (
        ends["nobody"].err
        == "glocal: nothing was uploaded: there is no terminal to confirm at; give --yes to upload without asking\n"
    )
    assert "owner/other" not in hub.repositories


def test_a_public_repository_needs_the_word(hub_and_ends):
    hub, ends = hub_and_ends
    assert ends["seen"].code == 2
    assert "owner/seen exists, and everyone sees it; give --public to upload there" in ends["seen"].err
    assert hub.repositories["owner/seen"]["files"] == {}
    assert ends["public"].code == 0, ends["public"].err
    assert "EVERYONE sees it" in ends["public"].out
    assert not hub.repositories["owner/shown"]["private"]
    assert b"license: mit" in hub.repositories["owner/shown"]["files"]["README.md"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no token", "no token for the hub was found; run `hf auth login`, or set HF_TOKEN"),
        ("wrong token", "the hub refuses the token for owner/other: it needs the right to write there"),
        ("other owner", "the hub refuses the token for others/theirs: it needs the right to write there"),
        ("no owner", "repository 'mine'; expected OWNER/NAME"),
    ],
)
def test_a_refusal_is_one_line(hub_and_ends, name, said):
    hub, ends = hub_and_ends
    assert ends[name].code == 2
    assert said in ends[name].err
    assert len(ends[name].err.splitlines()) == 1
    assert not {"owner/other", "others/theirs", "mine"} & hub.repositories.keys()


def test_offline_it_says_so(model, monkeypatch):
    monkeypatch.setattr("glocal.export.hub.get_token", lambda: "some")
    with pytest.raises(GlocalError, match=r"nothing was uploaded to owner/mine: .*offline"):
        push(model, "owner/mine")
