"""The card of an export says what is so, in words that the hub reads too, and names no path of this machine."""

import json
import sys

import pytest
import yaml

from glocal.cli import build_parser
from glocal.errors import GlocalError
from glocal.export import FORMATS
from glocal.export.card import is_hub_id
from glocal.export.exporter import export
from glocal.export.format import find_format
from glocal.models import create_model

RECIPE = """
name: reviews
task: {name: text-classification}
data: {source: /home/someone/secret/reviews.tsv, max_length: 64}
model: {from: google-bert/bert-base-uncased}
train: {epochs: 3}
run: {dir: /home/someone/runs/reviews}
"""


def front_matter(card):
    opening, header, text = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(header), text


@pytest.fixture
def run(speller, tmp_path):
    """The folder of a run whose model classifies texts."""
    fields = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 2, "vocab_size": speller.vocab_size}
    model = create_model("bert-tiny", head="classification", **fields)
    model.labels = ["bad", "good"]
    folder = tmp_path / "reviews"
    model.save_pretrained(folder / "model")
    speller.save(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    test = {"accuracy": 0.91234, "macro_f1": 0.9, "examples": 1234, "confusion": [[1]], "source": "/home/someone/x"}
    (folder / "report.json").write_text(json.dumps({"finished": True, "test": test, "val": {"accuracy": 0.95}}))
    return folder


def test_a_run_s_card(run, tmp_path):
    export(run, tmp_path / "out", "transformers", license="apache-2.0")
    header, text = front_matter((tmp_path / "out" / "README.md").read_text())
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "license": "apache-2.0",
        "metrics": ["accuracy", "f1"],
        "tags": ["glocal", "bert"],
    }
    assert "someone" not in text
    for said in (
        "# reviews\n",
        "| accuracy | 0.9123 |",
        "the test split of 1,234 examples",
        "bad, good",
        "fine-tuned from google-bert/bert-base-uncased",
        "trained on reviews.tsv",
        'AutoModelForSequenceClassification.from_pretrained("FOLDER")',
        "source: reviews.tsv",
        "epochs: 3",
    ):
        assert said in text, said


def test_a_folder_s_card_says_less(tiny_vit, tmp_path):
    tiny_vit.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "out", "timm")
    header, text = front_matter((tmp_path / "out" / "README.md").read_text())
    assert header["license"] == "unknown"
    assert header["pipeline_tag"] == "image-classification"
    assert "metrics" not in header
    assert "## Metrics" not in text
    assert "## Recipe" not in text


def test_data_of_the_hub_are_named(run, tmp_path):
    (run / "recipe.yaml").write_text(RECIPE.replace("/home/someone/secret/reviews.tsv", "stanfordnlp/sst2"))
    (run / "report.json").write_text("{}")
    export(run, tmp_path / "out", "glocal")
    header, text = front_matter((tmp_path / "out" / "README.md").read_text())
    assert header["datasets"] == ["stanfordnlp/sst2"]
    assert "trained on stanfordnlp/sst2." in text
    assert header["library_name"] == "glocal"
    assert "## Metrics" not in text


@pytest.mark.parametrize("source", ["texts/reviews.tsv", "../reviews", "./reviews", "/a/b", "~/reviews", "reviews"])
def test_a_path_is_no_hub_id(source):
    assert not is_hub_id(source)


def test_each_format_is_a_module_with_what_the_command_line_offers():
    for name in FORMATS:
        assert find_format(name).name == name
        args = build_parser().parse_args(["export", "RUN", "--to", name, "-o", "out"])
        assert args.to == name


@pytest.mark.parametrize("to", ["glocal", "transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_lines_that_load_a_result_run(to, run, tmp_path):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    folder = export(run, tmp_path / to, to)
    lines = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(lines.replace("FOLDER", str(folder)), names)
    assert names.keys() >= ({"outputs"} if to == "onnx" else {"model"})


def test_a_missing_package_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(GlocalError, match=r"needs onnxscript, which is missing; pip install 'glocal\[export\]'"):
        export(run, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()


def test_other_files_of_the_folder_stay(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "out" / "README.md").write_text("old")
    (tmp_path / "out" / ".export.tmp").mkdir()  # of an export that was killed
    (tmp_path / "out" / ".export.tmp" / "half.onnx").write_text("half")
    export(run, tmp_path / "out", "glocal")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    assert "old" not in (tmp_path / "out" / "README.md").read_text().splitlines()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "mine.txt", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    with pytest.raises(GlocalError, match=r"mine.txt is a file; give a folder to write"):
        export(run, tmp_path / "out" / "mine.txt", "glocal")
