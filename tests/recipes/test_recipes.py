import json
import math
import random

import pytest
import torch
import yaml

from glocal.errors import GlocalError
from glocal.models import create_model
from glocal.models.config import blocks_of
from glocal.recipes import Recipe, list_recipes, load_recipe, read_yaml
from glocal.recipes.fields import list_fields
from glocal.search.budget import Budget
from glocal.search.cost import cost_table
from glocal.search.space import full_space
from glocal.tasks import TASKS

IMAGES = [name for name in list_recipes() if load_recipe(name).spec.modality == "image"]
TEXTS = [name for name in list_recipes() if name not in IMAGES]


@pytest.mark.parametrize("name", TEXTS)
def test_every_shipped_recipe_of_texts_is_whole(name):
    recipe = load_recipe(name)
    recipe.train.check()
    assert TASKS[recipe.task.name] is recipe.spec
    assert (type(recipe.data), type(recipe.task)) == (recipe.spec.data, recipe.spec.config)
    if "from" in recipe.model:  # fine-tuning: what is pre-trained is the user's or the hub's
        assert set(recipe.model) == {"from"}
        return
    tokens = recipe.data if recipe.task.name == "translation" else recipe.data.tokenizer
    with torch.device("meta"):
        model = create_model(**recipe.model, vocab_size=max(tokens.vocab_size, 50257 if "gpt" in name else 0))
    assert recipe.data.max_length <= getattr(model.config, "max_length", math.inf)


@pytest.mark.parametrize("name", IMAGES)
def test_every_shipped_recipe_is_whole(name):
    recipe = load_recipe(name)
    recipe.train.check()
    size = {"image_size": recipe.data.image_size, "in_chans": recipe.data.channels}
    assert create_model(**recipe.model, **size).config.in_chans == recipe.data.channels


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_written_down_reads_back_equal(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("glit-")])
def test_every_shipped_search_is_whole_and_starts_within_its_budget(name):
    recipe = load_recipe(name)
    recipe.search.check()
    size = {"image_size": recipe.data.image_size, "in_chans": recipe.data.channels}
    start = create_model(**recipe.model, **size, num_classes=1000 if "imagenet" in name else 10)
    budget = recipe.search.budget
    assert Budget(cost_table(budget.kind, start), budget.lower, budget.upper).fits(start.config.blocks)


@pytest.mark.parametrize(
    ("name", "vocab_size"), [("gpt-shakespeare-char", 65), ("bert-pydoc", 4000), ("transformer-multi30k", 10000)]
)
def test_every_shipped_search_of_texts_is_whole_and_starts_within_its_budget(name, vocab_size):
    recipe = load_recipe(f"search-{name}")
    recipe.search.check()
    tokens = {"pad_id": 0, "bos_id": 1, "eos_id": 2} if name.startswith("gpt") else {}
    with torch.device("meta"):
        start = create_model(**recipe.model, **tokens, vocab_size=vocab_size)
    limits = recipe.search.budget
    budget = Budget(cost_table(limits.kind, start, limits.tokens or recipe.data.max_length), limits.lower, limits.upper)
    assert budget.fits(blocks_of(start.config))
    path = budget.draw(full_space(blocks_of(start.config), recipe.search.space), random.Random(0))
    assert any(block.local_heads for block in path)


def test_fields_are_overridden_by_their_dotted_names():
    as_words = load_recipe("vit-digits", ["--train.epochs=3", "--model.depth", "6", "--data.image_size", "[8, 16]"])
    as_mapping = load_recipe("vit-digits", {"train.epochs": 3, "model.depth": 6, "data.image_size": [8, 16]})
    assert as_words == as_mapping
    assert (as_words.train.epochs, as_words.model["depth"], as_words.data.image_size) == (3, 6, (8, 16))


def test_a_model_named_by_the_user_comes_alone():
    assert load_recipe("vit-digits", ["--model.name", "timm:resnet18"]).model == {"name": "timm:resnet18"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--train.epoch", "3"], "--train.epoch 3; did you mean --train.epochs"),
        (["--train.epochs", "many"], "many"),
        (["--data.workers", "1.5"], "workers"),
        (["--task.distillation", "firm"], "firm"),
    ],
)
def test_wrong_fields_are_one_line(fields, message):
    with pytest.raises(GlocalError, match=message) as error:
        load_recipe("vit-digits", fields)
    assert "\n" not in str(error.value)


def test_the_nearest_recipe_is_named():
    with pytest.raises(GlocalError, match="did you mean vit-digits"):
        load_recipe("vit-digit")


NINE = "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [", "is not YAML"),
        ("just words", "holds no recipe"),
        ("", "holds no recipe"),
        ("model: vit-tiny", "holds no recipe"),
        ("model: {name: vit-tiny}\ntrain: 5", "holds no recipe"),
        (b"model: {name: \xe9}", "is not YAML.*UTF-8"),
        ("model: " + "[" * 5000, "is not YAML"),
        (f"a0: &a0 [1]\n{NINE}model: {{name: vit-tiny}}", r"has [\d,]+ values, its aliases expanded"),
        ("model: &m {name: vit-tiny, more: *m}", "has inf values"),
        ("model: {name: vit-tiny}\n1: 2", "1"),
        ("model: {name: vit-tiny}\ntask: {name: [1]}", "unknown task"),
        ("model: {name: vit-tiny}\nname: ../../x", "a name that a folder can have"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GlocalError, match=message) as error:
        load_recipe(path, {"model.depth": 3})
    assert "\n" not in str(error.value)


def test_aliases_are_values_like_others(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {name: &size vit-tiny}\nname: *size")
    assert load_recipe(tmp_path / "a.yaml").name == "vit-tiny"


@pytest.mark.parametrize("recipe", ["vit-digits", "transformer-en-vi", "gpt-pydoc"])
@pytest.mark.parametrize("length", ["epochs", "steps", "minutes"])
def test_a_length_takes_the_place_of_the_recipes_own(recipe, length):
    train = load_recipe(recipe, [f"--train.{length}", "60", "--train.average", "0"]).train
    assert {name: getattr(train, name) for name in ("epochs", "steps", "minutes")} == dict.fromkeys(
        ("epochs", "steps", "minutes")
    ) | {length: 60}
    train.check()


@pytest.mark.parametrize(("epochs", "average"), [(2, 2), (10, 10), (90, 10)])
def test_no_more_epochs_are_averaged_than_there_are(epochs, average):
    train = load_recipe("transformer-multi30k", {"train.epochs": epochs}).train
    assert (train.epochs, train.average) == (epochs, average)
    train.check()


WRONG = {
    "train.epochs": [0, -1], "train.batch_size": [0], "train.accumulate": [-1],
    "train.lr": [0, -1.0, math.inf, math.nan],
    "train.optimizer.clip_norm": [-1.0], "train.optimizer.weight_decay": [-0.1], "train.optimizer.eps": [0.0],
    "train.optimizer.betas": [[0.9, 1.0], [-0.1, 0.9]], "train.schedule.warmup_steps": [-1],
    "train.schedule.warmup_epochs": [-1.0], "train.schedule.min_lr": [-1.0, 1e30], "train.ema": [1.0, -0.1],
    "train.seed": [-1, 10**400], "train.save_every": [-1], "train.lora.rank": [0], "train.lora.dropout": [1.0],
    "task.label_smoothing": [5.0, -0.1, math.nan], "task.temperature": [0.0], "task.alpha": [2.0],
    "data.image_size": [0, -8], "data.seed": [-1], "data.workers": [-1], "data.val_fraction": [-0.1, math.nan, 1.0],
    "data.crop_pct": [0.0, 2.0], "data.std": [[0.0, 1.0, 1.0]], "data.augment.flip": [2.0],
    "data.augment.mixup": [-1.0],
    "data.augment.repeats": [0], "search.calibration": [1], "search.retrain": [0], "search.val_fraction": [0.0],
    "search.budget.upper": [-1], "search.space.kernel_size": [[0]], "search.evolution.mutation_rate": [2.0],
    "search.evolution.population": [0],
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_every_field_has_a_range(field, value):
    """It is named as the user gives it, before anything is done."""

    def check() -> None:
        recipe = load_recipe("vit-digits", {field: value})
        recipe.train.check()
        recipe.search.check()

    with pytest.raises(GlocalError, match=field.rpartition(".")[2]) as error:
        check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["x", None, [1], {"a": 1}, 1.5])
def test_a_value_of_another_type_is_one_line(value):
    with pytest.raises(GlocalError, match=r"batch_size"):
        load_recipe("vit-digits", {"train.batch_size": value})


def test_a_recipe_needs_a_model(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 1}")
    with pytest.raises(GlocalError, match="model"):
        load_recipe(tmp_path / "a.yaml")
    assert Recipe.__dataclass_fields__["model"]


WORDS = ["no", "yes", "on", "off", "y", "NO", "12:30", "012", "1_000", "2026-11-28", "0x1f", "1e-4", "true", "~", "5"]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_a_truth_value_or_a_number_by_the_rule_of_yaml_1_2(word, tmp_path):
    plain = {"1e-4": 1e-4, "true": True, "~": None, "5": 5}.get(word, word)
    assert read_yaml(f"[{word}, {{a: {word}}}]") == [plain, {"a": plain}]
    if plain == word:  # a text without quotes: in a list, in a file, and alone
        sections = f"model: {{}}\ntask: {{name: translation}}\ndata: {{languages: [en, {word}]}}\n"
        (tmp_path / "mine.yaml").write_text(sections)
        assert load_recipe(tmp_path / "mine.yaml").data.languages == ("en", word)
        words = ["--data.languages", f"[en, {word}]"]
        assert load_recipe("transformer-multi30k", words).data.languages == ("en", word)
    recipe = load_recipe("transformer-multi30k", {"data.languages": ["en", word], "name": word})
    assert (recipe.name, recipe.data.languages) == (word, ("en", word))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert yaml.safe_load(recipe.to_yaml())["data"]["languages"] == ["en", word]


def test_the_stem_of_a_model_is_shown_as_it_is_written():
    sections = list_fields(load_recipe("vit-cifar10"), searching=False)
    (stem,) = [field for _, _, fields in sections for field in fields if field.name == "model.stem"]
    assert json.loads(stem.value) == {"kind": "conv", "stride": 4, "name": ""}
    written = load_recipe("vit-cifar10", ["--model.stem", stem.value])
    assert create_model(**written.model).stem.stride == 4
