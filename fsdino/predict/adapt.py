"""`fsdino adapt` as a plain function: an encoder by name, fitted to a folder of images without labels.

What most images of a kind share lies in every feature, and makes everything look alike. The training-free chain takes
the mean feature off where it knows it (`ChainMethod.means`). The means are saved with the model, so memories and runs
that go on later are of the same ones, whatever becomes of the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fsdino.base.auto import AUTO
from fsdino.base.ranges import Count, within_ranges
from fsdino.predict.engines.choice import EngineChoice, torch_device
from fsdino.predict.images import Item, find_images, read_ahead

ENOUGH = 40  # images that means are taken of; more change them little
FEW = 8
# Where the chain cuts features that are centred, which spread more: the best on base classes of photographs.
CUT = 0.5


@within_ranges
def adapt(
    images: str,
    out: str,
    model: str = AUTO,
    encoder_weights: str | None = None,
    device: str = "auto",
    number: Count = ENOUGH,
    overwrite: bool = False,
) -> Path:
    """Save an encoder by name, adapted to images like those that it will segment; no labels, no training.

    The folder that is written is a model for every command: `fsdino predict --model OUT`.

    Args:
        images: a folder, a glob or a video, as for predict: a few dozen images like yours, or yours themselves.
        out: folder of the adapted model; it is returned.
        model: the encoder, a name of `fsdino models` or timm's; auto takes the best that is on this disk.
        encoder_weights: file with the encoder's weights, in place of a download.
        device: cpu, cuda, or auto, which takes a GPU where there is one.
        number: images used, evenly spread over those that were found.
        overwrite: replace a model that is there.

    Raises:
        ValueError: the model has been trained, no image can be read, or there is a model at `out`.
    """
    target = Path(out)
    if (target / "config.json").exists() and not overwrite:
        raise ValueError(f"'{out}' holds a model; name another folder, or add --overwrite.")
    items = find_images(images, exclude=out)
    chosen = chosen_of(items, number)
    # Here and not above, as in `EngineChoice.open`: `fsdino --help` need not wait for torch.
    from fsdino.base.foundation import chain_on, is_encoder
    from fsdino.base.storage import save

    name = EngineChoice(model, device=device, encoder_weights=encoder_weights).settled().model
    if not is_encoder(name):
        raise ValueError(f"model '{name}' is no encoder; name one of `fsdino models`, or train on your images.")
    method = chain_on(name, encoder_weights, cut=CUT).to(torch_device(device))
    skipped: dict[str, str] = {}
    readable = _readable(chosen, skipped)
    first = list(islice(readable, 1))
    if not first:
        raise ValueError(f"none of {len(chosen)} images at '{images}' can be read: {next(iter(skipped.values()))}")
    method.fit_means(chain(first, readable))
    save(method, target)
    for image, reason in skipped.items():
        print(f"left out '{image}': {reason}", file=sys.stderr)
    used = len(chosen) - len(skipped)
    if used < FEW:
        print(
            f"careful: {used} images are few; with a few dozen the mean is of the kind, not of these.", file=sys.stderr
        )
    print(f"{name}, adapted to {used} of {len(items)} images: {target}")
    return target


def chosen_of(items: Sequence[Item], number: int = ENOUGH) -> Sequence[Item]:
    """At most so many images, evenly spread."""
    return items[:: -(-len(items) // number)]


def _readable(items: Sequence[Item], skipped: dict[str, str]) -> Iterator[np.ndarray]:
    """The images that can be read; why others cannot goes into `skipped`."""
    for item, image in read_ahead(items):
        if isinstance(image, Exception):
            skipped[item.name] = str(image)
        else:
            yield image
