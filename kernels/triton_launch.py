"""Programmatic dependent launch (PDL): a kernel's start and its loads of constants run under the end of the kernel before it.

The rules that make it safe, for every kernel launched with `launch_pdl=True`: each program calls `gdc_wait`, on every path,
before its first store and before it reads anything but constants: weights, tables and keys and values that were written before
the step, and the step's positions and slots, which are complete before the embedding because that is launched ordinarily. So a
wait covers all kernels before: each of them could end only after its own wait. And memory that the allocator hands out again
within a step or a graph is never written while an earlier kernel reads it. `gdc_launch_dependents` orders no memory and may
stand at a kernel's very start, since what starts then waits too. A kernel without any of this may stand anywhere between: what
is launched ordinarily starts when everything before it has ended.
"""

from __future__ import annotations

import torch
from torch import Tensor


def has_pdl(x: Tensor) -> bool:
    """Whether kernels on x's device may be launched with `launch_pdl=True`: from Hopper on, and never interpreted."""
    return not x.is_cpu and torch.cuda.get_device_capability(x.device)[0] >= 9
