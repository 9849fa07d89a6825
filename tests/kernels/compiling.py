"""Compiles whatever Triton kernels a function launches, for GPUs that are not there, and says what each takes of a block.

The function runs in a child process without the interpreter, once per architecture, on "meta" tensors: launches compile and
stop there, so what is checked is exactly what would run, constants and launch options included. `torch.cuda.get_device_*`
answer for the architecture. Triton's own cache makes a second run fast.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, unused-ignore]
from triton.runtime.driver import driver  # type: ignore[import-untyped, unused-ignore]
from triton.runtime.jit import JITFunction  # type: ignore[import-untyped, unused-ignore]

ROOT = Path(__file__).parent.parent.parent
SHARED_BYTES = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""What one block may take, per architecture (compute capability times ten)."""
NUM_MULTIPROCESSORS = {80: 108, 89: 142, 90: 132, 100: 148}
ARCHITECTURES = tuple(SHARED_BYTES)
TIMEOUT_S = 110


@dataclasses.dataclass(frozen=True)
class CompiledLaunch:
    """One kernel as launched, compiled."""

    kernel: str
    arch: int
    num_warps: int
    registers: int
    """Per thread."""
    shared_bytes: int
    """Per block."""
    spilled_bytes: int
    """Per thread, in local memory: spilled registers and arrays that did not fit into them."""
    constants: dict[str, str]
    """The constexpr arguments."""
    ptx: str


def compile_launches(launches: Callable[[], object], architectures: Sequence[int] = ARCHITECTURES) -> list[CompiledLaunch]:
    """Every distinct kernel that `launches`, a module's own function, launches on tensors of device "meta"."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    call = [f"{launches.__module__}:{launches.__qualname__}", *map(str, architectures)]
    with tempfile.NamedTemporaryFile() as report:
        child = subprocess.run(
            [sys.executable, "-m", "tests.kernels.compiling", report.name, *call],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert child.returncode == 0, child.stdout + child.stderr
        return [CompiledLaunch(**launch) for launch in json.load(report)]


def check_launches(
    launches: Callable[[], object], architectures: Sequence[int] = ARCHITECTURES, *, max_spilled_bytes: int = 0
) -> list[CompiledLaunch]:
    """compile_launches, and fails where a block takes more than its GPU has or a thread spills more than so much."""
    compiled = compile_launches(launches, architectures)
    assert {launch.arch for launch in compiled} == set(architectures)
    for launch in compiled:
        what = f"{launch.kernel} on sm_{launch.arch} with {launch.constants}, {launch.num_warps} warps"
        assert launch.shared_bytes <= SHARED_BYTES[launch.arch], f"{what}: {launch.shared_bytes} bytes of shared memory"
        spilled = f"{what}: {launch.spilled_bytes} bytes spilled, {launch.registers} registers"
        assert launch.spilled_bytes <= max_spilled_bytes, spilled
    return compiled


class _AbsentGPU:
    """Stands in for Triton's driver: says what to compile for, and has no device."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """Triton keeps compiled kernels by device."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _answer_for(arch: int) -> None:
    """Makes Triton and torch.cuda speak of a GPU of this architecture."""
    properties = SimpleNamespace(
        major=arch // 10,
        minor=arch % 10,
        multi_processor_count=NUM_MULTIPROCESSORS[arch],
        shared_memory_per_block_optin=SHARED_BYTES[arch],
    )
    driver.set_active(_AbsentGPU(arch))
    torch.cuda.get_device_capability = lambda device=None: (arch // 10, arch % 10)
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment, return-value]


def _record(launches: Callable[[], object], arch: int) -> list[tuple[Any, dict[str, str]]]:
    """(compiled kernel, its constants) of each launch."""
    recorded = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> Any:
        kernel = run(self, *args, **{**options, "warmup": True})
        names = kernel.src.fn.arg_names
        constants = {names[path[0]]: str(value) for path, value in kernel.src.constants.items()}
        recorded.append((kernel, constants))
        return kernel

    _answer_for(arch)
    JITFunction.run = compile_only
    try:
        launches()
    finally:
        JITFunction.run = run
    return list({kernel.hash: (kernel, constants) for kernel, constants in recorded}.values())


def _measure(kernel: Any, constants: dict[str, str], arch: int) -> CompiledLaunch:
    """Reads the resources out of the machine code."""
    cuobjdump = str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        command = [cuobjdump, "--dump-resource-usage", cubin.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(amount) for name, amount in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report)}
    return CompiledLaunch(
        kernel=kernel.metadata.name,
        arch=arch,
        num_warps=kernel.metadata.num_warps,
        registers=usage["REG"],
        shared_bytes=kernel.metadata.shared,
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        constants=constants,
        ptx=kernel.asm["ptx"],
    )


def _main(report: str, target: str, *architectures: str) -> None:
    module, _, name = target.partition(":")
    launches = getattr(importlib.import_module(module), name)
    compiled = [
        dataclasses.asdict(_measure(kernel, constants, arch))
        for arch in map(int, architectures)
        for kernel, constants in _record(launches, arch)
    ]
    Path(report).write_text(json.dumps(compiled))


if __name__ == "__main__":
    _main(*sys.argv[1:])
