"""The Hugging Face Hub as a place to load models from; a method's `push_to_hub` comes from huggingface_hub itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError


def looks_like_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    owner, slash, repository = name.partition("/")
    return bool(slash and owner and repository) and "/" not in repository and not name.startswith((".", "~"))


def download(repo_id: str, files: list[str], **options: Any) -> Path:
    """The local folder of a model's files from the Hub, fetched or from the local cache.

    Args:
        repo_id: "owner/name".
        options: for `huggingface_hub.snapshot_download`.

    Raises:
        FileNotFoundError: if there is no such model, or no network and no local copy.
    """
    try:
        return Path(snapshot_download(repo_id, allow_patterns=files, **options))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no folder {repo_id!r} and no public model of that name on the Hub."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"there is no folder {repo_id!r}, and the Hub cannot be reached ({type(error).__name__}); "
            "check the path, or the network."
        ) from error
