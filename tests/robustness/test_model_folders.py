"""Damaged and foreign model folders: each is a model that works, or one GlocalError, soon and in little memory.

Every case takes a folder of a tiny model, changes one of its files by a seed (see `mutate`), and then loads it, and
gives it one input, in a process of its own. `python tests/robustness/test_model_folders.py 10000 PATTERN 1000`
runs the 1,001st to the 10,000th of those whose models' folders match a pattern (* is all of them).
"""

import json
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from string import ascii_lowercase

import mutate
import pytest

CASES = 1000
SECONDS, BYTES = 20, 2 * 10**9
CHECKPOINT = "glit_tiny.pth.tar"
"""What GLiT's authors call a file whose tensors are all that describes the model."""


def mutate_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """Damage a file of tensors, or change some of them as other models and versions have them: names, shapes, types."""
    import torch

    if rng.random() < 0.3:
        return mutate.mutate_bytes(content, rng)
    holder = torch.load(BytesIO(content), weights_only=True)
    state = holder["model"]
    for _ in range(rng.choice((1, 1, 2, 5))):
        name, other = rng.choice(list(state)), rng.choice(list(state))
        tensor = state[name]
        action = rng.choice(
            ("drop", "rename", "block", "swap", "axis", "flat", "cut", "grow", "empty", "type", "value")
        )
        if not isinstance(tensor, torch.Tensor):  # what an earlier turn has put there
            continue
        if action == "drop":
            del state[name]
        elif action == "rename":
            state[rng.choice(("module." + name, name.upper(), "", name + ".x", "blocks.x." + name))] = state.pop(name)
        elif action == "block":
            number = rng.choice(("0", "1", "7", "-1", "x", str(10**30)))
            state[re.sub(r"blocks\.\d", f"blocks.{number}", name)] = state.pop(name)
        elif action == "swap":
            state[name], state[other] = state[other], tensor
        elif action == "axis":
            state[name] = rng.choice(
                (tensor[None], tensor.squeeze(), tensor.mT if tensor.ndim > 1 else tensor[..., None])
            )
        elif action == "flat":
            state[name] = tensor.flatten()
        elif action in ("cut", "grow") and tensor.ndim:
            axis = rng.randrange(tensor.ndim)
            size = tensor.shape[axis]
            kept = range(size - 1) if action == "cut" else [*range(size), *range(size)]
            state[name] = tensor.index_select(axis, torch.tensor(list(kept), dtype=torch.long))
        elif action == "empty":
            state[name] = tensor.new_zeros(rng.choice(((0,), (0, 0), (0, *tensor.shape), (*tensor.shape, 0), ())))
        elif action == "type":
            kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64)
            state[name] = tensor.to(rng.choice(kinds))
        elif action == "value":
            state[name] = rng.choice((None, 1, [1.0], {}, "text", torch.tensor(float("nan")).expand(10**6, 10**6)))
    written = BytesIO()
    torch.save(rng.choice((holder, holder, state, {"model": {}}, list(state.items()))), written)
    return written.getvalue()


MUTATIONS = {
    ".json": mutate.of_text(mutate.mutate_json_text),
    ".txt": mutate.of_text(mutate.mutate_text),
    ".tar": mutate_checkpoint,
}
"""By a file's ending; any other file is changed byte by byte."""


def build(folder: Path) -> None:
    """Write tiny models of every family, head and layout."""
    import torch
    from safetensors.torch import load_file, save_file

    from glocal.data import Subwords, Tokenizer, TokenizerConfig, learn_tokenizer
    from glocal.export.exporter import export
    from glocal.models import create_model

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
    write_checkpoint(folder / "authors" / CHECKPOINT)
    (folder / "arch").mkdir()
    blocks = json.loads((folder / "glit" / "config.json").read_text())["config"]["blocks"]
    (folder / "arch" / "arch.json").write_text(json.dumps({"blocks": blocks}))


def write_checkpoint(file: Path) -> None:
    """Write a tiny GLiT in the layout of its authors, whose heads are 64 wide."""
    import torch

    from glocal.interop.glit import HEAD_DIM, RENAMED
    from glocal.layers.block import BlockConfig
    from glocal.models import GLiT, ViTConfig

    blocks = tuple(
        BlockConfig(2 * HEAD_DIM, 2, heads, kernel_size=3, expand_ratio=1, mlp_ratio=1.0) for heads in (0, 1, 2)
    )
    model = GLiT(ViTConfig((16, 16), num_classes=3, patch_size=8, blocks=blocks))
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in RENAMED:
            if ours in name:
                name = name.replace(ours, theirs)
                break
        if name == "patch_embed.proj.weight":
            tensor = tensor.unflatten(1, (3, 8, 8))
        elif name.endswith(".conv.weight"):
            tensor = tensor.squeeze(2)
        elif ".net." in name and tensor.ndim == 2:
            tensor = tensor.unsqueeze(2)
        state[re.sub(r"^(blocks\.\d)", r"\1.0", name)] = tensor
    file.parent.mkdir()
    torch.save({"model": state}, file)


def sentencepieces(folder: Path) -> list[str]:
    """Write source.spm and target.spm of a few letters, and return their pieces as Marian's list has them."""
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
    import torch

    import glocal
    from glocal.models.loading import meta_device

    if (folder / "arch.json").exists():
        with meta_device():
            glocal.create_model("glit-tiny", arch=str(folder / "arch.json"))
        return
    if (file := folder / CHECKPOINT).exists():  # it does not say how images are prepared
        model = glocal.load_model(file).eval()
        model(torch.zeros(1, model.config.in_chans, *model.config.image_size))
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


def cases(models: Path, count: int, wanted: str, first: int) -> Iterator[tuple[int, Path]]:
    """Return the seed and the file of each case: every file of every model, or of those wanted, in turn."""
    files = sorted(file for file in models.glob(f"{wanted}/*") if file.is_file())
    for seed in range(first, count):
        yield seed, files[seed % len(files)]


def campaign(count: int, wanted: str = "*", first: int = 0) -> tuple[Counter[str], list[str]]:
    """Run cases; return how many ended in which way, and a report of each that ended in no good one."""
    ended: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        models, damaged = Path(place, "models"), Path(place, "damaged")
        models.mkdir()
        build(models)
        worker = Worker()
        for folder in sorted(models.iterdir()):  # each works as it is; the first also imports everything
            assert (end := worker.use(folder, 120)) == "works", f"{folder}: {end}"
        for seed, file in cases(models, count, wanted, first):
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(file.parent, damaged)
            mutation = MUTATIONS.get(file.suffix, mutate.mutate_bytes)
            (damaged / file.name).write_bytes(mutation(file.read_bytes(), random.Random(seed)))
            end = worker.use(damaged, SECONDS)
            ended[end if end in ("works", "refused") else "bad"] += 1
            if seed % 500 == 499 and count > CASES:
                print(f"{seed + 1} cases: {dict(ended)}", flush=True)
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
    count, wanted, first, *_ = [*sys.argv[1:], *["*", "0"][len(sys.argv) - 2 :]]
    print(dict(campaign(int(count), wanted, int(first))[0]))
