"""The shipped files of the demo model: size, tokenizer, chat template, and packing of training batches."""

from __future__ import annotations

import json
import struct
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from scripts.demo_model import data, generate, train
from scripts.demo_model.chat import assistant, calls, render, user
from scripts.demo_model.tokenizer import END_OF_TEXT, IM_END, MODEL_DIR, TAGS

MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))
    return document


def rendered(messages: list[dict[str, Any]], **values: Any) -> str:
    """The chat template in an environment like that of transformers."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = fail
    return environment.from_string(read("tokenizer_config.json")["chat_template"]).render(messages=messages, **values)


def fail(message: str) -> None:
    raise ValueError(message)


def test_the_template_in_the_package_is_the_one_beside_the_scripts() -> None:
    source = Path(generate.__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    assert read("tokenizer_config.json")["chat_template"] == source.rstrip("\n")


def test_the_template_renders_like_its_twin_in_training() -> None:
    for name in generate.EVALUATIONS:
        for sample in generate.evaluation(name, 10, "template"):
            messages: list[dict[str, Any]] = [*sample.messages, assistant("yes"), user("and?"), assistant("no")]
            assert rendered(messages, tools=list(sample.tools)) == render(messages, sample.tools)


def test_the_template_asks_for_an_answer() -> None:
    assert rendered([user("hi")], add_generation_prompt=True) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_template_reads_parts_and_other_roles() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None},
    ]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
    assert rendered(messages) == expected


def test_the_template_refuses_images() -> None:
    with pytest.raises(ValueError, match="image_url"):
        rendered([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


def test_arguments_may_be_json_already() -> None:
    as_text = {"function": {"name": "f", "arguments": '{"a": 1}'}, "type": "function", "id": "1"}
    messages = [user("x"), calls(("f", {"a": 1}))]
    assert rendered([user("x"), {"role": "assistant", "tool_calls": [as_text]}]) == rendered(messages) == render(messages)


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, range(1, 0x300))) + " 漢字 🚀 \r\n\t 2026"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("2026").ids) == 4


def test_tags_stay_in_decoded_text_and_markers_do_not(tokenizer: Tokenizer) -> None:
    for tag in TAGS:
        assert len(tokenizer.encode(tag).ids) == 1
        assert tokenizer.decode(tokenizer.encode(tag + IM_END).ids) == tag


def test_configuration_fits_tokenizer_and_weights(tokenizer: Tokenizer) -> None:
    config, generation = read("config.json"), read("generation_config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 4096
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert generation["eos_token_id"] == [tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END_OF_TEXT)]


def test_the_weights_are_small_and_bf16() -> None:
    path = MODEL_DIR / "model.safetensors"
    assert path.stat().st_size <= MAX_BYTES
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    assert {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"} == {"BF16"}


def test_batches_hold_whole_conversations(tokenizer: Tokenizer) -> None:
    batch = data.make_batch(tokenizer, "test", 0, 4 * data.SHORT_ROW)
    assert batch.shape == (4, data.SHORT_ROW)
    assert np.array_equal(batch, data.make_batch(tokenizer, "test", 0, 4 * data.SHORT_ROW))
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id(END_OF_TEXT)
    assert (batch[:, 0] == start).all()
    assert (batch[:, -1] == end).all() or (batch[:, -1] != start).all()


def test_only_answers_are_learned(tokenizer: Tokenizer) -> None:
    tokens = train.Tokens.of(tokenizer)
    for text in islice(generate.conversations("mask", generate.SHORT_CHARS), 30):
        ids = torch.tensor([tokenizer.encode(text + END_OF_TEXT).ids])
        learned = ids[train.answer_mask(ids, tokens)].tolist()
        answers = [part.split("\n", 1)[1] for part in text.split("<|im_start|>") if part.startswith("assistant\n")]
        assert tokenizer.decode(learned, skip_special_tokens=False) == "".join(answer.rstrip("\n") for answer in answers)
