"""`glocal push` uploads what it has listed, after a yes, to a hub on loopback."""

import os
import subprocess
import sys

import fake_hub
import pytest

from glocal.errors import GlocalError
from glocal.export.hub import push


@pytest.fixture
def hub():
    with fake_hub.serve() as hub:
        yield hub


@pytest.fixture
def run(tiny_vit, tmp_path):
    tiny_vit.labels = ["a", "b", "c", "d", "e"]
    tiny_vit.save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


def glocal(hub, home, *words, answer="", token=fake_hub.TOKEN):
    """Run a command in a process of its own, since huggingface_hub reads its settings when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | ({"HF_TOKEN": token} if token else {})
    if not token:
        environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-m", "glocal", "push", *map(str, words)]
    return subprocess.run(command, env=environment, input=answer, capture_output=True, text=True, check=False)


def test_it_lists_asks_and_uploads_privately(hub, run, tmp_path):
    done = glocal(hub, tmp_path, run, "owner/mine", answer="y\n")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["owner/mine"]
    assert repository["private"]
    assert set(repository["files"]) == {"README.md", "config.json", "model.safetensors"}
    for name, content in repository["files"].items():
        assert f"{name}" in done.stdout
        assert f"{len(content):,} bytes" in done.stdout
    assert "its owners alone see it" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(f"{hub.address}/owner/mine/commit/{'1' * 40}")
    assert repository["files"]["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert repository["message"] == "glocal push --to glocal"

    again = glocal(hub, tmp_path, run, "owner/mine", "--to", "timm", "--yes")
    assert again.returncode == 0, again.stderr
    assert "exists; files of these names are replaced" in again.stdout
    assert b"library_name: timm" in repository["files"]["README.md"]


def test_nothing_is_uploaded_without_a_yes(hub, run, tmp_path):
    for answer, code, said in (("n\n", 0, "nothing was uploaded"), ("\n", 0, "nothing was uploaded"), ("", 2, "--yes")):
        done = glocal(hub, tmp_path, run, "owner/mine", answer=answer)
        assert done.returncode == code
        assert said in done.stdout + done.stderr
    assert hub.repositories == {}
    assert {request.split()[0] for request in hub.requests} == {"GET"}


def test_a_public_repository_needs_the_word(hub, run, tmp_path):
    hub.repositories["owner/seen"] = {"private": False, "files": {}}
    done = glocal(hub, tmp_path, run, "owner/seen", "--yes")
    assert done.returncode == 2
    assert "owner/seen exists, and everyone sees it; give --public" in done.stderr
    assert hub.repositories["owner/seen"]["files"] == {}
    done = glocal(hub, tmp_path, run, "owner/seen", "--yes", "--public")
    assert done.returncode == 0, done.stderr
    assert "EVERYONE sees it" in done.stdout
    assert hub.repositories["owner/seen"]["files"]


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("owner/mine", None, "no token for the hub was found; run `hf auth login`, or set HF_TOKEN"),
        ("owner/mine", "hf_wrong", "the hub refuses the token for owner/mine"),
        ("others/theirs", fake_hub.TOKEN, "the hub refuses the token for others/theirs"),
        ("mine", fake_hub.TOKEN, "repository 'mine'; expected OWNER/NAME"),
    ],
)
def test_a_refusal_is_one_line(hub, run, tmp_path, name, token, said):
    done = glocal(hub, tmp_path, run, name, "--yes", token=token)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert hub.repositories == {}


def test_offline_it_says_so(run, monkeypatch):
    monkeypatch.setattr("glocal.export.hub.get_token", lambda: "some")
    with pytest.raises(GlocalError, match=r"nothing was uploaded to owner/mine: .*offline"):
        push(run, "owner/mine")
