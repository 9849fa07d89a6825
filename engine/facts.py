"""What frontends must know of the model an engine serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ipc.messages import PROTOCOL_VERSION, Ready


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The model's part of a Ready; the fields are described there."""

    model_dir: str
    served_model_names: tuple[str, ...]
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    generation_defaults: Mapping[str, float]
    block_size: int
    num_blocks: int
    max_num_seqs: int
    dtype: str
    device: str
    created_s: int

    def ready(self, engine_boot_id: bytes) -> Ready:
        """The message of an engine process."""
        return Ready(
            protocol_version=PROTOCOL_VERSION,
            engine_boot_id=engine_boot_id,
            model_dir=self.model_dir,
            served_model_names=self.served_model_names,
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            eos_token_ids=self.eos_token_ids,
            generation_defaults=dict(self.generation_defaults),
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_num_seqs=self.max_num_seqs,
            dtype=self.dtype,
            device=self.device,
            created_s=self.created_s,
        )
