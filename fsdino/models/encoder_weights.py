"""The weights of a frozen transformer, checked: every one of them, of this architecture, and all of them numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.models import load_state_dict
from torch import Tensor

from fsdino.base.catalog import WEIGHTS
from fsdino.base.encoder_file import encoder_file, given_file
from fsdino.base.foundation import recorded

_KERNEL = "patch_embed.proj.weight"
# What torch says of weights that do not fit, and the same as a person would.
_PLAIN = (
    (r"size mismatch for ([^:]+): .*?Size\((.*?)\).*?Size\((.*?)\)\.?$", r"\1 has shape \2, not \3"),
    (r'Missing key\(s\) in state_dict: "([^"]+)".*', r"\1 is missing"),
    (r'Unexpected key\(s\) in state_dict: "([^"]+)".*', r"\1 is not a part of it"),
)


def read_weights(name: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    """The file of an encoder's weights and what is in it.

    Args:
        name: timm's name of the encoder.
        weights: a file (.safetensors, or a state dict in torch's format), or "timm" for those that timm names.

    Raises:
        FileNotFoundError: if they are not there and cannot be had.
        ValueError: if the file is something else, or damaged.
    """
    if weights == "timm":
        told = recorded(name)
        if told.hf_hub_id is None:
            raise ValueError(f"timm names no weights of encoder '{name}'; give a file.")
        file = str(encoder_file(name, told.hf_hub_id, told.hf_hub_filename or WEIGHTS, licence=told.license))
    else:
        file = str(given_file(weights))
    try:
        tensors = load_state_dict(file, weights_only=True)
    # Whatever the reader trips over: torch and safetensors raise a dozen kinds, some with misleading advice.
    except Exception as error:
        raise ValueError(
            f"encoder weights '{file}' cannot be read: the file is cut or damaged, or not a .safetensors or .pth file "
            "of tensors alone; fetch it again."
        ) from error
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"encoder weights '{file}' hold no state dict; give a file that maps names to tensors.")
    if wrong := [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ValueError(f"encoder weights '{file}' are damaged: {wrong[0]} holds NaN or infinity; fetch them again.")
    return file, tensors


def overlay(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What makes `timm.create_model` take these weights, and refuse what does not fit."""
    # timm forgives missing weights where the file once had a classifier, and leaves them random. Without the classifier
    # and its number of classes there is nothing to forgive.
    heads = recorded(name).classifier or ()
    dropped = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return {"state_dict": {k: v for k, v in tensors.items() if not k.startswith(dropped)}, "num_classes": 0}


def misfit(name: str, file: str, error: Exception) -> ValueError:
    """Weights of another architecture, in one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    detail = lines[min(1, len(lines) - 1)]  # the first line only says that there are errors
    for pattern, words in _PLAIN:
        detail = re.sub(pattern, words, detail)
    return ValueError(f"encoder weights '{file}' are not those of {name} ({detail}); give the file of this encoder.")


def check_kernels(name: str, file: str, tensors: Mapping[str, Tensor], model: Any) -> None:
    """Raise a ValueError where timm has resampled the patches of another encoder to this one's, as it does unasked."""
    kernel, wanted = tensors.get(_KERNEL), model.patch_embed.proj.weight
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-2:] != wanted.shape[-2:]:
        text = f"its patches have {kernel.shape[-1]} pixels, not {wanted.shape[-1]}"
        raise misfit(name, file, ValueError(text))
