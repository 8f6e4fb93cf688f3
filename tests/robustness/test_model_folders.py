"""Damaged and foreign model folders: each is a model that works, or one GlocalError, soon and in little memory.

Every case takes a folder of a tiny model, changes one of its files by a seed (see `mutate`), and then loads it, and
gives it one input, in a process of its own. `python tests/robustness/test_model_folders.py 10000` runs more of them.
"""

import json
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from string import ascii_lowercase

import mutate
import pytest

CASES = 1000
SECONDS, BYTES = 20, 2 * 10**9
MUTATIONS = {
    ".json": mutate.of_text(mutate.mutate_json_text),
    ".txt": mutate.of_text(mutate.mutate_text),
}
"""By a file's ending; any other file is changed byte by byte."""


def build(folder: Path) -> None:
    """Write tiny models of every family, head and layout."""
    import torch
    from safetensors.torch import load_file, save_file

    from glocal.data import Subwords, Tokenizer, TokenizerConfig, learn_tokenizer
    from glocal.models import create_model
    from glocal.runner import export

    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    images = shape | {"image_size": 16, "patch_size": 8, "num_classes": 3}
    mixed = {"embed_dim": 12, "num_heads": 3, "local_heads": 1, "kernel_size": 3, "image_size": 16, "num_classes": 3}
    signs = [*ascii_lowercase, *(f"##{sign}" for sign in ascii_lowercase)]
    bert_words = folder / "words"
    bert_words.mkdir()
    (bert_words / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs]) + "\n")
    words = Tokenizer.load(bert_words)
    byte_level = learn_tokenizer(["a"], TokenizerConfig(kind="byte-bpe", vocab_size=259))
    pairs = Subwords.train(["a b", "c d"], "bpe", 262)
    texts = shape | {"max_length": 32}
    models = {
        "vit": (create_model("vit-tiny", **images), None),
        "deit": (create_model("deit-tiny-distilled", **images), None),
        "glit": (create_model("glit-tiny", **mixed), None),
        "timm": (create_model("timm:resnet10t", num_classes=3), None),
        "transformer": (create_model("transformer-tiny", **texts, vocab_size=pairs.vocab_size), pairs),
        "lstm": (create_model("lstm-tiny", vocab_size=pairs.vocab_size, embed_dim=16, hidden_dim=8), pairs),
        "gpt2": (create_model("gpt2", **texts, vocab_size=257, pad_id=None, bos_id=0, eos_id=0), byte_level),
        "gpt1": (create_model("gpt", **texts, vocab_size=257), byte_level),
        **{
            head: (create_model("bert-tiny", **texts, head=head, vocab_size=words.vocab_size), words)
            for head in ("pretraining", "classification", "tagging", "spans")
        },
    }
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(folder / name)
        if tokenizer is not None:
            tokenizer.save(folder / name)
        for layout in ("transformers", "timm"):
            if name not in ("glit", "timm", "lstm") and (layout == "transformers" or name in ("vit", "deit")):
                export(folder / name, folder / f"{name}-{layout}", layout)
    state = load_file(folder / "classification" / "model.safetensors")
    for name, archive in (("archive", True), ("pickle", False)):
        shutil.copytree(folder / "classification", folder / name)
        (folder / name / "model.safetensors").unlink()
        torch.save({"state_dict": state}, folder / name / "model.pth", _use_new_zipfile_serialization=archive)
    shutil.copytree(folder / "classification", folder / "shards")
    (folder / "shards" / "model.safetensors").unlink()
    places = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(state)}
    for file in set(places.values()):
        save_file({name: state[name] for name in state if places[name] == file}, folder / "shards" / file)
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    shutil.copytree(folder / "classification", folder / "vocab")
    for file in (folder / "vocab").glob("tokenizer*"):
        file.unlink()
    shutil.copy(bert_words / "vocab.txt", folder / "vocab")
    shutil.rmtree(bert_words)
    shutil.copytree(folder / "gpt2", folder / "merges")
    for file in (folder / "merges").glob("tokenizer*"):
        file.unlink()
    inner = json.loads((folder / "gpt2" / "tokenizer.json").read_text())["model"]
    (folder / "merges" / "vocab.json").write_text(json.dumps(inner["vocab"]))
    (folder / "merges" / "merges.txt").write_text("#version: 0.2\n")
    opus = folder / "transformer-transformers"
    shutil.copytree(opus, folder / "marian")
    for file in (folder / "marian").glob("tokenizer*"):
        file.unlink()
    pieces = sentencepieces(folder / "marian")
    values = json.loads((opus / "config.json").read_text())
    assert len(pieces) <= values["vocab_size"]
    (folder / "marian" / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "arch").mkdir()
    blocks = json.loads((folder / "glit" / "config.json").read_text())["config"]["blocks"]
    (folder / "arch" / "arch.json").write_text(json.dumps({"blocks": blocks}))


def sentencepieces(folder: Path) -> list[str]:
    """Write source.spm and target.spm of a few letters, and return their pieces as Marian's list has them."""
    from io import BytesIO

    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    written = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c", "d e f"] * 20), model_writer=written, vocab_size=10, minloglevel=2
    )
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(written.getvalue())
    inner = SentencePieceProcessor(model_proto=written.getvalue())
    return ["</s>", "<unk>", "<pad>", *(inner.id_to_piece(i) for i in range(3, inner.get_piece_size()))]


def use(folder: Path) -> None:
    """Load a model and give it one input; of an architecture's file, plan the model that it describes."""
    import numpy as np

    import glocal
    from glocal.models.pretrained import planning

    if (folder / "arch.json").exists():
        with planning():
            glocal.create_model("glit-tiny", arch=str(folder / "arch.json"))
        return
    predictor = glocal.load(folder, "cpu")
    inputs = {
        "ImageClassifier": np.zeros((20, 16, 3), np.uint8),
        "FillMask": "a [MASK] b",
        "QuestionAnswerer": [("a", "b c")],
    }
    predictor.predict(inputs.get(type(predictor).__name__, "a b"))


def work(pipe: Connection) -> None:
    """Use the folders that come through a pipe, and say how each ended."""
    import warnings

    import torch

    from glocal.errors import GlocalError

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    while folder := pipe.recv():
        ends = "works"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            use(Path(folder))
        except GlocalError as error:
            ends = "refused" if "\n" not in str(error) else f"several lines: {error}"
        except BaseException:
            ends = traceback.format_exc()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        pipe.send(f"took {grown:,} bytes" if grown > BYTES else ends)


class Worker:
    """A process that uses folders, and is started again where one has hung or ended it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def use(self, folder: Path, seconds: float) -> str:
        self.pipe.send(str(folder))
        try:
            if self.pipe.poll(seconds):
                return str(self.pipe.recv())
            ends = f"took more than {seconds} s"
        except EOFError:
            self.process.join()
            ends = f"ended the process with {self.process.exitcode}"
        self.process.kill()
        self.start()
        return ends


def cases(models: Path, count: int) -> Iterator[tuple[int, Path]]:
    """Return the seed and the file of each case: every file of every model in turn."""
    files = sorted(file for file in models.rglob("*") if file.is_file())
    for seed in range(count):
        yield seed, files[seed % len(files)]


def campaign(count: int) -> tuple[Counter[str], list[str]]:
    """Run cases; return how many ended in which way, and a report of each that ended in no good one."""
    ended: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        models, damaged = Path(place, "models"), Path(place, "damaged")
        models.mkdir()
        build(models)
        worker = Worker()
        for folder in sorted(models.iterdir()):  # each works as it is; the first also imports everything
            assert worker.use(folder, 120) == "works", folder
        for seed, file in cases(models, count):
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(file.parent, damaged)
            mutation = MUTATIONS.get(file.suffix, mutate.mutate_bytes)
            (damaged / file.name).write_bytes(mutation(file.read_bytes(), random.Random(seed)))
            end = worker.use(damaged, SECONDS)
            ended[end if end in ("works", "refused") else "bad"] += 1
            if end not in ("works", "refused"):
                bad.append(f"case {seed}, {file.relative_to(models)}: {end}")
                if len(sys.argv) > 1 and sys.argv[0] == __file__:
                    print(bad[-1], flush=True)
        worker.pipe.send("")
        worker.process.join(5)
    return ended, bad


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mutated_folders_are_models_or_one_line(capsys):
    ended, bad = campaign(CASES)
    with capsys.disabled():
        print(f"{CASES} mutated model folders: {dict(ended)}")
    assert not bad, "\n".join(bad[:10])


if __name__ == "__main__":
    print(dict(campaign(int(sys.argv[1]))[0]))
