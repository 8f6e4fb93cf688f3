"""The whole way, from a recipe to answers, on the command line as a user goes it."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import glocal
from glocal.cli import main
from glocal.errors import GlocalError, shortened, showable
from glocal.recipes import load_recipe
from glocal.training import RunFolder

SMALL = [
    "--model.name=vit-tiny",
    "--model.embed_dim=32",
    "--model.depth=2",
    "--model.num_heads=2",
    "--model.patch_size=4",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "vit"
    main(["train", "vit-digits", *SMALL, "--train.epochs=6", f"--run.dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "zero.png"
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(path)
    return path


def test_a_run_folder_is_whole(run):
    for name in (
        "recipe.yaml",
        "splits.json",
        "metrics.jsonl",
        "report.json",
        "checkpoints/last.pt",
        "model/config.json",
    ):
        assert (run / name).is_file()
    report = RunFolder(run).read_report()
    assert report["val"]["top1"] > 0.3  # ten classes
    assert report["parameters"] == sum(p.numel() for p in glocal.load(run).model.parameters())


def test_test_measures_the_test_split(run, capsys):
    main(["test", str(run)])
    report = RunFolder(run).read_report()["test"]
    assert report["examples"] == 359
    assert np.sum(report["confusion"]) == 359
    assert np.trace(report["confusion"]) / 359 == pytest.approx(report["top1"])
    assert f"top1 {report['top1']:.2%}" in capsys.readouterr().out


def test_predict_and_explain(run, photo, tmp_path, capsys):
    main(["predict", str(run), str(photo), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["input"] == str(photo)
    assert len(answer["labels"]) == 5
    for extra in ([], ["--heads"], ["--layer", "1"], ["--layer", "0", "--head", "1"]):
        figure = tmp_path / f"figure{len(extra)}{''.join(extra)}.png"
        main(["explain", str(run), str(photo), "-o", str(figure), *extra])
        assert figure.read_bytes()[:4] == b"\x89PNG"


def test_fine_tuning_keeps_the_backbone_and_resizes_the_positions(run, tmp_path):
    folder = tmp_path / "finetuned"
    fields = ["--train.epochs=1", "--train.tune=head", f"--run.dir={folder}"]
    main(["train", "vit-digits-finetune", "--from", str(run), *fields])
    before, after = (load_file(path / "model" / "model.safetensors") for path in (run, folder))
    assert after["pos_embed"].shape[1] == 1 + (24 // 4) ** 2
    assert torch.equal(before["blocks.1.mlp.fc1.weight"], after["blocks.1.mlp.fc1.weight"])
    assert not torch.equal(before["head.classifier.weight"], after["head.classifier.weight"])


def test_a_student_learns_from_a_run_of_ours(run, tmp_path):
    fields = ["--model.distilled=true", "--task.distillation=hard", f"--task.teacher={run}", "--train.epochs=1"]
    main(["train", "vit-digits", *SMALL, *fields, f"--run.dir={tmp_path / 'student'}"])
    assert glocal.load(tmp_path / "student").model.num_prefix_tokens == 2


def test_baselines_run_in_the_same_loop(tmp_path):
    fields = [
        "--model.name=timm:resnet10t",
        "--train.epochs=1",
        "--train.precision=float32",
        f"--run.dir={tmp_path / 'resnet'}",
    ]
    main(["train", "vit-digits", *fields])
    assert glocal.test(tmp_path / "resnet")["examples"] == 359


def test_info_and_list(run, capsys):
    main(["info", "deit-tiny"])
    out = capsys.readouterr().out
    assert "5,717,416" in out
    assert "formula" not in out
    main(["info", "glit-tiny"])
    out = capsys.readouterr().out
    assert "1,472,873,280" in out
    assert "1,332,470,592" in out
    main(["list"])
    out = capsys.readouterr().out
    assert "deit-tiny-distilled" in out
    assert "transformer-numbers-en-vi    Train a small Transformer" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no recipe was given"),
        (["train", "vit-digit"], "did you mean"),
        (["train", "vit-digits", "--data", "no/such/folder"], "no/such/folder"),
        (["train", "vit-digits", "--model.deph=3"], "depth"),
        (["train", "--resume", "no-run"], "not a run folder"),
        (["test", "no-run"], "not a run folder"),
        (["info", "deit-tinny"], "deit-tiny"),
        (["info", "[/]"], "unknown model '[/]'"),
        (["info", "deit-tiny", "--image-size", "-1"], "expected a whole number of 1 or more"),
        (["predict", "no-run", "x", "--top", "0"], "expected a whole number of 1 or more"),
        (["predict", "\udcff", "x"], "not UTF-8"),
        (["predict", "a\0b", "x"], "NUL"),
        (["train", "--fields"], "lists the fields of a recipe"),
        (["train", "vit-digits", "--resume", "no-run"], "give no recipe"),
        (["frain"], "invalid choice"),
    ],
)
def test_errors_are_one_line_and_exit_with_two(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert error.startswith("glocal: ")
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("command", [["train", "vit-digits"], ["search", "glit-digits"], ["train", "bert-sst2"]])
def test_fields_are_listed_with_the_recipes_values_and_a_sentence_each(command, capsys):
    main([*command, "--train.lr=0.25", "--fields"])
    lines = capsys.readouterr().out.splitlines()
    fields = [place for place, line in enumerate(lines) if line.startswith("  --")]
    assert all(lines[place + 1].startswith("      ") for place in fields), "a field has no sentence"
    assert "  --train.lr 0.25   (float)" in lines
    batch_size = load_recipe(command[1]).train.batch_size
    assert f"  --train.batch_size {batch_size}   (int)" in lines
    assert any(line.startswith("  --search.") for line in lines) == (command[0] == "search")
    if command[1] == "vit-digits":
        assert "  --model.depth 4   (int)" in lines
        assert "  --model.norm pre   (pre or post)" in lines


def test_a_run_says_what_it_does_and_what_to_type_next(tmp_path, capsys):
    folder = tmp_path / "my run"
    main(["train", "vit-digits", *SMALL, "--train.epochs=2", "--data.test_fraction=0", f"--run.dir={folder}"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "glocal train vit-digits ..."
    assert "data: digits: 1,527 images to train on, 270 to validate, 0 to test, in 10 classes" in said
    assert "model: a ViT, vit-tiny with fresh weights" in said
    kept = RunFolder(folder).read_report()["val"]["epoch"]
    assert any(line.startswith(f"best epoch {kept:g} kept: val ") for line in said)
    assert said[-2:] == [f"next: glocal test '{folder}' --data SOURCE", f"      glocal predict '{folder}' INPUT"]
    main(["train", "--resume", str(folder)])
    assert f"{folder} is finished; there is nothing left to train" in capsys.readouterr().out
    with pytest.raises(GlocalError, match="has no test split"):
        glocal.test(folder)


def test_a_closed_pipe_is_no_error():
    """As in `glocal list | head -1`."""
    command = f"{sys.executable} -m glocal list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert done.returncode in (0, 141)  # 0 where all fitted into the pipe before it was closed


def test_names_at_the_top(run):
    for name in glocal.__all__:
        assert hasattr(glocal, name), name
    assert callable(glocal.search)
    with pytest.raises(GlocalError, match="no recipe 'no'"):
        glocal.search("no")
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        glocal.serach  # noqa: B018
    assert repr(glocal.load(run, device="cpu")) == "ImageClassifier(ViT, 16 × 16 pixels, 10 classes, float32 on cpu)"


def test_what_is_printed_cannot_control_a_terminal():
    error = GlocalError("a \x1b[31mclass\nin two lines \u202e \udcff [/] $$")
    assert str(error) == r"a \x1b[31mclass in two lines \u202e \udcff [/] $$"
    assert shortened("x" * 99, 9) == "xxxx…xxxx"
    assert showable("two\tand\nlines\r\x1b[2J") == "two\tand\nlines" + r"\r\x1b[2J"


def test_a_folder_in_which_nothing_began_is_taken_away_but_not_what_was_there_before(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").write_text("mine")
    for name in ("new", "old"):
        with pytest.raises(GlocalError, match="unknown field 'deph'"):
            glocal.train("vit-digits", {"model.deph": 3, "run.dir": str(tmp_path / name)})
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "notes.txt").read_text() == "mine"


def test_a_folder_in_which_training_broke_off_is_kept(tmp_path):
    run = tmp_path / "run"
    steep = {"train.lr": 1e20, "train.schedule.warmup_epochs": 0, "train.precision": "float32", "train.epochs": 1}
    with pytest.raises(GlocalError, match="the loss is"):
        glocal.train("vit-digits", steep | {"run.dir": str(run)})
    assert (run / "recipe.yaml").exists()


def test_an_output_that_cannot_be_written_is_one_line(run, photo, tmp_path, capsys):
    (tmp_path / "file").touch()
    for words in (
        ["export", str(run), "--to", "timm", "-o", str(tmp_path / "file")],
        ["explain", str(run), str(photo), "-o", str(tmp_path / "file" / "look.png")],
        ["explain", str(run), str(photo), "-o", str(tmp_path / "look.txt")],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert str(tmp_path) in error[-1]
        assert "Traceback" not in error[0]


def test_ctrl_c_is_one_line_and_exits_with_130(capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("glocal.cli.list.run", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "glocal: stopped\n"


def test_import_and_help_load_no_torch():
    for code in ("import glocal", "import glocal.cli; glocal.cli.build_parser().format_help()"):
        loaded = f"import sys; {code}; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"


def rank_main(rank, port, folder, commands):
    """What torchrun would start, with what it says in a file."""
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    PartialState._reset_state()
    with (folder / f"said{rank}.txt").open("w") as sys.stdout:
        for words in commands:
            main(words)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_ranks_train_one_run_and_test_it(tmp_path, capsys):
    folder = str(tmp_path / "run")
    words = ["train", "vit-digits", *SMALL, "--train.steps=2", "--train.batch_size=8", f"--run.dir={folder}"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=rank_main, args=(rank, port, tmp_path, [words, ["test", folder]])) for rank in ("0", "1")
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(240)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert not (tmp_path / "said1.txt").read_text()
    report = RunFolder(folder).read_report()
    assert report["processes"] == 2
    capsys.readouterr()
    main(["test", folder])
    assert capsys.readouterr().out in (tmp_path / "said0.txt").read_text()
    assert RunFolder(folder).read_report()["test"]["loss"] == pytest.approx(report["test"]["loss"], abs=1e-5)
