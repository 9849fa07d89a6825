"""What all our models share: embedding, a stack of decoder layers, final norm, output head.

A model's own file says what its layers look like, by `make_layer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ...kernels import ops
from ..blocks import DecoderLayer, KVCache
from ..layers import Place, RMSNorm, VocabTable, WeightTarget
from ..model_config import ModelConfig
from ..rope import make_cos_sin


class CausalLM(nn.Module, ABC):
    """A decoder-only language model over a paged KV cache, its weights uninitialised."""

    def __init__(self, config: ModelConfig, *, num_positions: int, place: Place) -> None:
        super().__init__()
        self.config, self.place = config, place
        self.cos_sin = make_cos_sin(config.rope, config.head_dim, num_positions, place.device)
        self.embed_tokens = VocabTable(config.vocab_size, config.hidden_size, place=place)
        self.layers = nn.ModuleList(self.make_layer(index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place=place)
        self.lm_head = self.embed_tokens
        if not config.tie_word_embeddings:
            self.lm_head = VocabTable(config.vocab_size, config.hidden_size, place=place)
        self._kv_places = [(0, 0)] * config.num_layers  # per layer: its KV group, its index within the group
        for group_index, group in enumerate(config.kv_groups):
            for index, layer in enumerate(group.layers):
                self._kv_places[layer] = (group_index, index)

    @abstractmethod
    def make_layer(self, index: int) -> DecoderLayer:
        """Layer `index`, counted from 0."""

    def forward(
        self, token_ids: Tensor, positions: Tensor, kv_caches: Sequence[KVCache], batches: Sequence[ops.AttentionBatch]
    ) -> Tensor:
        """Hidden states [T, hidden] before the final norm, of tokens int64 [T] at positions int64 [T].

        `batches` has one entry per KV group; `kv_caches` one per layer of the largest group, used by every group (their block
        ids are distinct).
        """
        x, residual = self.embed_tokens.embed(token_ids), None
        for layer, (group, index) in zip(self.layers, self._kv_places, strict=True):
            x, residual = layer(x, residual, positions, kv_caches[index], batches[group])
        return x if residual is None else x + residual

    def logits(self, hidden: Tensor) -> Tensor:
        """Rows of hidden states [N, hidden] -> [N, vocab_size] in their dtype: final norm and output head."""
        return self.lm_head.logits(self.norm, hidden)

    def weight_targets(self) -> dict[str, WeightTarget]:
        """Every tensor a checkpoint must have, by name, and where it goes."""
        targets = dict(self.embed_tokens.targets("model.embed_tokens"))
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            targets.update(layer.targets(f"model.layers.{index}"))
        targets.update(self.norm.targets("model.norm"))
        if self.lm_head is not self.embed_tokens:
            targets.update(self.lm_head.targets("lm_head"))
        return targets
