"""Weights made up on the device, for measuring and for tests: no file is read."""

from __future__ import annotations

import torch

from .models import CausalLM


def fill_with_dummy_weights(model: CausalLM, seed: int) -> None:
    """Random weights of a scale that keeps activations near 1, made on the device: norms are ones, matrices normal.

    The standard deviation is 1 / sqrt(inputs), so logits have one of about 1; the same seed gives the same weights on one
    kind of device.
    """
    generator = torch.Generator(model.place.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.1, generator=generator)
        else:
            parameter.fill_(1.0)
