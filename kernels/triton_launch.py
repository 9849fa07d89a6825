"""Programmatic dependent launch (PDL): a kernel's start and its loads of constants run under the end of the kernel before it.

The rules that make it safe, for every kernel launched with `launch_pdl=True`: each program calls `gdc_wait` before it reads or
writes anything that the kernel before may write or read, and calls `gdc_launch_dependents` only after its own `gdc_wait`. So
when a kernel starts, all but the kernel directly before it have ended, and only that one's inputs and outputs must wait.
"""

from __future__ import annotations

import torch
from torch import Tensor


def has_pdl(x: Tensor) -> bool:
    """Whether kernels on x's device may be launched with `launch_pdl=True`: from Hopper on, and never interpreted."""
    return not x.is_cpu and torch.cuda.get_device_capability(x.device)[0] >= 9
