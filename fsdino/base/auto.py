"""Which model is meant where none is named. Nothing here imports torch or asks the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fsdino.base.catalog import CATALOG, Encoder
from fsdino.base.encoder_file import file_on_disk

AUTO, LAST_RESORT = "auto", "tiny"


def chosen_model(encoder_weights: str | None = None) -> tuple[str, str]:
    """The name of a model, and why it is taken.

    The order: (1) the encoder that a given file of weights is named after; (2) the first encoder of the catalogue whose
    weights are on this disk, leaving out those too slow for a computer without a GPU and those not free to be used at
    work; (3) the bundled tiny model. A trained run is taken only by its name, and nothing is ever fetched: which model
    answers must not hang on what was trained last, or on the network.

    Raises:
        ValueError: if a file of weights does not tell its encoder.
    """
    if encoder_weights is not None:
        entry = next((one for one in CATALOG.values() if Path(encoder_weights).name in _file_names(one)), None)
        if entry is not None:
            return entry.name, f"named by '{encoder_weights}'"
        # Any other encoder of timm is known by its name alone, which most of its Vision Transformers begin alike.
        stem = Path(encoder_weights).stem
        if not stem.startswith("vit_"):
            raise ValueError(
                f"the name of '{encoder_weights}' does not tell which encoder its weights are of; add --model with its "
                "name, for instance dinov2-s14, or timm's."
            )
        return stem, f"named by '{encoder_weights}'"
    for entry in encoders_on_disk():
        if entry.may_be_chosen:
            return entry.name, "its weights are on this disk"
    return LAST_RESORT, "bundled; no encoder of `fsdino models` is on this disk"


def encoders_on_disk() -> Iterator[Encoder]:
    """The encoders of the catalogue whose weights are in a cache on this disk, best first."""
    return (entry for entry in CATALOG.values() if file_on_disk(entry.timm, entry.repository) is not None)


def _file_names(entry: Encoder) -> set[str]:
    """What a file of an encoder's weights may be called."""
    stems = (entry.name, entry.timm, entry.timm.partition(".")[0])
    return {f"{stem}{suffix}" for stem in stems for suffix in (".safetensors", ".pth")} | {entry.authors_file or ""}
