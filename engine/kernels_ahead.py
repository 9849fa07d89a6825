"""What a runner on a GPU has done before its first step: kernels compiled beside its weights' loading, graphs captured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, runtime_checkable

from .kernel_cache import VARIABLE


@runtime_checkable
class LaunchesKernels(Protocol):
    """A runner that can say how its kernels are launched."""

    def kernel_calls(self) -> Sequence[Callable[[], object]]:
        """Calls that together launch every kernel of usual steps; see kernels.triton_compile.compile_ahead."""


@runtime_checkable
class CapturesGraphs(Protocol):
    """A runner with CUDA graphs."""

    def prepare(self) -> None:
        """Captures the first graphs; to be called once, when nothing else uses the device, before the engine is ready."""


def compile_kernels(runner: object, kind: str, environment: Mapping[str, str]) -> None:
    """Compiles what the runner's steps need, unless that was done before for a runner of this `kind` on such a device.

    `kind` says how the runner was set up. Nothing depends on success: what is not compiled here is compiled when it is first
    launched.
    """
    if not isinstance(runner, LaunchesKernels):
        return
    from ..kernels.triton_compile import compile_ahead, fingerprint

    directory = Path(environment[VARIABLE])
    digest = blake2b(f"{fingerprint()} {kind}".encode(), digest_size=16)
    done = directory / f"penstock-{digest.hexdigest()}"
    if done.exists():
        return
    print("Compiling kernels", file=sys.stderr, flush=True)
    try:
        compile_ahead(runner.kernel_calls())
        directory.mkdir(parents=True, exist_ok=True)
        done.touch()
    except Exception as error:
        print(f"Kernels could not be compiled ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
