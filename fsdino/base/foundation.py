"""A frozen encoder by name, with the training-free chain on it: a model that needs no training.

Any Vision Transformer of timm will do. Features are not centred (the chain's `means` stay zero): means over pictures
have to come from somewhere, and be the same when a run goes on or a memory is used. `fsdino adapt` saves a model that
has them.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from fsdino.base import registry
from fsdino.base.bundled import BUNDLED
from fsdino.base.catalog import LEAST_SIDE, entry_of, likely_meant


def is_encoder(name: str) -> bool:
    """Whether an encoder is in the catalogue or in timm; a tag behind the name counts for nothing."""
    return entry_of(name) is not None or timm.is_model(name.partition(".")[0])


def unknown_model(name: str) -> FileNotFoundError:
    """What is said of a name that is no model's, with those that it may have been meant to be."""
    return FileNotFoundError(
        f"no model {name!r}: give a name of `fsdino models` ({', '.join(likely_meant(name) or BUNDLED)}), a folder "
        "with config.json, a run folder, a model.safetensors or .ckpt file, or a Hub id like owner/name."
    )


def recorded(name: str) -> Any:
    """What timm records about an encoder and its weights, by timm's name.

    Raises:
        ValueError: if timm has no encoder of that name, or no weights of that tag.
    """
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        if entry_of(plain) is not None:
            raise ValueError(f"timm {timm.__version__} has no encoder '{name}' yet; `pip install --upgrade timm`.")
        close = likely_meant(name) or get_close_matches(plain, timm.list_models("*vit*"), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        raise ValueError(f"timm {timm.__version__} has no encoder '{name}'{hint} `fsdino models` lists short names.")
    try:
        return get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"timm {timm.__version__} has no weights '{tag}' of encoder '{plain}'.") from error


def chain_on(name: str, encoder_weights: str | Path | None = None, **options: Any) -> Any:
    """The chain on a frozen encoder, as a `FewShotMethod`.

    Args:
        name: of the catalogue, or timm's.
        encoder_weights: a file; None takes them from this disk or the Hub.
        options: as of `ChainMethod`.

    Raises:
        FileNotFoundError: if the weights are not there and cannot be had.
        ValueError: if it is no Vision Transformer, or the file does not fit.
    """
    if not is_encoder(name):
        raise ValueError(
            f"'{name}' is no encoder, so encoder weights do not go with it; name one, for instance dinov2-s14 or "
            "vit_tiny_patch16_224 (`fsdino models` lists them)."
        )
    encoder, side = timm_name(name)
    # Drawn in vain: every weight comes from the file, and the caller's random numbers stay.
    with torch.random.fork_rng(devices=[]):
        return registry.build(
            "chain",
            encoder=encoder,
            img_size=side,
            encoder_weights="timm" if encoder_weights is None else str(encoder_weights),
            **options,
        )


def timm_name(name: str) -> tuple[str, int]:
    """Timm's name of an encoder, and the side in pixels of the square that it is used at."""
    entry, plain = entry_of(name), name.partition(".")[0]
    if entry is not None:
        recorded(entry.timm)  # an older timm may not have it yet
        return entry.timm, entry.img_size
    native = int(recorded(name).input_size[-1])
    with torch.device("meta"):  # to see its patches, without memory for it
        model: Any = timm.create_model(plain, num_classes=0)
    if not hasattr(model, "blocks") or not hasattr(model, "patch_embed"):
        raise ValueError(f"encoder '{name}' has no transformer blocks to read; use a Vision Transformer.")
    patch = int(model.patch_embed.patch_size[0])
    return name, max(native, -(-LEAST_SIDE // patch) * patch)
