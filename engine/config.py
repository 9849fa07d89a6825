"""How one engine process is set up: parsed once at the edge, never changed afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The flags of `penstock engine`. None means: derived from the model or the machine."""

    model: str | None = None
    """A local directory or a Hugging Face id; None is the bundled demo model."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    tokenizer: str | None = None
    """Directory or id of the tokenizer, where it is not the model's own."""
    download_dir: Path | None = None
    """Where downloads are kept; None is huggingface_hub's cache."""
    served_model_names: tuple[str, ...] = ()
    """Names clients may ask for; empty: the model as given ("penstock-demo" for the demo model)."""
    device: str = "auto"
    """"cuda", "cpu" or "auto": cuda where there is one."""
    dtype: str = "auto"
    """"float32", "bfloat16", "float16" or "auto": the checkpoint's on cuda, float32 on cpu."""
    load_format: str = "auto"
    """"auto" and "safetensors" load weights, "dummy" makes random ones on the device."""
    max_model_len: int | None = None
    """Prompt and output tokens of one request; None: the model's maximum, or what fits into the KV cache if that is less."""
    block_size: int = 16
    """Tokens of one KV block."""
    gpu_memory_utilization: float = 0.92
    """Share of the device's memory that weights, activations and KV cache may take together."""
    kv_cache_memory_bytes: int | None = None
    """Size of the KV cache; None: what gpu_memory_utilization leaves (cuda), at most 1 GiB (cpu)."""
    num_gpu_blocks_override: int | None = None
    """Number of KV blocks, whatever the memory plan says."""
    max_num_seqs: int = 256
    """Requests that run at once."""
    max_num_batched_tokens: int = 2048
    """Most tokens of one step, prompt and output together."""
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    """No CUDA graphs."""
    async_scheduling: bool = True
    """The overlapped loop: plan and launch a step before the last one's tokens are read. False: its synchronous twin."""
    deterministic: bool = False
    """A request's tokens and logprobs are bitwise the same whatever else runs, however its prompt is cut; slower."""
    seed: int = 0
    """Of dummy weights and of seeds given to requests that come without one."""
    socket_dir: Path | None = None
    """The private directory of the sockets; None where the engine runs inside its caller's process."""
