"""Checkpoints of the authors of systems that stand on SAM2: its weights under Meta's names, deep in a training state.

Their files hold the whole network or what was trained of it, with prefixes such as "module." or "sam2." in front of the
names, and beside it what was frozen anyway. Whatever the prefix, SAM2's parts are found by their own names.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_PARTS = (
    "image_encoder|sam_prompt_encoder|sam_mask_decoder|memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|"
    "obj_ptr_tpos_proj|maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
)
_SAM2 = re.compile(rf"(?:^|.*?\.)((?:{_PARTS})(?:\..*)?)$")
_ADAPTER = re.compile(r"(?:^|.*\.)blocks\.(\d+)\.adapter\.(.+)$")
# The pieces of an adapter: a word of their names in the files, and the name here.
_PIECES = {"down": "down", "up": "up", "norm": "norm"}


@dataclass
class PublishedState:
    """What an authors' checkpoint holds.

    Args:
        name: of the file, for errors.
        sam2: weights under Meta's names; whole or a part.
        adapters: block of the image encoder -> "down.weight" and the like.
        scales: block -> the adapter's scale, where the file has one.
        others: names of everything else.
    """

    name: str
    sam2: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def has_encoder(self) -> bool:
        """Whether SAM2's frozen image encoder is inside, and so all of SAM2."""
        return "image_encoder.trunk.patch_embed.proj.weight" in self.sam2


def read_published(path: str | Path) -> PublishedState:
    """Read an authors' checkpoint (`.pt`, `.pth`); nothing in it is executed.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such checkpoint, or an adapter has a part of an unknown name.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no published checkpoint at {path}; give the path of a downloaded .pth file.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts keep their options beside
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is cut or not its own
        raise ValueError(f"{file.name} cannot be read ({str(error).splitlines()[0]}); download it again.") from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    weights = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    state = PublishedState(file.name)
    for key, value in weights.items():
        if match := _ADAPTER.match(key):
            _take_adapter(state, int(match[1]), match[2], value)
        elif match := _SAM2.match(key):
            state.sam2[match[1]] = value
        else:
            state.others.append(key)
    if not state.sam2 and not state.adapters:
        raise ValueError(
            f"{file.name} has neither SAM2's parts nor adapters ('...blocks.N.adapter.down_proj.weight'); give the "
            "checkpoint that the authors of the system published."
        )
    return state


def _take_adapter(state: PublishedState, block: int, name: str, value: Tensor) -> None:
    if name.startswith("scale"):
        state.scales[block] = float(value)
        return
    piece, _, kind = name.rpartition(".")
    found = [ours for word, ours in _PIECES.items() if word in piece]
    if len(found) != 1 or kind not in ("weight", "bias"):
        raise ValueError(f"{state.name} has an unknown part of an adapter, '{name}'; known are {', '.join(_PIECES)}.")
    state.adapters.setdefault(block, {})[f"{found[0]}.{kind}"] = value
