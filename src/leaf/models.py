"""Model names as recipes and the command line write them, turned into what Transformers can load. Imports no torch."""

import importlib.util
import re
from pathlib import Path, PureWindowsPath
from typing import Literal

from leaf.errors import LeafError, first_line

#: Seconds the hub has to answer; left to themselves, the libraries retry for minutes where there is no network.
HUB_TIMEOUT = 10


class HubUnreachable(LeafError):
    """No answer from the hub. What is in its local cache can still be loaded."""


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
    """The last part of a model name, for tables: `intfloat/e5-small-v2` → `e5-small-v2`. Of a package, its own name."""
    if model.startswith("package:"):
        return model.removeprefix("package:").partition("/")[0]
    return model.rstrip("/").rsplit("/", 1)[-1]


def hub_id(model: str) -> bool:
    """Whether `model` is a name that a hub can have: not a folder here, not a file of a package."""
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model) is not None and not Path(model).exists()


def without_folders(model: str) -> str:
    """`model` as it can be shown to others: of an absolute path its last part, any other name as it is."""
    absolute = Path(model).is_absolute() or PureWindowsPath(model).is_absolute() or model.startswith("~")
    return PureWindowsPath(model).name if absolute else model  # a Windows path may be told in either slash


def hub_revision(name: str, repo_type: Literal["model", "dataset"], revision: str | None = None) -> str:
    """The commit that the hub would serve, asked once and without retries.

    Raises `HubUnreachable` where there is no answer, and a plain `LeafError` where the hub knows no such repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        sha = HfApi().repo_info(name, repo_type=repo_type, revision=revision, timeout=HUB_TIMEOUT).sha
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise LeafError(
            f"the hub shows no {repo_type} {name}{at}; check the name, or log in if it is private"
        ) from error
    except Exception as error:  # the HTTP client changes with the release, and its errors have no public base class
        raise HubUnreachable(
            f"the hub cannot be reached for {name} ({first_line(error)}); connect, or name a local copy"
        ) from error
    assert sha is not None
    return sha
