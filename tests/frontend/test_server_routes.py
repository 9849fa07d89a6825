from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import openai
import pytest

from penstock.frontend import service
from penstock.frontend.board import Place, Presence, make_board
from penstock.ipc.messages import Metric, Sample
from tests.frontend.harness import Frontend, error_of, running_frontend, until


async def test_the_models_are_listed_and_found(frontend: Frontend) -> None:
    client = frontend.openai()
    models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["toy", "org/toy-alias"]
    model: Any = await client.models.retrieve("org/toy-alias")
    assert model.object == "model"
    assert model.max_model_len == 256
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("no/such")
    assert caught.value.code == "model_not_found"


async def test_tokenize_and_detokenize_undo_each_other(frontend: Frontend) -> None:
    text = "Grüße 😀"
    tokens = (await frontend.post("/tokenize", {"prompt": text})).json()
    assert tokens == {"count": len(text.encode()), "max_model_len": 256, "tokens": list(text.encode()), "token_strs": None}
    assert (await frontend.post("/detokenize", {"tokens": tokens["tokens"]})).json() == {"prompt": text}


async def test_tokenize_takes_a_conversation_as_chat_does(frontend: Frontend) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}
    tokens = (await frontend.post("/tokenize", body)).json()
    assert tokens["token_strs"][0] == "<|im_start|>"
    assert "".join(tokens["token_strs"]).endswith("<|im_start|>assistant\n")
    await frontend.chat()
    assert len(frontend.engine.submits[0].token_ids) // 4 == tokens["count"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, None),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "x" * 10**6}, "prompt"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_wrong_tokens_and_texts_are_refused(frontend: Frontend, path: str, body: Any, param: str | None) -> None:
    response = await frontend.post(path, body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


async def test_ids_beyond_the_tokenizer_but_within_the_logits_read_as_nothing(frontend: Frontend) -> None:
    assert (await frontend.post("/detokenize", {"tokens": [72, 299, 73]})).json() == {"prompt": "HI"}


async def test_health_follows_the_engine(frontend: Frontend) -> None:
    for path in ("/livez", "/readyz", "/health"):
        response = await frontend.http.get(path)
        assert (response.status_code, response.content) == (200, b"")
        assert (await frontend.http.head(path)).status_code == 200
    frontend.engine.stop()
    await until(lambda: not frontend.service.is_ready)
    assert (await frontend.http.get("/livez")).status_code == 200
    for path in ("/readyz", "/health"):
        response = await frontend.http.get(path)
        assert (response.status_code, response.content) == (503, b"")
        assert int(response.headers["retry-after"]) >= 1
    for path in ("/v1/models", "/metrics"):
        response = await frontend.http.get(path)
        assert response.status_code == 503
        assert "retry-after" in response.headers
        error_of(response)
    frontend.engine.start()
    await until(lambda: frontend.service.is_ready)
    assert (await frontend.http.get("/readyz")).status_code == 200


async def test_other_frontends_are_waited_for_in_the_beginning_only(
    toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "WAITS_FOR_OTHERS_S", 0.2)
    board_fd = make_board(2)
    try:
        async with running_frontend(toy_model_dir, board_fd=board_fd) as frontend:  # the other one never comes
            other = Place(board_fd, 1)
            for presence in (Presence.READY, Presence.NOT_READY, Presence.ABSENT):
                other.show(presence)
                assert (await frontend.http.get("/readyz")).status_code == 200
    finally:
        os.close(board_fd)


async def test_a_draining_frontend_takes_nothing_new(frontend: Frontend) -> None:
    frontend.service.is_draining = True
    assert (await frontend.http.get("/readyz")).status_code == 503
    response = await frontend.chat()
    assert response.status_code == 503
    assert "shutting down" in error_of(response)["message"]


async def test_metrics_are_the_engines_in_prometheus_format(frontend: Frontend) -> None:
    frontend.engine.stats = (
        Metric(name="num_requests_running", kind="gauge", help="Now running.", samples=(Sample(labels={}, value=3.0),)),
        Metric(
            name="request_success",
            kind="counter",
            help="Finished.",
            samples=(
                Sample(labels={"finished_reason": "stop"}, value=2.0),
                Sample(labels={"finished_reason": "length"}, value=5.0),
            ),
        ),
        Metric(
            name="time_to_first_token_seconds",
            kind="histogram",
            help="TTFT.",
            samples=(Sample(labels={}, value=0.75, bucket_counts=(1, 2, 2)),),
            bucket_bounds=(0.001, 0.5),
        ),
    )
    response = await frontend.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    for line in (
        "# TYPE penstock:num_requests_running gauge",
        "penstock:num_requests_running 3.0",
        "# TYPE penstock:request_success_total counter",
        'penstock:request_success_total{finished_reason="stop"} 2.0',
        'penstock:request_success_total{finished_reason="length"} 5.0',
        "# TYPE penstock:time_to_first_token_seconds histogram",
        'penstock:time_to_first_token_seconds_bucket{le="0.001"} 1.0',
        'penstock:time_to_first_token_seconds_bucket{le="+Inf"} 2.0',
        "penstock:time_to_first_token_seconds_count 2.0",
        "penstock:time_to_first_token_seconds_sum 0.75",
    ):
        assert line in lines, response.text


async def test_version_docs_and_schema_are_there(frontend: Frontend) -> None:
    assert set((await frontend.http.get("/version")).json()) == {"version"}
    assert (await frontend.http.get("/docs")).status_code == 200
    assert (await frontend.http.get("/")).json()["docs"] == "/docs"
    schema = (await frontend.http.get("/openapi.json")).json()
    properties = schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "stop", "logprobs", "max_completion_tokens"} <= set(properties)
    assert {"prompt", "echo"} <= set(schema["components"]["schemas"]["CompletionRequest"]["properties"])
