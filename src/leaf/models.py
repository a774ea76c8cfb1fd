"""Model names as recipes and the command line write them, turned into what Transformers can load. Imports no torch."""

import importlib.util
from pathlib import Path

from leaf.errors import LeafError


def resolve_model(model: str) -> str:
    """A folder or hub id for `model`.

    `package:NAME/FOLDER` is a folder inside an installed package, found without importing it; an existing folder stays
    what it is; anything else of the shape OWNER/NAME (or a bare name) is taken for a hub id. Raises `LeafError` for a
    package that is not installed and for a path that does not exist.
    """
    if model.startswith("package:"):
        package, _, inside = model.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise LeafError(
                f"{model}: the package '{package}' is not installed; pip install {package.replace('_', '-')}"
            )
        folder = Path(spec.submodule_search_locations[0]) / inside
        if not folder.is_dir():
            raise LeafError(f"{model}: the package '{package}' has no folder '{inside}'")
        return str(folder)
    if Path(model).is_dir():
        return model
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise LeafError(f"no folder '{model}'; give an existing model folder or a hub id such as OWNER/NAME")
    return model


def short_name(model: str) -> str:
    """The last part of a model name, for tables: `intfloat/e5-small-v2` → `e5-small-v2`."""
    return model.rstrip("/").rsplit("/", 1)[-1]
