from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from penstock.ipc.messages import FinishReason, RejectReason, Submit
from tests.frontend.fake_engine import FakeEngine, answer, reject
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


async def test_each_of_n_choices_is_its_own_request_with_its_own_seed(frontend: Frontend) -> None:
    completion = await frontend.openai().chat.completions.create(model="toy", messages=USER, n=3, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 39
    assert completion.usage.prompt_tokens < 39
    seeds = [submit.sampling.seed for submit in frontend.engine.submits]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


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


async def test_unseeded_requests_get_different_seeds(frontend: Frontend) -> None:
    await asyncio.gather(frontend.chat(), frontend.chat())
    first, second = (submit.sampling.seed for submit in frontend.engine.submits)
    assert first != second
    assert 0 <= first < 2**63


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


async def test_a_missing_max_tokens_means_the_context_left(frontend: Frontend) -> None:
    await frontend.chat()
    await frontend.chat(max_completion_tokens=5, max_tokens=9)
    first, second = frontend.engine.submits
    assert first.sampling.max_tokens == 256 - len(first.token_ids) // 4
    assert second.sampling.max_tokens == 5


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


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (RejectReason.INVALID, 400, None),
        (RejectReason.TOO_LONG, 400, "context_length_exceeded"),
        (RejectReason.OVERLOADED, 503, None),
        (RejectReason.DRAINING, 503, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_engines_refusal_is_an_http_status_also_for_a_stream(
    frontend: Frontend, reason: RejectReason, status: int, code: str | None, stream: bool
) -> None:
    frontend.engine.script = reject(reason, "the reason", "top_k")
    response = await frontend.chat(stream=stream)
    assert response.status_code == status
    error = error_of(response)
    assert error["message"] == "the reason"
    assert error["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)
    if status == 400:
        assert error["param"] == "top_k"


async def test_a_failure_in_the_stream_is_an_event_and_no_done_follows(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72]))
        engine.send(identity, engine.outputs(submit.request_id, 1, [], FinishReason.ERROR, error="secret /path"))

    frontend.engine.script = fail
    response = await frontend.chat(stream=True)
    *chunks, last = events(response)
    assert chunks[1]["choices"][0]["delta"]["content"] == "H"
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in last["error"]["message"]


async def test_the_openai_client_raises_a_failure_in_the_stream(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [72, 73]))
        engine.send(identity, engine.outputs(submit.request_id, 2, [], FinishReason.ERROR))

    frontend.engine.script = fail
    stream = await frontend.openai().chat.completions.create(model="toy", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="Internal error"):
        async for _ in stream:
            pass


async def test_a_failed_request_without_stream_is_a_500_without_details(frontend: Frontend) -> None:
    def fail(engine: FakeEngine, identity: bytes, submit: Submit) -> None:
        engine.send(identity, engine.outputs(submit.request_id, 0, [], FinishReason.ERROR, error="secret"))

    frontend.engine.script = fail
    response = await frontend.chat()
    assert response.status_code == 500
    assert "secret" not in response.text
    frontend.engine.script = answer
    assert (await frontend.chat()).status_code == 200


async def test_generation_defaults_of_the_model_hold_where_the_request_is_silent(frontend: Frontend) -> None:
    frontend.engine.restart(generation_defaults={"temperature": 0.6, "top_k": 20, "top_p": 0.9})
    async with asyncio.timeout(10):
        while not (frontend.service.is_ready and frontend.service.client.facts == frontend.engine.ready()):
            await asyncio.sleep(0.01)
    await frontend.chat(top_p=0.5)
    await frontend.chat(temperature=0, top_k=-1)
    first, second = (submit.sampling for submit in frontend.engine.submits)
    assert (first.temperature, first.top_k, first.top_p) == (0.6, 20, 0.5)
    assert (second.temperature, second.top_k, second.top_p) == (0.0, 0, 0.9)


async def test_every_sampling_field_reaches_the_engine(frontend: Frontend) -> None:
    response = await frontend.chat(
        temperature=0.7, top_p=0.8, top_k=5, min_p=0.1, presence_penalty=0.3, frequency_penalty=-0.4,
        repetition_penalty=1.2, logit_bias={"65": -100, "66": 5}, min_tokens=2, max_tokens=9, stop_token_ids=[1, 2],
        ignore_eos=True, seed=-1, priority=3, cache_salt="tenant",
    )  # fmt: skip
    assert response.status_code == 200, response.text
    [submit] = frontend.engine.submits
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.8, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.3, -0.4, 1.2)
    assert sampling.logit_bias == {65: -100.0, 66: 5.0}
    assert (sampling.min_tokens, sampling.max_tokens, sampling.stop_token_ids) == (2, 9, (1, 2))
    assert sampling.ignore_eos
    assert sampling.seed == 2**63 - 1
    assert (submit.priority, submit.cache_salt) == (3, "tenant")


async def test_token_ids_come_back_when_asked_for(frontend: Frontend) -> None:
    [choice] = (await frontend.chat(return_token_ids=True)).json()["choices"]
    assert choice["token_ids"] == list(b"Hello, world!")
