"""What a recipe's model starts from: fresh weights of a named size, or a model that was trained before."""

from dataclasses import replace
from typing import Any, NamedTuple

from glocal.data.text import Tokenizer
from glocal.errors import GlocalError
from glocal.inference.texts import check_vocabulary
from glocal.models import NAMED, Model, create_model, load_model
from glocal.models.folders import find_folder, read_config
from glocal.recipes import Recipe
from glocal.training import RunFolder


class Origin(NamedTuple):
    """A recipe's section `model`, taken apart."""

    name: str | None
    """A named size."""
    start: str | None
    """A run, a folder or a hub id to go on from, whichever name stands beside it."""
    fields: dict[str, Any]
    """Fields of its config to change."""

    @staticmethod
    def of(recipe: Recipe) -> "Origin":
        """Read it. Raises GlocalError where there is neither."""
        fields = dict(recipe.model)
        name, start = fields.pop("name", None), fields.pop("from", None)
        if name is None and start is None:
            raise GlocalError("the recipe names no model; give model.name (`glocal list models`) or --from RUN")
        return Origin(name, start, fields)

    def build(self, tokenizer: Tokenizer, **fitting: Any) -> Model:
        """Build a model of texts for a vocabulary, or load one, in either case with `fitting` fields."""
        if self.start is not None:
            model = load_model(self.start, **self.fields | fitting)
            check_vocabulary(tokenizer, model)
            return model
        _, config = NAMED.get(str(self.name), (None, None))
        tokens = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id") if hasattr(config, name)}
        return create_model(str(self.name), **tokens | self.fields | fitting, vocab_size=tokenizer.vocab_size)

    @staticmethod
    def check_length(model: Model, max_length: int) -> None:
        """Raise GlocalError where the data makes longer rows than the model has positions for."""
        longest = getattr(model.config, "max_length", max_length)
        if max_length > longest:
            raise GlocalError(
                f"data.max_length is {max_length}, and the model has {longest} positions; set data.max_length to "
                f"{longest} or less"
            )

    def bring_tokenizer(self, run: RunFolder) -> None:
        """Copy the tokenizer of a model that was trained before into the run; it knows no other tokens."""
        if self.start is not None and not Tokenizer.is_in(run.path):
            Tokenizer.load(find_folder(self.start)).save(run.path)


def fit_length(recipe: Recipe) -> tuple[Recipe, str | None]:
    """Lower the rows of a recipe to the positions of the model that it goes on from, and say so; else change nothing.

    For a length that is the recipe's own: one that the user gives is refused where the model is shorter.
    """
    data, start = getattr(recipe, "data", None), recipe.model.get("from")
    if start is None or not hasattr(data, "max_length"):
        return recipe, None
    longest = recipe.model.get("max_length", read_config(start).get("max_length"))
    if not isinstance(longest, int) or isinstance(longest, bool) or longest >= data.max_length:
        return recipe, None
    line = f"data: rows of {longest} tokens, the positions of {start}, instead of the recipe's {data.max_length}"
    return replace(recipe, data=replace(data, max_length=longest)), line  # type: ignore[call-arg]
