"""transformers' layout of GPT: config.json with `model_type` "gpt2" or "openai-gpt" (GPT-1), and their tensors.

GPT2Model, GPT2LMHeadModel, GPT2ForSequenceClassification, and the same three of OpenAIGPT. GPT-1 normalises after each
sublayer, GPT-2 before; `norm` of our blocks decides which of the two is written. Both store their matrices transposed.
"""

from torch import Tensor

from glocal.files import JSONObject
from glocal.interop import Outputs, architecture, check, complete, outputs_from, outputs_to

DEFAULTS: JSONObject = {  # of its GPT2Config and its OpenAIGPTConfig; a file may leave them out
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "architectures": ["LMHeadModel"],
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
}
OWN_DEFAULTS: dict[str, JSONObject] = {
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256},
    "openai-gpt": {"vocab_size": 40478, "n_positions": 512},
}
FIXED = {  # what ours cannot have otherwise
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
PLAIN = {"local_heads": 0, "qkv_ratio": 1.0, "qkv_bias": True, "causal": True, "cross": False}  # each of its blocks
NORMS = {"gpt2": "pre", "openai-gpt": "post"}
HEADS = {"LMHeadModel": "language", "ForSequenceClassification": "classification", "Model": "language"}  # theirs, ours
CLASSES = {"gpt2": "GPT2", "openai-gpt": "OpenAIGPT"}
ACTIVATIONS: dict[str, dict[str, str]] = {  # theirs, ours; GPT-1's `gelu` is its authors', who approximated it
    "gpt2": {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu": "gelu",
        "relu": "relu",
        "silu": "silu",
        "swish": "silu",
    },
    "openai-gpt": {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
}
FIELDS = {"gpt2": "activation_function", "openai-gpt": "afn"}  # where they say which
RENAMED = (  # ours, GPT-2's, and GPT-1's where that differs
    ("embedding.", "wte.", "tokens_embed."),
    ("pos_embed", "wpe.weight", "positions_embed.weight"),
    ("blocks.", "h."),
    (".norm1.", ".ln_1."),
    (".mixer.attention.qkv.", ".attn.c_attn."),
    (".mixer.attention.proj.", ".attn.c_proj."),
    (".norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    ("norm.", "ln_f."),
    ("head.classifier.", "score."),
)
TRANSPOSED = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
COPY, BUFFERS = "lm_head.weight", (".attn.bias", ".attn.masked_bias")  # the embeddings' other name; causal masks


def config_from(theirs: JSONObject) -> JSONObject:
    """Return our config.json for theirs."""
    model = theirs["model_type"]
    theirs = complete(theirs, DEFAULTS | OWN_DEFAULTS[model])
    if foreign := [key for key, value in FIXED.items() if theirs.get(key, value) != value]:
        given, fixed = (", ".join(f"{key} {values[key]!r}" for key in foreign) for values in (theirs, FIXED))
        raise ValueError(f"a GPT with {given}; ours have {fixed}")
    written_by, width = architecture(theirs), theirs["n_embd"]
    kind = written_by.removeprefix(CLASSES[model])
    if kind not in HEADS:
        known = ", ".join(f"{CLASSES[model]}{kind}" for kind in HEADS)
        raise ValueError(f"architectures {written_by!r}; ours are {known}")
    activation = theirs.get(FIELDS[model], next(iter(ACTIVATIONS[model])))
    if activation not in ACTIVATIONS[model]:
        raise ValueError(f"{FIELDS[model]} {activation!r}; ours are {', '.join(ACTIVATIONS[model])}")
    inner = complete(theirs, {"n_inner": 4 * width})["n_inner"]
    block = PLAIN | {
        "embed_dim": width,
        "num_heads": theirs["n_head"],
        "mlp_ratio": inner / width,
        "activation": ACTIVATIONS[model][activation],
        "norm": NORMS[model],
        "norm_eps": theirs["layer_norm_epsilon"],
        "dropout": theirs["resid_pdrop"],
        "attn_drop": theirs["attn_pdrop"],
    }
    outputs = outputs_from(theirs) if HEADS[kind] == "classification" else Outputs(None, 2, None)
    special = special_tokens(theirs)
    config = {
        "vocab_size": theirs["vocab_size"],
        "max_length": theirs["n_positions"],
        "blocks": [block] * theirs["n_layer"],
        "dropout": theirs["embd_pdrop"],
        "head": HEADS[kind],
        "num_classes": outputs.num_classes,
        **special,
    }
    described = {"labels": outputs.labels, "problem_type": outputs.problem_type, "preprocessing": None}
    return {"model": "gpt", "config": config, **described}


def special_tokens(theirs: JSONObject) -> dict[str, int | None]:
    """Return the tokens that pad, begin and end a text; a file without the first pads with the last.

    An id outside of the vocabulary is an unchanged default, and means no token.
    """
    tokens: dict[str, int | None] = {}
    for name in ("eos", "bos", "pad"):
        token = theirs.get(f"{name}_token_id")
        if token is not None:
            check(f"{name}_token_id", token, 0)
        tokens[f"{name}_id"] = token if token is not None and token < theirs["vocab_size"] else None
    if theirs.get("pad_token_id") is None:
        tokens["pad_id"] = tokens["eos_id"]
    return tokens


def config_to(ours: JSONObject) -> JSONObject:
    """Return the config.json of their class for our GPT's head."""
    config = ours["config"]
    block, *others = [block | {"drop_path": 0.0} for block in config["blocks"]]
    model = model_type(config)
    if foreign := [f"{key} {block[key]!r}" for key in PLAIN if block[key] != PLAIN[key]]:
        raise ValueError(f"transformers' GPT has no {', '.join(foreign)}")
    if any(other != block for other in others):
        raise ValueError("transformers' GPT has blocks that are all alike")
    width, activations = block["embed_dim"], {mine: their for their, mine in reversed(ACTIVATIONS[model].items())}
    if block["activation"] not in activations or (model == "openai-gpt" and block["mlp_ratio"] != 4):
        raise ValueError(f"transformers' GPT-1 has no activation {block['activation']!r}, or no mlp_ratio but 4")
    theirs = {
        "architectures": [CLASSES[model] + next(kind for kind, head in HEADS.items() if head == config["head"])],
        "model_type": model,
        "vocab_size": config["vocab_size"],
        "n_positions": config["max_length"],
        "n_embd": width,
        "n_layer": len(config["blocks"]),
        "n_head": block["num_heads"],
        FIELDS[model]: activations[block["activation"]],
        "resid_pdrop": block["dropout"],
        "embd_pdrop": config["dropout"],
        "attn_pdrop": block["attn_drop"],
        "layer_norm_epsilon": block["norm_eps"],
        "pad_token_id": config["pad_id"],
        "bos_token_id": config["bos_id"],
        "eos_token_id": config["eos_id"],
    }
    if model == "gpt2":
        theirs["n_inner"] = round(width * block["mlp_ratio"])
    if config["head"] == "classification":
        theirs |= outputs_to(ours)
    return theirs


def model_type(config: JSONObject) -> str:
    """Return which of their two models ours is."""
    return next(model for model, norm in NORMS.items() if norm == config["blocks"][0]["norm"])


def state_from(theirs: dict[str, Tensor], ours: JSONObject) -> dict[str, Tensor]:
    """Return their tensors under our names, for the config.json that `config_from` gave; unknown ones keep theirs."""
    state = {}
    for key, tensor in theirs.items():
        if key == COPY or key.endswith(BUFFERS):
            continue
        tensor = tensor.T if key.endswith(TRANSPOSED) else tensor
        key = key.removeprefix("transformer.")
        for mine, *spellings in RENAMED:
            for spelling in spellings:
                key = key.replace(spelling, mine)
        state[key] = tensor
    return state


def state_to(ours: dict[str, Tensor], config: JSONObject) -> dict[str, Tensor]:
    """Return our GPT's tensors under their names; `config` is our config.json."""
    spelling, state = (-1 if model_type(config["config"]) == "openai-gpt" else 1), {}
    for key, tensor in ours.items():
        prefix = "" if key.startswith("head.") else "transformer."
        for names in RENAMED:
            key = key.replace(names[0], names[spelling])
        state[prefix + key] = tensor.T if key.endswith(TRANSPOSED) else tensor
    return state
