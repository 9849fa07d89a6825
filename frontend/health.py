"""/livez: the process turns. /readyz and /health: a request would be served now. /version. /: where to look."""

from __future__ import annotations

from fastapi import APIRouter, Response

from .errors import RETRY_AFTER_S
from .service import Service


def health_router(service: Service, version: str) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Server"])

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", summary="The process answers")
    async def live() -> Response:
        return Response()

    @router.head("/readyz", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/readyz", summary="A request would be served now")
    @router.get("/health", summary="The same as /readyz")
    async def ready() -> Response:
        if service.is_ready:
            return Response()
        return Response(status_code=503, headers={"Retry-After": str(RETRY_AFTER_S)})

    @router.get("/version", summary="The server's version")
    async def show_version() -> dict[str, str]:
        return {"version": version}

    @router.get("/", summary="Where to look")
    async def index() -> dict[str, str]:
        return {"server": "Penstock", "version": version, "api": "/v1", "docs": "/docs"}

    return router
