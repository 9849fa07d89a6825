"""Flags and configurations: one makes the other, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import flags
from penstock.engine.config import EngineConfig
from penstock.frontend.config import FrontendConfig
from penstock.vllm_flags import REFUSED, REFUSED_SWITCHES, WITHOUT_EFFECT, WITHOUT_EFFECT_WITH_VALUE, add_vllm_flags

SOCKET_DIR = Path("/run/penstock")


def make_parser() -> flags.Parser:
    parser = flags.Parser("penstock test", "%(prog)s", "A test.")
    flags.add_model_flags(parser)
    flags.add_http_flags(parser)
    flags.add_engine_flags(parser)
    add_vllm_flags(parser)
    return parser


def engine(*arguments: str) -> EngineConfig:
    parser = make_parser()
    return flags.engine_config(parser, parser.parse(arguments), None)


def frontend(*arguments: str, environment: str = "") -> FrontendConfig:
    parser = make_parser()
    return flags.frontend_config(parser, parser.parse(arguments), SOCKET_DIR, environment)


def test_the_line_people_have_in_their_scripts() -> None:
    text = (
        "--model X --port 8000 --max-model-len 8192 --gpu-memory-utilization 0.90"
        " --max-num-batched-tokens 32768 --max-num-seqs 256 --enable-chunked-prefill"
    )
    line = text.split()
    assert engine(*line) == EngineConfig(
        model="X", max_model_len=8192, gpu_memory_utilization=0.9, max_num_batched_tokens=32768, max_num_seqs=256
    )
    assert frontend(*line) == FrontendConfig(socket_dir=SOCKET_DIR, port=8000)
    assert make_parser().parse(line).warnings == []


def test_without_flags_the_configurations_are_the_default_ones() -> None:
    assert engine() == EngineConfig()
    assert frontend() == FrontendConfig(socket_dir=SOCKET_DIR)


def test_underscores_are_hyphens_in_flags_and_stay_in_values() -> None:
    assert engine("--max_model_len=8K", "--model", "my_model") == EngineConfig(model="my_model", max_model_len=8192)
    assert engine("--served_model_name=a_b").served_model_names == ("a_b",)


def test_the_model_may_stand_alone() -> None:
    assert engine("X").model == "X"
    assert engine("X", "--model", "X").model == "X"
    assert engine("--seed", "1", "X", "--swap-space", "4").model == "X"


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["--dtype", "half"], EngineConfig(dtype="float16")),
        (["--dtype", "float"], EngineConfig(dtype="float32")),
        (["--max-model-len", "auto"], EngineConfig()),
        (["--max-model-len", "-1"], EngineConfig()),
        (["--no-enable-prefix-caching"], EngineConfig(enable_prefix_caching=False)),
        (["--enable-prefix-caching"], EngineConfig()),
        (["--no-async-scheduling"], EngineConfig(async_scheduling=False)),
        (["--enforce-eager"], EngineConfig(enforce_eager=True)),
        (["--deterministic"], EngineConfig(deterministic=True)),
        (["--kv-cache-memory-bytes", "4GiB"], EngineConfig(kv_cache_memory_bytes=4 << 30)),
        (["--served-model-name", "a", "b", "--served-model-name", "c"], EngineConfig(served_model_names=("a", "b", "c"))),
        (["--download-dir", "/models"], EngineConfig(download_dir=Path("/models"))),
        (["--num-gpu-blocks-override", "64", "--block-size", "32"], EngineConfig(num_gpu_blocks_override=64, block_size=32)),
    ],
)
def test_flags_fill_the_engine_configuration(arguments: list[str], config: EngineConfig) -> None:
    assert engine(*arguments) == config


def test_keys_come_from_flags_and_environment() -> None:
    assert frontend("--api-key", "one", "two", environment="three, one").api_keys == ("one", "two", "three")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prot", "1"], "there is no flag --prot, did you mean --port?"),
        (["--max-modle-len=8"], "did you mean --max-model-len?"),
        (["--completely-unheard-of"], "there is no flag --completely-unheard-of (see"),
        (["--port", "http"], "--port: 'http' is not a whole number"),
        (["--host", ""], "--host: it is empty"),
        (["--served-model-name", "a", ""], "--served-model-name: it is empty"),
        (["--max-num-seqs", "65537"], "--max-num-seqs: 65537 is more than 65,536"),
        (["--gpu-memory-utilization", "nan"], "--gpu-memory-utilization: 'nan' is not a finite number"),
        (["--gpu-memory-utilization", "90"], "must be above 0 and at most 1"),
        (["--max-model-len", "many"], "--max-model-len: 'many' is not a number such as 8192"),
        (["--load-format", "pt"], "--load-format: invalid choice: 'pt'"),
        (["X", "--model", "Y"], "two models are named: X and --model Y"),
        (["X", "Y"], "unrecognized arguments: Y"),
        (["--model="], "the model's name is empty"),
        (["--tensor-parallel-size", "2"], "--tensor-parallel-size 2: one GPU only"),
        (["-tp", "4"], "-tp 4: one GPU only"),
        (["--quantization=awq"], "--quantization awq: quantized checkpoints are not supported yet"),
        (["--enable-lora"], "--enable-lora: LoRA adapters are not built yet"),
        (["--speculative-config", "{}"], "speculative decoding is not built yet"),
        (["--ssl-keyfile", "key.pem"], "TLS is not built in"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        engine(*arguments)
    assert exit_info.value.code == flags.USAGE_ERROR
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_bad_key_in_the_environment_is_named_by_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        frontend(environment="good,b ad")
    assert "PENSTOCK_API_KEY" in capsys.readouterr().err


def test_flags_of_vllm_without_effect_give_one_warning_each() -> None:
    arguments = []
    for names in WITHOUT_EFFECT:
        arguments += [names[0], names[0], "--no-" + names[0].removeprefix("--")]
    for names in WITHOUT_EFFECT_WITH_VALUE:
        arguments += [names[0], "1"]
    warnings = make_parser().parse(["X", *arguments]).warnings
    assert len(warnings) == 2 * len(WITHOUT_EFFECT) + len(WITHOUT_EFFECT_WITH_VALUE)
    assert "--trust-remote-code has no effect: code from a model's repository is never run" in warnings


def test_values_that_ask_for_nothing_are_accepted_silently() -> None:
    arguments = [text for names, (_, harmless) in REFUSED.items() for value in harmless for text in (names[0], value)]
    arguments += [f"--no-{names[0].removeprefix('--')}" for names in REFUSED_SWITCHES]
    assert make_parser().parse(arguments).warnings == []


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)
sizes = st.integers(1, 2**40)


@given(
    st.builds(
        EngineConfig,
        model=st.none() | names,
        revision=st.none() | names,
        served_model_names=st.lists(names, max_size=3).map(tuple),
        dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
        load_format=st.sampled_from(["auto", "dummy"]),
        max_model_len=st.none() | sizes,
        block_size=sizes,
        gpu_memory_utilization=st.floats(0.001, 1),
        kv_cache_memory_bytes=st.none() | sizes,
        enable_prefix_caching=st.booleans(),
        enforce_eager=st.booleans(),
        async_scheduling=st.booleans(),
        deterministic=st.booleans(),
        seed=st.integers(0, 2**63 - 1),
        download_dir=st.none() | st.just(Path("/a b")),
    )
)
def test_the_arguments_of_a_child_make_the_same_engine_configuration(config: EngineConfig) -> None:
    assert engine(*flags.engine_arguments(config)) == config


def test_the_arguments_of_a_child_make_the_same_frontend_configuration_without_its_keys() -> None:
    config = FrontendConfig(
        socket_dir=SOCKET_DIR,
        host="::1",
        port=0,
        api_keys=("secret",),
        shutdown_timeout_s=1.5,
        stream_interval=4,
        log_level="debug",
    )
    arguments = flags.frontend_arguments(config)
    assert not any("secret" in argument for argument in arguments)
    assert arguments.pop(0) == f"--socket-dir={SOCKET_DIR}"
    assert frontend(*arguments, environment="secret") == config
