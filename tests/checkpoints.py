"""Tiny random checkpoints in Hugging Face format, one for every architecture and variant we serve, made by transformers itself.

`make_checkpoint(name, path)` writes config.json, generation_config.json, safetensors and a byte-level tokenizer with a chat
template, so that a whole server can run on the directory. The same name gives the same weights. transformers is imported on
first use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCAB_SIZE = 320
MAX_POSITIONS = 256
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class CheckpointSpec:
    """What is special about one checkpoint."""

    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers' configuration class, beside the tiny sizes."""
    old_style: bool = False
    """config.json with rope_theta, rope_scaling and torch_dtype."""
    max_shard_size: str = "1GB"


LLAMA, MISTRAL, QWEN2, QWEN3 = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 32}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}

CHECKPOINTS: dict[str, CheckpointSpec] = {
    "llama": CheckpointSpec(LLAMA),
    "llama_old_style": CheckpointSpec(LLAMA, {"rope_parameters": _LLAMA3_ROPE}, old_style=True),
    "llama_linear": CheckpointSpec(LLAMA, {"rope_parameters": _LINEAR_ROPE}, old_style=True),
    "llama_dynamic": CheckpointSpec(LLAMA, {"rope_parameters": _DYNAMIC_ROPE}),
    "llama_llama3": CheckpointSpec(LLAMA, {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama_yarn": CheckpointSpec(LLAMA, {"rope_parameters": _YARN_ROPE}),
    "llama_yarn_mscale": CheckpointSpec(
        LLAMA,
        {
            "rope_parameters": {
                **_YARN_ROPE,
                "mscale": 0.7,
                "mscale_all_dim": 1.2,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
            }
        },
    ),
    "llama_biases": CheckpointSpec(LLAMA, {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama_sharded": CheckpointSpec(LLAMA, {"num_key_value_heads": 4}, max_shard_size="100KB"),
    "mistral": CheckpointSpec(MISTRAL, {"sliding_window": 24}),
    "mistral_no_window": CheckpointSpec(MISTRAL, {"sliding_window": None, "head_dim": 24}),
    "qwen2": CheckpointSpec(QWEN2, {"use_sliding_window": False}),
    "qwen2_tied_old_style": CheckpointSpec(QWEN2, {"tie_word_embeddings": True}, old_style=True),
    "qwen2_mixed_windows": CheckpointSpec(
        QWEN2, {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3}
    ),
    "qwen3": CheckpointSpec(QWEN3, {"head_dim": 32}),
    "qwen3_yarn_tied": CheckpointSpec(QWEN3, {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": _YARN_ROPE}),
    "qwen3_mixed_windows": CheckpointSpec(
        QWEN3,
        {
            "head_dim": 16,
            "num_hidden_layers": 4,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 33,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
}

_LARGER: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "max_position_embeddings": 2048,
}
LARGER_CHECKPOINTS: dict[str, CheckpointSpec] = {
    "llama_larger": CheckpointSpec(LLAMA, {**_LARGER, "head_dim": 64}),
    "qwen3_larger": CheckpointSpec(QWEN3, {**_LARGER, "head_dim": 128, "num_attention_heads": 8, "tie_word_embeddings": True}),
    "qwen2_larger_mixed_windows": CheckpointSpec(
        QWEN2, {**_LARGER, "use_sliding_window": True, "sliding_window": 200, "max_window_layers": 1}
    ),
    "mistral_larger": CheckpointSpec(MISTRAL, {**_LARGER, "head_dim": 128, "sliding_window": 130}),
}
"""With head sizes, widths and contexts that the GPU's kernels are made for. The tokenizer knows VOCAB_SIZE of the tokens."""


def make_checkpoint(name: str, path: Path, seed: int = 0) -> Path:
    """Writes a checkpoint of CHECKPOINTS or LARGER_CHECKPOINTS into the directory `path` (made where it is missing)."""
    spec = CHECKPOINTS.get(name) or LARGER_CHECKPOINTS[name]
    model = _make_model(spec, seed)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path, max_shard_size=spec.max_shard_size)
    if spec.old_style:
        _rewrite_in_old_style(path / "config.json")
    write_tokenizer(path)
    return path


def _make_model(spec: CheckpointSpec, seed: int) -> Any:
    import torch
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": [0, 2],
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    config_class = getattr(transformers, spec.architecture.replace("ForCausalLM", "Config"))
    model = getattr(transformers, spec.architecture)(config_class(**{**sizes, **spec.config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(noise * 0.1 + (0.0 if parameter_name.endswith("bias") else 1.0))
    return model


def _rewrite_in_old_style(config_path: Path) -> None:
    """As transformers 4 wrote it."""
    config = json.loads(config_path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config_path.write_text(json.dumps(config))


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE tokenizer of VOCAB_SIZE tokens, the special ones first, and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([__doc__, CHAT_TEMPLATE] * 4, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[2],
        "pad_token": SPECIAL_TOKENS[0],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": MAX_POSITIONS,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
