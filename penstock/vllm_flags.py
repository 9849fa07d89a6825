"""Flags of vLLM that people have in their start scripts and that mean nothing here, or not yet.

Those without effect are accepted with one warning each; those that would change answers, speed or safety are refused with the
reason, except for the values that ask for nothing (`--tensor-parallel-size 1`, `--quantization none`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

NO_TOOLS = "tools and reasoning are not parsed yet"
NO_LORA = "LoRA adapters are not built yet"
NO_SPECULATION = "speculative decoding is not built yet"
ONE_GPU = "one GPU only for the time being"
NO_TLS = "TLS is not built in: put a reverse proxy in front"
ALWAYS_QUIET = "requests are not logged"
TUNED = "this is chosen automatically"

WITHOUT_EFFECT: dict[tuple[str, ...], str] = {
    ("--trust-remote-code",): "code from a model's repository is never run",
    ("--disable-log-requests",): ALWAYS_QUIET,
    ("--enable-log-requests",): ALWAYS_QUIET,
    ("--disable-log-stats",): "figures are at /metrics",
    ("--disable-uvicorn-access-log",): ALWAYS_QUIET,
    ("--disable-fastapi-docs",): "/docs stays",
    ("--enable-prompt-tokens-details",): "usage always says how many prompt tokens were cached",
    ("--enable-request-id-headers",): "request ids are always sent",
    ("--enable-force-include-usage",): "ask for usage with stream_options",
    ("--enable-auto-tool-choice",): NO_TOOLS,
    ("--enable-reasoning",): NO_TOOLS,
    ("--disable-custom-all-reduce",): ONE_GPU,
    ("--enable-sleep-mode",): "sleeping is not built yet",
    ("--use-v2-block-manager",): TUNED,
    ("--return-tokens-as-token-ids",): "ask for it in the request",
}
"""Switches; the opposite of each is accepted alike."""

WITHOUT_EFFECT_WITH_VALUE: dict[tuple[str, ...], str] = {
    ("--tool-call-parser",): NO_TOOLS,
    ("--tool-parser-plugin",): NO_TOOLS,
    ("--reasoning-parser",): NO_TOOLS,
    ("--swap-space",): "preempted requests are computed again, not swapped",
    ("--preemption-mode",): "preempted requests are computed again",
    ("--compilation-config", "-O"): TUNED,
    ("--cudagraph-capture-sizes", "--cuda-graph-sizes"): TUNED,
    ("--max-seq-len-to-capture",): TUNED,
    ("--attention-backend",): TUNED,
    ("--num-scheduler-steps",): TUNED,
    ("--max-num-partial-prefills",): TUNED,
    ("--max-long-partial-prefills",): TUNED,
    ("--long-prefill-token-threshold",): TUNED,
    ("--scheduling-policy",): "requests are served in the order of their priority, then of their arrival",
    ("--distributed-executor-backend",): ONE_GPU,
    ("--max-parallel-loading-workers",): TUNED,
    ("--safetensors-load-strategy",): TUNED,
    ("--tokenizer-mode",): "tokenizer.json is used",
    ("--config-format",): "config.json is read",
    ("--prefix-caching-hash-algo",): TUNED,
    ("--guided-decoding-backend",): "structured output is not built yet",
    ("--structured-outputs-config",): "structured output is not built yet",
    ("--chat-template-content-format",): "it follows from the template",
    ("--response-role",): "it is always assistant",
    ("--max-log-len",): ALWAYS_QUIET,
    ("--max-logprobs",): "up to 20 are given",
    ("--limit-mm-per-prompt",): "text only",
    ("--mm-processor-kwargs",): "text only",
    ("--otlp-traces-endpoint",): "traces are not built yet",
    ("--allowed-origins",): "no cross-origin headers are sent",
    ("--allowed-methods",): "no cross-origin headers are sent",
    ("--allowed-headers",): "no cross-origin headers are sent",
    ("--max-num-queued-reqs",): "the queue is bounded anyway",
    ("--max-num-queued-tokens",): "the queue is bounded anyway",
}

LISTS = frozenset({"--cudagraph-capture-sizes", "--lora-modules", "--middleware", "--logits-processors"})
"""Flags that take several values."""

REFUSED_SWITCHES: dict[tuple[str, ...], str] = {
    ("--enable-lora",): NO_LORA,
    ("--enable-expert-parallel",): ONE_GPU,
}

REFUSED: dict[tuple[str, ...], tuple[str, frozenset[str]]] = {
    ("--tensor-parallel-size", "-tp"): (ONE_GPU, frozenset({"1"})),
    ("--pipeline-parallel-size", "-pp"): (ONE_GPU, frozenset({"1"})),
    ("--data-parallel-size", "-dp"): (ONE_GPU, frozenset({"1"})),
    ("--quantization", "-q"): ("quantized checkpoints are not supported yet", frozenset({"none", "null"})),
    ("--kv-cache-dtype",): ("the KV cache has the model's dtype", frozenset({"auto"})),
    ("--speculative-config",): (NO_SPECULATION, frozenset({"none", "null"})),
    ("--speculative-model",): (NO_SPECULATION, frozenset({"none", "null"})),
    ("--num-speculative-tokens",): (NO_SPECULATION, frozenset({"0"})),
    ("--lora-modules",): (NO_LORA, frozenset()),
    ("--max-loras",): (NO_LORA, frozenset({"0", "1"})),
    ("--max-lora-rank",): (NO_LORA, frozenset({"16"})),
    ("--cpu-offload-gb",): ("weights are not offloaded", frozenset({"0"})),
    ("--kv-offloading-size",): ("the KV cache is not offloaded", frozenset({"0"})),
    ("--task",): ("text generation only", frozenset({"auto", "generate"})),
    ("--runner",): ("text generation only", frozenset({"auto", "generate"})),
    ("--chat-template",): (
        "put chat_template.jinja into the model's directory, or into another one for --tokenizer",
        frozenset(),
    ),
    ("--generation-config",): ("defaults come from the model's generation_config.json", frozenset({"auto"})),
    ("--override-generation-config",): ("edit the model's generation_config.json", frozenset({"{}"})),
    ("--hf-overrides",): ("edit the model's config.json", frozenset({"{}"})),
    ("--rope-scaling",): ("edit the model's config.json", frozenset({"none", "null"})),
    ("--rope-theta",): ("edit the model's config.json", frozenset({"none", "null"})),
    ("--config",): ("there are no configuration files yet: give the flags", frozenset()),
    ("--middleware",): ("foreign code is not loaded into the server", frozenset()),
    ("--logits-processors",): ("foreign code is not loaded into the server", frozenset()),
    ("--ssl-keyfile",): (NO_TLS, frozenset()),
    ("--ssl-certfile",): (NO_TLS, frozenset()),
    ("--ssl-ca-certs",): (NO_TLS, frozenset()),
    ("--root-path",): ("strip the prefix in the reverse proxy", frozenset({"", "/"})),
    ("--uds",): ("only TCP is served", frozenset()),
}
"""Flags with a value -> the reason, and the values that ask for nothing and are therefore accepted."""


class _Warn(argparse.Action):
    """Notes on `namespace.warnings` that the flag has no effect."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        text = f"{option} has no effect: {self.const}"
        if text not in namespace.warnings:
            namespace.warnings = [*namespace.warnings, text]


class _Refuse(argparse.Action):
    """Ends the command with the reason, unless the value asks for nothing."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        reason, harmless = self.const
        given: Sequence[str] = values
        if given and all(value.strip().lower() in harmless for value in given):
            return
        parser.error(f"{' '.join([str(option), *given])}: {reason}")


def add_vllm_flags(parser: argparse.ArgumentParser) -> None:
    """Teaches `parser` all of the above. The warnings are found in the parsed namespace's `warnings`."""
    parser.set_defaults(warnings=[])

    def add(names: tuple[str, ...], action: type[argparse.Action], num_values: int | str, const: object) -> None:
        values = "+" if LISTS.intersection(names) else num_values
        parser.add_argument(
            *names, action=action, nargs=values, const=const, dest="warnings", default=[], help=argparse.SUPPRESS
        )

    for names, why in WITHOUT_EFFECT.items():
        add((*names, *_negated(names)), _Warn, 0, why)
    parser.add_argument(
        "--enable-chunked-prefill", action="store_true", help="accepted: long prompts are always taken in chunks"
    )
    add(("--no-enable-chunked-prefill",), _Warn, 0, "long prompts are always taken in chunks")
    for names, why in WITHOUT_EFFECT_WITH_VALUE.items():
        add(names, _Warn, 1, why)
    for names, why in REFUSED_SWITCHES.items():
        add(names, _Refuse, 0, (why, frozenset()))
        parser.add_argument(*_negated(names), action="store_true", help=argparse.SUPPRESS)
    for names, (why, harmless) in REFUSED.items():
        add(names, _Refuse, 1, (why, harmless))


def _negated(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"--no-{name.removeprefix('--')}" for name in names)
