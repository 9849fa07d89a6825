"""What the frontend's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.frontend.harness import Frontend, running_frontend
from tests.toy_model import make_toy_model


@pytest.fixture(scope="session")
def toy_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose token ids 0 .. 255 are bytes."""
    return make_toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture
async def frontend(toy_model_dir: Path) -> AsyncIterator[Frontend]:
    """A frontend that is ready, with the default configuration."""
    async with running_frontend(toy_model_dir) as running:
        yield running
