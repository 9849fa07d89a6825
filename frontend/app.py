"""The HTTP application: routes, error handlers and what stands around them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .auth import Auth
from .body_limit import BodyLimit
from .chat import chat_router
from .completions import completions_router
from .config import FrontendConfig
from .errors import ApiError, on_http_exception, on_own_error, on_validation_error
from .health import health_router
from .metrics import metrics_router
from .models import models_router
from .open_requests import EngineUnavailable, RequestFailed, RequestRejected
from .request_log import RequestLog
from .service import Service
from .tokenize import tokenize_router


def create_app(config: FrontendConfig, service: Service | None = None) -> FastAPI:
    """The application; its lifespan connects to the engine and takes leave of it."""
    service = service or Service(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    version = _version()
    app = FastAPI(title="Penstock", version=version, lifespan=lifespan, redoc_url=None)
    for router in (
        chat_router(service),
        completions_router(service),
        models_router(service),
        tokenize_router(service),
        health_router(service, version),
        metrics_router(service),
    ):
        app.include_router(router)
    for kind in (ApiError, EngineUnavailable, RequestFailed, RequestRejected):
        app.add_exception_handler(kind, on_own_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_body_bytes=config.max_body_bytes)
    app.add_middleware(Auth, api_keys=config.api_keys)
    app.add_middleware(RequestLog, responses=service.http_responses)
    return app


def _version() -> str:
    try:
        return installed_version("penstock")
    except PackageNotFoundError:
        return "unknown"
