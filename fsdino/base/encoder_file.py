"""Where the weights of a frozen encoder are: on this disk, or on the Hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

from fsdino.base.catalog import WEIGHTS, entry_of

PATIENCE = 5.0  # seconds that the Hub has for its first answer


def file_on_disk(timm_name: str, repository: str, name: str = WEIGHTS) -> Path | None:
    """The weights of an encoder in the Hub's cache, or in that of torch, found without the network."""
    found = try_to_load_from_cache(repository, name)
    if isinstance(found, str):
        return Path(found)
    entry = entry_of(timm_name)
    if entry is None or entry.authors_file is None:
        return None
    # As torch.hub has it, which is not asked because importing torch takes seconds.
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    file = Path(home) / "hub" / "checkpoints" / entry.authors_file
    return file if file.is_file() else None


def given_file(path: str) -> Path:
    """A file of weights that somebody named; a FileNotFoundError where there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"encoder weights '{path}' do not exist, or are not a file; check the path.")
    return Path(path)


def encoder_file(timm_name: str, repository: str, name: str = WEIGHTS, *, licence: str | None = None) -> Path:
    """The file with an encoder's weights, fetched from the Hub if it is not on this disk; a fetch is said.

    Args:
        timm_name: timm's name, for what is said.
        repository: on the Hub.
        name: of the file there.
        licence: of the weights; None is unknown.

    Raises:
        FileNotFoundError: it is not on this disk, and the Hub has no such file or cannot be reached; the text says
            what to fetch by hand.
    """
    if (file := file_on_disk(timm_name, repository, name)) is not None:
        return file
    address, entry = hf_hub_url(repository, name), entry_of(timm_name)
    about = f"{'size unknown' if entry is None else f'about {entry.megabytes:,} MB'}, {licence or 'licence: see there'}"
    by_hand = (
        f"fetch {address} by hand ({about}; its sha256 stands beside it) and give the file as encoder_weights "
        "(--encoder-weights FILE)."
    )
    missing = f"the weights of '{timm_name}' are not on this disk and could not be had from the Hub"
    try:
        # Asked first, because a download that gets no answer tries again for a minute.
        get_hf_file_metadata(address, timeout=PATIENCE)
        print(f"fetching {address} ({about})", file=sys.stderr)
        return Path(hf_hub_download(repository, name))
    except OfflineModeIsEnabled as error:
        raise FileNotFoundError(f"{missing}, since HF_HUB_OFFLINE is set; unset it, or {by_hand}") from error
    except GatedRepoError as error:
        text = f"{missing}: it gives them to those who accepted the licence on its page alone; log in, or {by_hand}"
        raise FileNotFoundError(text) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise FileNotFoundError(f"{missing}: there is no {address}; give a file as encoder_weights.") from error
    # The kind of a failed connection depends on the library that the Hub's client is built on, and has changed twice.
    except Exception as error:
        raise FileNotFoundError(f"{missing} ({type(error).__name__}); {by_hand}") from error
