"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from .errors import ModelNotFound
from .served_model import ServedModel
from .service import Service


def models_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models", summary="The models being served")
    async def list_models() -> dict[str, Any]:
        model = service.ready_model()
        return {"object": "list", "data": [_card(model, name) for name in model.facts.served_model_names]}

    @router.get("/v1/models/{model_id:path}", summary="One model")
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        model = service.ready_model()
        if model_id not in model.facts.served_model_names:
            raise ModelNotFound(model_id)
        return _card(model, model_id)

    return router


def _card(model: ServedModel, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.facts.created_s,
        "owned_by": "penstock",
        "root": model.name,
        "parent": None,
        "max_model_len": model.facts.max_model_len,
    }
