from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.ipc.messages import FinishReason, Submit
from tests.frontend.fake_engine import FakeEngine
from tests.frontend.harness import Frontend, error_of, events

USER: list[Any] = [{"role": "user", "content": "hi"}]


async def test_a_chat_completion_parses_as_the_openai_client_expects(frontend: Frontend) -> None:
    completion = await frontend.openai().chat.completions.create(model="toy", messages=USER)
    [choice] = completion.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello, world!"
    assert choice.finish_reason == "length"
    assert completion.object == "chat.completion"
    assert completion.model == "toy"
    assert completion.id.startswith("chatcmpl-")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 13
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 13
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 1


async def test_a_stream_adds_up_and_has_openais_chunks(frontend: Frontend) -> None:
    stream = await frontend.openai().chat.completions.create(
        model="toy", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello, world!"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 13


async def test_deltas_carry_no_nulls_and_usage_comes_only_when_asked(frontend: Frontend) -> None:
    response = await frontend.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    *chunks, last = events(response)
    assert last == "[DONE]"
    for chunk in chunks:
        assert "usage" not in chunk
        assert None not in chunk["choices"][0]["delta"].values()
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}


async def test_continuous_usage_grows_with_every_chunk(frontend: Frontend) -> None:
    frontend.engine.delay_s = 0.02
    chunks = events(await frontend.chat(stream=True, stream_options={"continuous_usage_stats": True}))[:-1]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] == 13


async def test_streamed_choices_are_told_apart_by_their_index(frontend: Frontend) -> None:
    frontend.engine.delay_s = 0.002
    texts = {0: "", 1: "", 2: ""}
    reasons: dict[int, str] = {}
    for event in events(await frontend.chat(stream=True, n=3))[:-1]:
        [choice] = event["choices"]
        assert choice["index"] not in reasons, "nothing follows a finish reason"
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == dict.fromkeys(range(3), "Hello, world!")
    assert reasons == dict.fromkeys(range(3), "length")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_cuts_the_text_and_aborts_the_rest(frontend: Frontend, stream: bool) -> None:
    frontend.engine.tokens_per_message = 1
    frontend.engine.finish = FinishReason.LENGTH

    def endless(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        for position, token_id in enumerate(engine.reply):
            engine.send(identity, engine.outputs(submit.request_id, position, [token_id]))

    frontend.engine.script = endless
    response = await frontend.chat(stop=["o, w", "never"], stream=stream)
    if stream:
        choices = [event["choices"][0] for event in events(response)[:-1]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        last = choices[-1]
    else:
        [last] = response.json()["choices"]
        text = last["message"]["content"]
        assert response.json()["usage"]["completion_tokens"] == len("Hello, w")
    assert text == "Hell"
    assert last["finish_reason"] == "stop"
    assert last["stop_reason"] == "o, w"
    async with asyncio.timeout(5):
        while frontend.engine.aborted_ids != [1]:
            await asyncio.sleep(0.01)


async def test_a_stop_token_is_counted_but_not_shown(frontend: Frontend) -> None:
    frontend.engine.finish = FinishReason.STOP
    response = await frontend.chat(stop_token_ids=[ord("!")])
    [choice] = response.json()["choices"]
    assert choice["message"]["content"] == "Hello, world"
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == ord("!")
    assert response.json()["usage"]["completion_tokens"] == 13
    shown = await frontend.chat(stop_token_ids=[ord("!")], include_stop_str_in_output=True)
    assert shown.json()["choices"][0]["message"]["content"] == "Hello, world!"


async def test_the_end_of_sequence_token_is_no_stop_reason(frontend: Frontend) -> None:
    frontend.engine.finish = FinishReason.STOP
    [choice] = (await frontend.chat()).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] is None


async def test_a_character_is_never_cut_in_half(frontend: Frontend) -> None:
    frontend.engine.reply = list("a€😀z".encode())
    frontend.engine.tokens_per_message = 1
    frontend.engine.delay_s = 0.01
    texts = [event["choices"][0]["delta"].get("content", "") for event in events(await frontend.chat(stream=True))[:-1]]
    assert "".join(texts) == "a€😀z"
    assert set("".join(texts)) == {"a", "€", "😀", "z"}


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_belong_to_the_tokens_of_the_text(frontend: Frontend, stream: bool) -> None:
    client = frontend.openai()
    if stream:
        answer_stream = await client.chat.completions.create(
            model="toy", messages=USER, stream=True, logprobs=True, top_logprobs=2
        )
        entries = [
            entry
            async for chunk in answer_stream
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content or ()
        ]
    else:
        completion = await client.chat.completions.create(model="toy", messages=USER, logprobs=True, top_logprobs=2)
        assert completion.choices[0].logprobs is not None
        entries = list(completion.choices[0].logprobs.content or ())
    assert "".join(entry.token for entry in entries) == "Hello, world!"
    assert bytes(byte for entry in entries for byte in entry.bytes or ()) == b"Hello, world!"
    assert entries[0].logprob == -0.5
    assert [(top.token, top.logprob) for top in entries[0].top_logprobs] == [("A", -1.0), ("B", -2.0)]


async def test_the_conversation_reaches_the_engine_as_the_template_writes_it(frontend: Frontend) -> None:
    messages = [
        {"role": "developer", "content": "be brief", "name": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    assert (await frontend.chat(messages=messages)).status_code == 200
    expected = await frontend.post(
        "/tokenize",
        {
            "prompt": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
            "<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
        },
    )
    assert [int.from_bytes(frontend.engine.submits[0].token_ids[i : i + 4], "little") for i in range(0, 4 * 20, 4)] == (
        expected.json()["tokens"][:20]
    )
    assert len(frontend.engine.submits[0].token_ids) // 4 == expected.json()["count"]


async def test_the_final_message_can_be_continued(frontend: Frontend) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hel"}]
    await frontend.chat(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert frontend.engine.submits[0].token_ids.endswith(b"".join(byte.to_bytes(4, "little") for byte in b"\nHel"))
    both = await frontend.chat(messages=messages, continue_final_message=True, add_generation_prompt=True)
    assert error_of(both)["param"] == "continue_final_message"


async def test_token_ids_come_back_when_asked_for(frontend: Frontend) -> None:
    [choice] = (await frontend.chat(return_token_ids=True)).json()["choices"]
    assert choice["token_ids"] == list(b"Hello, world!")
