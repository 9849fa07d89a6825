"""Which files of a model directory hold its weights. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import EngineStartError
from .json_fields import JsonFields

INDEX_NAME = "model.safetensors.index.json"


def find_weight_files(model_dir: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, in the order of their names; raises EngineStartError where one is missing.

    A sharded checkpoint's index decides. Without one every *.safetensors file counts, except `consolidated*`: those hold the
    same weights again under other names.
    """
    index_path = model_dir / INDEX_NAME
    if index_path.is_file():
        return _listed_files(model_dir, index_path)
    files = tuple(sorted(path for path in model_dir.glob("*.safetensors") if not path.name.startswith("consolidated")))
    if files:
        _check_files(model_dir, files)
        return files
    if any(model_dir.glob("*.bin")) or any(model_dir.glob("*.pt*")):
        raise EngineStartError(
            f"{model_dir} has its weights in pickled PyTorch files (*.bin), which can run code when they are read; "
            "Penstock loads *.safetensors only: use a revision that has them, or convert the model"
        )
    raise EngineStartError(f"{model_dir} has no weights: it needs model.safetensors, or {INDEX_NAME} and its shards")


def _listed_files(model_dir: Path, index_path: Path) -> tuple[Path, ...]:
    fields = JsonFields.from_file(index_path)
    weight_map = fields.nested("weight_map")
    if weight_map is None:
        raise fields.error("weight_map", "is missing")
    names = set()
    for tensor in weight_map.values:
        name = weight_map.string(tensor)
        if Path(name).name != name:
            raise weight_map.error(tensor, f"names a file outside the model directory: {name!r}")
        names.add(name)
    files = tuple(model_dir / name for name in sorted(names))
    _check_files(model_dir, files)
    return files


def _check_files(model_dir: Path, files: Sequence[Path]) -> None:
    """What is listed may not be there, and in a hub cache that is no longer whole a link may lead nowhere."""
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise EngineStartError(f"{model_dir} is incomplete: {', '.join(missing)} not found")
