"""A tiny model with random weights, and what it says when everything is computed anew for each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from penstock.engine.dummy_weights import fill_with_dummy_weights
from penstock.engine.model_config import ModelConfig
from penstock.engine.models import CausalLM, build_model
from penstock.engine.rope_config import DefaultRope
from penstock.kernels import ops

VOCAB_SIZE = 307
EOS_TOKEN_ID = 5
NAN_TOKEN_ID = 300
MAX_MODEL_LEN = 96
NAIVE_BLOCK_SIZE = 16


def tiny_config(windows: tuple[int | None, ...] = (None, None), device: str = "cpu") -> ModelConfig:
    """A layer per window; odd sizes on purpose, but on a GPU such as its kernels take."""
    on_cpu = device == "cpu"
    return ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=VOCAB_SIZE,
        hidden_size=40 if on_cpu else 192,
        num_layers=len(windows),
        num_heads=6,
        num_kv_heads=2,
        head_dim=10 if on_cpu else 64,
        intermediate_size=56 if on_cpu else 320,
        rms_norm_eps=1e-6,
        max_position_embeddings=MAX_MODEL_LEN if on_cpu else 1024,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=True,
        rope=DefaultRope(theta=10000.0),
        layer_windows=windows,
        dtype="float32",
        eos_token_ids=(EOS_TOKEN_ID,),
        generation_defaults={},
    )


def make_model(config: ModelConfig, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 3) -> CausalLM:
    """The model with random weights, the same on every device."""
    on_cpu = build_model(config, device="cpu", dtype=torch.float32)
    fill_with_dummy_weights(on_cpu, seed)
    model = build_model(config, device=device, dtype=dtype)
    model.load_state_dict(on_cpu.state_dict())
    return model


@torch.inference_mode()
def naive_logits(model: CausalLM, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits at every position of one sequence, computed whole in a cache of its own."""
    num_tokens = len(token_ids)
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    config = model.config
    num_blocks = -(-num_tokens // NAIVE_BLOCK_SIZE)
    caches = [
        ops.make_kv_cache(num_blocks, NAIVE_BLOCK_SIZE, config.num_kv_heads, config.head_dim, dtype, device)
        for _ in range(config.num_layers)
    ]
    batch = ops.AttentionBatch(
        block_table=torch.arange(num_blocks, dtype=torch.int32, device=device).unsqueeze(0),
        row_slots=torch.zeros(1, dtype=torch.int32, device=device),
        query_start=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        context_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        kv_slots=torch.arange(num_tokens, device=device),
        max_query_len=num_tokens,
        max_context_len=num_tokens,
    )
    tokens = torch.tensor(token_ids, device=device)
    hidden = model(tokens, torch.arange(num_tokens, device=device), caches, [batch] * len(config.kv_groups))
    return model.logits(hidden)


def naive_greedy(model: CausalLM, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Greedy tokens by computing everything anew for each."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(int(naive_logits(model, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


def is_greedy(model: CausalLM, prompt: Sequence[int], output: Sequence[int], tolerance: float) -> bool:
    """Whether each token of the output is the likeliest after those before it, or as good as."""
    logits = naive_logits(model, [*prompt, *output])[len(prompt) - 1 : -1].double()
    chosen = logits.gather(1, torch.tensor(output, device=logits.device).unsqueeze(1)).squeeze(1)
    return bool((chosen >= logits.amax(dim=1) - tolerance).all())
