import math

import pytest
import torch

from glocal.errors import GlocalError
from glocal.models import create_model
from glocal.recipes import RECIPES, ImageRecipe, Recipe, TranslationRecipe, list_recipes, load_recipe
from glocal.search.budget import Budget
from glocal.search.cost import cost_table

IMAGES = [name for name in list_recipes() if isinstance(load_recipe(name), ImageRecipe)]


TEXTS = [name for name in list_recipes() if name not in IMAGES]


@pytest.mark.parametrize("name", TEXTS)
def test_every_shipped_recipe_of_texts_is_whole(name):
    recipe = load_recipe(name)
    recipe.train.check()
    assert RECIPES[recipe.task.name] is type(recipe)
    if "from" in recipe.model:  # fine-tuning: what is pre-trained is the user's or the hub's
        assert set(recipe.model) == {"from"}
        return
    tokens = recipe.data if isinstance(recipe, TranslationRecipe) else recipe.data.tokenizer
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
    start = create_model(**recipe.model, **size, num_classes=1000 if "imagenet" in name else 10).config
    budget = recipe.search.budget
    assert Budget(cost_table(budget.kind, start), budget.lower, budget.upper).fits(start.blocks)


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


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(GlocalError, match="did you mean vit-digits"):
        load_recipe("vit-digit")
    (tmp_path / "a.yaml").write_text("model: [")
    with pytest.raises(GlocalError, match="is not YAML"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("just words")
    with pytest.raises(GlocalError, match="holds no recipe"):
        load_recipe(tmp_path / "b.yaml")


def test_a_recipe_needs_a_model(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {epochs: 1}")
    with pytest.raises(GlocalError, match="model"):
        load_recipe(tmp_path / "a.yaml")
    assert Recipe.__dataclass_fields__["model"]
