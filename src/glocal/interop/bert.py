"""transformers' layout of BERT: config.json with `model_type` "bert", and the tensors of its classes.

BertModel, BertForPreTraining, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification and
BertForQuestionAnswering. Which class wrote a file says no more than which head it was for: files of BertForMaskedLM
mostly have the next-sentence head too, and BertModel, an encoder alone, is a classifier of no classes.
"""

import torch
from torch import Tensor

from glocal.files import JSONObject
from glocal.interop import Outputs, architecture, class_names, complete, outputs_from, outputs_to

DEFAULTS: JSONObject = {  # of its BertConfig; a file may leave them out
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "architectures": ["BertForPreTraining"],
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
}
FIXED = {  # what ours cannot have otherwise; the first comes from older files
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
PLAIN = {"norm": "post", "local_heads": 0, "qkv_ratio": 1.0, "qkv_bias": True}  # each of its blocks
HEADS = {  # theirs, ours; the first of a head is what we write
    "BertForPreTraining": "pretraining",
    "BertForSequenceClassification": "classification",
    "BertForTokenClassification": "tagging",
    "BertForQuestionAnswering": "spans",
    "BertForMaskedLM": "pretraining",
    "BertModel": "classification",  # of no classes
}
ENCODER = "BertModel"
ACTIVATIONS = {  # theirs, ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
RENAMED = (  # ours, theirs
    ("embedding.", "embeddings.word_embeddings."),
    ("token_type_embed.", "embeddings.token_type_embeddings."),
    ("pos_embed", "embeddings.position_embeddings.weight"),
    ("embedding_norm.", "embeddings.LayerNorm."),
    (".norm1.", ".attention.output.LayerNorm."),
    (".mixer.attention.q.", ".attention.self.query."),
    (".mixer.attention.k.", ".attention.self.key."),
    (".mixer.attention.v.", ".attention.self.value."),
    (".mixer.attention.proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".norm2.", ".output.LayerNorm."),
    (".mlp.fc2.", ".output.dense."),
    ("blocks.", "encoder.layer."),
    ("head.pooler.", "pooler.dense."),
    ("mlm_head.transform.", "cls.predictions.transform.dense."),
    ("mlm_head.norm.", "cls.predictions.transform.LayerNorm."),
    ("mlm_head.bias", "cls.predictions.bias"),
)
CLASSIFIERS = {  # of our heads
    "pretraining": "cls.seq_relationship.",
    "classification": "classifier.",
    "tagging": "classifier.",
    "spans": "qa_outputs.",
}
OLD = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))  # as converted from TensorFlow
COPIES = ("embeddings.position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def config_from(theirs: JSONObject) -> JSONObject:
    """Return our config.json for theirs. Rates that ours has no place for belong to a training, and are left out."""
    theirs = complete(theirs, DEFAULTS)
    if foreign := [key for key, value in FIXED.items() if theirs.get(key, value) != value]:
        given, fixed = (", ".join(f"{key} {values[key]!r}" for key in foreign) for values in (theirs, FIXED))
        raise ValueError(f"a BERT with {given}; ours have {fixed}")
    kind, activation, width = architecture(theirs), theirs["hidden_act"], theirs["hidden_size"]
    if kind not in HEADS:
        raise ValueError(f"architectures {kind!r}; ours are {', '.join(HEADS)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act {activation!r}; ours are {', '.join(ACTIVATIONS)}")
    block = PLAIN | {
        "embed_dim": width,
        "num_heads": theirs["num_attention_heads"],
        "mlp_ratio": theirs["intermediate_size"] / width,
        "activation": ACTIVATIONS[activation],
        "norm_eps": theirs["layer_norm_eps"],
        "dropout": theirs["hidden_dropout_prob"],
        "attn_drop": theirs["attention_probs_dropout_prob"],
    }
    head = HEADS[kind]
    if kind == ENCODER:
        outputs = Outputs(None, 0, None)
    elif head == "classification":
        outputs = outputs_from(theirs)
    else:
        labels = class_names(theirs) if head == "tagging" else None
        outputs = Outputs(labels, len(labels or "AB"), None)
    config = {
        "vocab_size": theirs["vocab_size"],
        "max_length": theirs["max_position_embeddings"],
        "type_vocab_size": theirs["type_vocab_size"],
        "blocks": [block] * theirs["num_hidden_layers"],
        "dropout": theirs["hidden_dropout_prob"],
        "head": head,
        "num_classes": outputs.num_classes,
        "pad_id": theirs["pad_token_id"],
    }
    described = {"labels": outputs.labels, "problem_type": outputs.problem_type, "preprocessing": None}
    return {"model": "bert", "config": config, **described}


def config_to(ours: JSONObject) -> JSONObject:
    """Return the config.json of their class for our BERT's head."""
    config = ours["config"]
    block, *others = [block | {"drop_path": 0.0} for block in config["blocks"]]
    if foreign := [f"{key} {block[key]!r}" for key in PLAIN if block[key] != PLAIN[key]]:
        raise ValueError(f"transformers' BERT has no {', '.join(foreign)}")
    if any(other != block for other in others):
        raise ValueError("transformers' BERT has blocks that are all alike")
    kind = next(kind for kind, head in HEADS.items() if head == config["head"])
    theirs = {
        "architectures": [kind if config["num_classes"] else ENCODER],
        "model_type": "bert",
        "vocab_size": config["vocab_size"],
        "hidden_size": block["embed_dim"],
        "num_hidden_layers": len(config["blocks"]),
        "num_attention_heads": block["num_heads"],
        "intermediate_size": round(block["embed_dim"] * block["mlp_ratio"]),
        "hidden_act": next(their for their, mine in ACTIVATIONS.items() if mine == block["activation"]),
        "hidden_dropout_prob": block["dropout"],
        "attention_probs_dropout_prob": block["attn_drop"],
        "max_position_embeddings": config["max_length"],
        "type_vocab_size": config["type_vocab_size"],
        "layer_norm_eps": block["norm_eps"],
        "pad_token_id": config["pad_id"],
    }
    if config["head"] in ("classification", "tagging") and config["num_classes"]:
        theirs |= outputs_to(ours)
    return theirs


def state_from(theirs: dict[str, Tensor], ours: JSONObject) -> dict[str, Tensor]:
    """Return their tensors under our names, for the config.json that `config_from` gave; unknown ones keep theirs."""
    head, state = ours["config"]["head"], {}
    for key, tensor in theirs.items():
        key = key.removeprefix("bert.")
        if key in COPIES:
            continue
        for old, new in OLD:
            key = key.replace(old, new)
        if key.startswith(CLASSIFIERS[head]):
            key = key.replace(CLASSIFIERS[head], "head.classifier.")
        for mine, their in RENAMED:
            key = key.replace(their, mine)
        if head in ("pretraining", "classification") or not key.startswith("head.pooler."):  # older taggers have one
            state[key] = tensor
    for q in [key for key in state if ".mixer.attention.q." in key]:
        parts = [q.replace(".q.", f".{part}.") for part in "qkv"]
        state[q.replace(".q.", ".qkv.")] = torch.cat([state.pop(part) for part in parts if part in state])
    return state


def state_to(ours: dict[str, Tensor], config: JSONObject) -> dict[str, Tensor]:
    """Return our BERT's tensors under their names; `config` is our config.json."""
    state = {}
    for key, tensor in ours.items():
        names = [key.replace(".qkv.", f".{part}.") for part in "qkv"] if ".qkv." in key else [key]
        for name, part in zip(names, tensor.chunk(len(names)), strict=True):
            encoder = not name.startswith(("mlm_head.", "head.classifier."))
            name = name.replace("head.classifier.", CLASSIFIERS[config["config"]["head"]])
            for mine, their in RENAMED:
                name = name.replace(mine, their)
            state[f"bert.{name}" if encoder else name] = part
    return state
