"""Kernels are compiled by child processes while the engine imports torch and loads its weights. No torch here.

Each child (kernel_process) makes the runner's steps on tensors without memory, to find what they launch, and compiles a share
of it into Triton's cache on disk, where the engine finds it at its first launches. Nothing depends on their success: what is
not there is compiled when it is first launched. A child has no device, and ends when its standard input does: with the engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from .config import EngineConfig
from .cuda_context import CudaDevice
from .kernel_cache import VARIABLE
from .model_config import ModelConfig

MAX_PROCESSES = 12
"""Each takes a second or more to import torch, and half a GiB of memory; more than so many save next to nothing."""
CORES_LEFT = 2
"""For the engine itself and a frontend."""
MODULE = f"{__package__}.kernel_process"


@dataclass(frozen=True, slots=True)
class KernelJob:
    """What a child must know; a line of JSON in its standard input."""

    config: EngineConfig
    """Without what is nothing to kernels."""
    model_dir: str
    device: CudaDevice
    claims_dir: str
    """Where children say which kernel they compile."""

    def to_line(self) -> bytes:
        """For from_line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> KernelJob:
        """The inverse of to_line."""
        raw = json.loads(line)
        config = EngineConfig(**{**raw["config"], "served_model_names": ()})
        return cls(config, raw["model_dir"], CudaDevice(**raw["device"]), raw["claims_dir"])


class KernelsAhead:
    """The children, which are there for as long as the `with` block at most."""

    def __init__(
        self,
        config: EngineConfig,
        model_dir: Path,
        model_config: ModelConfig,
        device: Future[CudaDevice | None],
        environment: Mapping[str, str],
    ) -> None:
        """Nothing is compiled if that was done before for such an engine on such a device, or if there is no device."""
        self._config = replace(config, download_dir=None, socket_dir=None, served_model_names=())
        self._model_dir, self._model_config, self._device, self._environment = (
            model_dir,
            model_config,
            device,
            dict(environment),
        )
        self._children: list[subprocess.Popen[bytes]] = []
        self._claims_dir: str | None = None
        self._done: Path | None = None
        self._thread = threading.Thread(target=self._start, name="kernels-ahead")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def wait(self) -> None:
        """Returns when all that can be compiled is."""
        self._thread.join()
        codes = [child.wait() for child in self._children]
        if codes and not any(codes) and self._done is not None:
            with contextlib.suppress(OSError):
                self._done.parent.mkdir(parents=True, exist_ok=True)
                self._done.touch()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.join()
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
        if self._claims_dir is not None:
            shutil.rmtree(self._claims_dir, ignore_errors=True)

    def _start(self) -> None:
        try:
            device = self._device.result()
            if device is None:
                return
            done = Path(self._environment[VARIABLE]) / f"penstock-{self._fingerprint(device)}"
            if done.exists():
                return
            print("Compiling kernels", file=sys.stderr, flush=True)
            self._claims_dir, self._done = tempfile.mkdtemp(prefix="penstock-kernels-"), done
            job = KernelJob(self._config, str(self._model_dir.resolve()), device, self._claims_dir)
            for _ in range(num_processes(len(os.sched_getaffinity(0)))):
                self._children.append(self._start_child(job.to_line()))
        except Exception as error:
            print(f"Kernels are not compiled ahead: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _start_child(self, job: bytes) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=self._environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the engine
        )
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(job)
            child.stdin.flush()
        return child

    def _fingerprint(self, device: CudaDevice) -> str:
        """Of everything that decides which kernels there are and what is compiled from them."""
        config, digest = self._config, blake2b(digest_size=16)
        for path in sorted((Path(__file__).parent.parent / "kernels").glob("*.*")):
            digest.update(path.read_bytes())
        sizes = (config.block_size, config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len)
        modes = (config.dtype, config.deterministic, config.enable_prefix_caching)
        digest.update(repr((self._model_config, sizes, modes, device, metadata.version("triton"))).encode())
        return digest.hexdigest()


def num_processes(num_cores: int) -> int:
    """How many children are worth starting."""
    return max(1, min(MAX_PROCESSES, num_cores - CORES_LEFT))
