"""What a checkpoint says of itself, read from config.json and generation_config.json: explicit, checked, without torch.

`ModelConfig.from_dir` is the only way in; architectures that are not listed in `ARCHITECTURES` are refused. Defaults for
absent fields are those of transformers' configuration classes, which is what the files were written by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import EngineStartError
from .json_fields import JsonFields
from .rope_config import DynamicRope, LinearRope, RopeConfig, YarnRope, read_rope

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
MAX_LAYERS = 10_000
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that keep the same keys and values and share a block table."""

    window: int | None
    """Tokens a query sees, itself included; None is all."""
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder-only transformer: shapes, rotary embedding, windows, and how its authors sample from it."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMS norm over each head's query and key before they are rotated."""
    rope: RopeConfig
    layer_windows: tuple[int | None, ...]
    """Per layer: how many tokens a query sees, itself included; None is all."""
    dtype: str
    """Of the checkpoint: a key of DTYPE_BYTES."""
    eos_token_ids: tuple[int, ...]
    generation_defaults: Mapping[str, float]
    """Any of temperature, top_p, top_k, min_p, repetition_penalty."""

    @classmethod
    def from_dir(cls, path: Path) -> ModelConfig:
        """Reads config.json and, where there is one, generation_config.json.

        Raises EngineStartError that names the file and the field.
        """
        if not (path / "config.json").is_file():
            raise EngineStartError(f"{path} is not a model directory: it has no config.json")
        fields = JsonFields.from_file(path / "config.json")
        architecture = _read_architecture(fields)
        generation_path = path / "generation_config.json"
        generation = (
            JsonFields.from_file(generation_path) if generation_path.is_file() else JsonFields(str(generation_path), {})
        )
        max_position_embeddings = fields.integer("max_position_embeddings")
        num_layers = fields.integer("num_hidden_layers", maximum=MAX_LAYERS)
        llama_bias = architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM") and fields.boolean("attention_bias", False)
        config = cls(
            architecture=architecture,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            num_layers=num_layers,
            num_heads=fields.integer("num_attention_heads"),
            num_kv_heads=_read_num_kv_heads(fields, architecture),
            head_dim=_read_head_dim(fields, architecture),
            intermediate_size=fields.integer("intermediate_size"),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, above=0.0),
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            qkv_bias=llama_bias or architecture == "Qwen2ForCausalLM",
            o_bias=llama_bias,
            mlp_bias=architecture == "LlamaForCausalLM" and fields.boolean("mlp_bias", False),
            qk_norm=architecture == "Qwen3ForCausalLM",
            rope=read_rope(fields, max_position_embeddings),
            layer_windows=_read_layer_windows(fields, architecture, num_layers),
            dtype=_read_dtype(fields),
            eos_token_ids=generation.token_ids("eos_token_id") or fields.token_ids("eos_token_id"),
            generation_defaults=_read_generation_defaults(generation),
        )
        _check(config, fields)
        return config

    def needs_tensor(self, name: str) -> bool:
        """Not what old checkpoints carry and nobody needs: rotary tables, a tied output head saved beside its embedding."""
        return not (name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and self.tie_word_embeddings))

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """Layers of the same window, in the order of their first layer."""
        layers: dict[int | None, list[int]] = {}
        for layer, window in enumerate(self.layer_windows):
            layers.setdefault(window, []).append(layer)
        return tuple(KVGroup(window, tuple(members)) for window, members in layers.items())

    @property
    def default_max_model_len(self) -> int:
        """The context the authors promise: max_position_embeddings, or what YaRN stretches its original context to."""
        if isinstance(self.rope, YarnRope):
            return max(self.max_position_embeddings, int(self.rope.factor * self.rope.original_max_positions))
        return self.max_position_embeddings

    @property
    def largest_max_model_len(self) -> int:
        """The longest context that can be asked for: scaled embeddings may reach beyond max_position_embeddings."""
        if isinstance(self.rope, LinearRope | DynamicRope):
            return max(self.max_position_embeddings, int(self.rope.factor * self.max_position_embeddings))
        return self.default_max_model_len


def _read_architecture(fields: JsonFields) -> str:
    if not fields.has("architectures"):
        raise fields.error("architectures", "is missing; known architectures: " + ", ".join(ARCHITECTURES))
    for architecture in fields.strings("architectures"):
        if architecture in ARCHITECTURES:
            return architecture
    names = ", ".join(fields.strings("architectures")) or "none"
    raise EngineStartError(f"{fields.where}: unknown architecture {names}; Penstock knows {', '.join(ARCHITECTURES)}")


def _read_num_kv_heads(fields: JsonFields, architecture: str) -> int:
    absent = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}
    if "num_key_value_heads" in fields.values:
        return fields.integer("num_key_value_heads", fields.integer("num_attention_heads"))
    return absent.get(architecture, fields.integer("num_attention_heads"))


def _read_head_dim(fields: JsonFields, architecture: str) -> int:
    if architecture == "Qwen3ForCausalLM" and "head_dim" not in fields.values:
        return 128
    return fields.integer("head_dim", max(1, fields.integer("hidden_size") // fields.integer("num_attention_heads")))


def _read_layer_windows(fields: JsonFields, architecture: str, num_layers: int) -> tuple[int | None, ...]:
    if architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        has_none = "sliding_window" in fields.values and not fields.has("sliding_window")
        return (None if has_none else fields.integer("sliding_window", 4096),) * num_layers
    if not fields.boolean("use_sliding_window", False) or (
        "sliding_window" in fields.values and not fields.has("sliding_window")
    ):
        return (None,) * num_layers
    window = fields.integer("sliding_window", 4096)
    if not fields.has("layer_types"):
        first = fields.integer("max_window_layers", 28, minimum=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    layer_types = fields.strings("layer_types")
    if len(layer_types) != num_layers:
        raise fields.error("layer_types", f"has {len(layer_types)} entries for {num_layers} layers")
    for layer_type in layer_types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise fields.error("layer_types", f"has an unknown entry {layer_type!r}")
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in layer_types)


def _read_dtype(fields: JsonFields) -> str:
    dtype = fields.string("dtype", fields.string("torch_dtype", "float32")).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise fields.error("dtype", f"{dtype!r} is not supported; supported are {', '.join(DTYPE_BYTES)}")
    return dtype


def _read_generation_defaults(generation: JsonFields) -> dict[str, float]:
    if generation.has("do_sample") and not generation.boolean("do_sample"):
        return {"temperature": 0.0}
    defaults = {}
    if generation.has("top_k"):
        defaults["top_k"] = float(generation.integer("top_k", minimum=0))
    for name in ("temperature", "min_p"):
        if generation.has(name):
            defaults[name] = generation.number(name, minimum=0.0)
    for name in ("top_p", "repetition_penalty"):
        if generation.has(name):
            defaults[name] = generation.number(name, above=0.0)
    for name in ("top_p", "min_p"):
        if defaults.get(name, 0.0) > 1.0:
            raise generation.error(name, f"is out of range: {defaults[name]}")
    return defaults


def _check(config: ModelConfig, fields: JsonFields) -> None:
    """Raises EngineStartError for values that contradict each other or ask for something that is not built."""
    if config.num_heads % config.num_kv_heads:
        raise fields.error(
            "num_key_value_heads", f"({config.num_kv_heads}) must divide num_attention_heads ({config.num_heads})"
        )
    if config.head_dim % 2:
        raise fields.error("head_dim", f"must be even, not {config.head_dim}")
    if isinstance(config.rope, DynamicRope) and config.head_dim < 4:
        raise fields.error("head_dim", f"must be at least 4 for a dynamic rope, not {config.head_dim}")
    if fields.string("hidden_act", "silu") not in ("silu", "swish"):
        raise fields.error("hidden_act", f"{fields.string('hidden_act')!r} is not supported; supported is silu")
    if fields.has("quantization_config"):
        raise fields.error("quantization_config", "is set: quantized checkpoints are not supported, use the unquantized model")
    for token_id in config.eos_token_ids:
        if token_id >= config.vocab_size:
            raise fields.error("eos_token_id", f"{token_id} is not below vocab_size ({config.vocab_size})")
