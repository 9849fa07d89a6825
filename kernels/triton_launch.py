"""Programmatic dependent launch (PDL): a kernel's start, and its reads of what is settled, run under the end of the one before.

The rules for every kernel launched with `launch_pdl=True`: each program, on every path, calls `gdc_wait` before its first store
and before it reads anything that a kernel launched the same way has written; so a wait covers all kernels before, not only the
last. Before the wait it may read weights, and the step's own tensors (positions, slots): those are complete before the
embedding, which is launched ordinarily. `gdc_launch_dependents` orders no memory and may stand at a kernel's very start.
"""

from __future__ import annotations

import torch
from torch import Tensor


def has_pdl(x: Tensor) -> bool:
    """Whether kernels on x's device may be launched with `launch_pdl=True`: from Hopper on, and never interpreted."""
    return not x.is_cpu and torch.cuda.get_device_capability(x.device)[0] >= 9
