"""The body of `/v1/{model}/predict` in `/openapi.json`: a schema for each model that is served."""

from collections.abc import Iterable, Mapping
from typing import Any

from glocal.files import JSONObject
from glocal.serve.served import ServedModel


def predict_body(models: Iterable[ServedModel]) -> JSONObject:
    """Return the request body of predictions, as OpenAPI describes it."""
    schemas = [describe(model) for model in models]
    files = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
    content = {"application/json": {"schema": {"anyOf": schemas}}, "multipart/form-data": {"schema": files}}
    return {"requestBody": {"required": True, "content": content}}


def describe(model: ServedModel) -> JSONObject:
    """Return the schema of a model's requests."""
    schema = model.Request.model_json_schema()
    schema = inlined(schema, schema.get("$defs", {}))
    return schema | {"title": model.name, "description": f"input: {model.predictor.json_input}"}


def inlined(schema: object, definitions: Mapping[str, JSONObject]) -> Any:
    """Return a schema with its definitions in the places that name them; OpenAPI keeps them elsewhere."""
    match schema:
        case {"$ref": str(name)}:
            return inlined(definitions[name.rpartition("/")[2]], definitions)
        case dict():
            return {key: inlined(value, definitions) for key, value in schema.items() if key != "$defs"}
        case list():
            return [inlined(value, definitions) for value in schema]
    return schema
