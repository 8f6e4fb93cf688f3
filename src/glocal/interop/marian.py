"""transformers' layout of Marian's models: config.json with `model_type` "marian", the tensors of its MarianMTModel.

This is the original Transformer, as Marian trains it (Junczys-Dowmunt et al. 2018) and the opus-mt pairs are published:
all sines before all cosines, a bias on the logits, and a decoder that starts from the token that pads.
"""

import torch
from torch import Tensor

from glocal.files import JSONObject
from glocal.interop import complete

DEFAULTS: JSONObject = {  # of its MarianConfig; a file may leave them out
    "vocab_size": 58101,
    "max_position_embeddings": 1024,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "scale_embedding": False,
    "pad_token_id": 58100,
    "decoder_start_token_id": 58100,
    "eos_token_id": 0,
}
FIXED = {  # what ours cannot have otherwise; the last two come from older files
    "scale_embedding": True,
    "share_encoder_decoder_embeddings": True,
    "tie_word_embeddings": True,
    "normalize_before": False,
    "static_position_embeddings": True,
}
PLAIN = {"norm": "post", "norm_eps": 1e-5, "local_heads": 0, "qkv_ratio": 1.0, "qkv_bias": True}  # each of its blocks
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}  # theirs, ours
KIND: dict[str, dict[str, bool]] = {
    "encoder": {"causal": False, "cross": False},
    "decoder": {"causal": True, "cross": True},
}
EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")  # is one
COMPUTED = "embed_positions."
RENAMED = (  # ours, theirs
    ("logit_bias", "final_logits_bias"),
    ("encoder.", "encoder.layers."),
    ("decoder.", "decoder.layers."),
    (".mixer.attention.", ".self_attn."),
    (".norm1.", ".self_attn_layer_norm."),
    (".cross.", ".encoder_attn."),
    (".norm_cross.", ".encoder_attn_layer_norm."),
    (".q.", ".q_proj."),
    (".k.", ".k_proj."),
    (".v.", ".v_proj."),
    (".proj.", ".out_proj."),
    (".mlp.fc", ".fc"),
    (".norm2.", ".final_layer_norm."),
)
WRITERS = ("norm", ".proj.", ".mlp.fc2.")  # modules whose outputs are channels of the tokens themselves


def config_from(theirs: JSONObject) -> JSONObject:
    """Return our config.json for theirs. Rates that ours has no place for belong to a training, and are left out."""
    theirs = complete(theirs, DEFAULTS)
    if foreign := [key for key, value in FIXED.items() if theirs.get(key, value) != value]:
        given, fixed = (", ".join(f"{key} {values[key]!r}" for key in foreign) for values in (theirs, FIXED))
        raise ValueError(f"a Marian model with {given}; ours have {fixed}")
    if theirs["activation_function"] not in ACTIVATIONS:
        raise ValueError(f"activation_function {theirs['activation_function']!r}; ours are {', '.join(ACTIVATIONS)}")
    block = {
        "embed_dim": theirs["d_model"],
        "activation": ACTIVATIONS[theirs["activation_function"]],
        "dropout": theirs["dropout"],
        "attn_drop": theirs["attention_dropout"],
    }
    stacks = {}
    for side, kind in KIND.items():
        shape = {
            "num_heads": theirs[f"{side}_attention_heads"],
            "mlp_ratio": theirs[f"{side}_ffn_dim"] / theirs["d_model"],
        }
        stacks[side] = [block | PLAIN | kind | shape] * theirs[f"{side}_layers"]
    config = {
        "vocab_size": theirs["vocab_size"],
        "max_length": theirs["max_position_embeddings"],
        **stacks,
        "positions": "halves",
        "dropout": theirs["dropout"],
        "logit_bias": True,
        "pad_id": theirs["pad_token_id"],
        "bos_id": theirs["decoder_start_token_id"],
        "eos_id": theirs["eos_token_id"],
    }
    return {"model": "transformer", "config": config, "labels": None, "preprocessing": None}


def config_to(ours: JSONObject) -> JSONObject:
    """Return the config.json of their MarianMTModel for our Transformer's."""
    config = ours["config"]
    shapes: dict[str, int] = {}
    activation = config["encoder"][0]["activation"]
    for side, kind in KIND.items():
        block, *others = [block | {"drop_path": 0.0} for block in config[side]]
        plain = PLAIN | kind | {"activation": activation}
        if foreign := [f"{key} {block[key]!r}" for key in plain if block[key] != plain[key]]:
            raise ValueError(f"Marian's {side} has no {', '.join(foreign)}")
        if any(other != block for other in others):
            raise ValueError(f"Marian's {side} has blocks that are all alike")
        shapes |= {
            f"{side}_layers": len(config[side]),
            f"{side}_attention_heads": block["num_heads"],
            f"{side}_ffn_dim": round(block["embed_dim"] * block["mlp_ratio"]),
        }
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_length"],
        "d_model": block["embed_dim"],
        **shapes,
        "activation_function": activation,
        "dropout": config["dropout"],
        "attention_dropout": block["attn_drop"],
        "scale_embedding": True,
        "pad_token_id": config["pad_id"],
        "decoder_start_token_id": config["bos_id"],
        "eos_token_id": config["eos_id"],
        "forced_eos_token_id": config["eos_id"],
        "bad_words_ids": [[config["pad_id"]]],  # nothing has taught an opus-mt model not to write it
    }


def state_from(theirs: dict[str, Tensor], ours: JSONObject) -> dict[str, Tensor]:
    """Return their tensors under our names, for the config.json that `config_from` gave; unknown ones keep theirs."""
    state = {"logit_bias": torch.zeros(ours["config"]["vocab_size"])}  # where theirs have none, as MarianModel
    for key, tensor in theirs.items():
        key = key.removeprefix("model.")
        if key in EMBEDDING:
            key = "embedding.weight"
        for mine, their in RENAMED:
            key = key.replace(their, mine)
        if COMPUTED not in key:
            state[key] = tensor.flatten() if key == "logit_bias" else tensor
    for k in [key for key in state if ".k." in key]:
        parts = "kv" if ".cross." in k else "qkv"
        names = [k.replace(".k.", f".{part}.") for part in parts]
        state[k.replace(".k.", f".{parts}.")] = torch.cat([state.pop(name) for name in names if name in state])
    return state


def state_to(ours: dict[str, Tensor], config: JSONObject) -> dict[str, Tensor]:
    """Return our Transformer's tensors under their names; `config` is our config.json.

    Interleaved positions become halves by another order of the tokens' channels, in every tensor that reads or writes
    them: the same function.
    """
    fields, state = config["config"], {}
    order = torch.arange(fields["encoder"][0]["embed_dim"])
    if fields["positions"] == "interleaved":
        order = order.view(-1, 2).T.flatten()
    for key, tensor in ({"logit_bias": torch.zeros(fields["vocab_size"])} | ours).items():
        if any(part in key for part in WRITERS):
            tensor = tensor[order]
        elif tensor.ndim == 2:
            tensor = tensor[:, order]
        names = [key]
        for parts in ("qkv", "kv"):
            if f".{parts}." in key:
                names = [key.replace(f".{parts}.", f".{part}.") for part in parts]
        for name, part in zip(names, tensor.chunk(len(names)), strict=True):
            for mine, their in RENAMED:
                name = name.replace(mine, their)
            state[f"model.{name}"] = part
    state["model.shared.weight"] = state.pop("model.embedding.weight")
    state["final_logits_bias"] = state.pop("model.final_logits_bias")[None]
    return state
