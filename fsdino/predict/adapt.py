"""`fsdino adapt` as a plain function: an encoder by name, fitted to a folder of images, and to references.

What most images of a kind share lies in every feature, and makes everything look alike. The training-free chain takes
the mean feature off where it knows it (`ChainMethod.means`). The means are saved with the model, so memories and runs
that go on later are of the same ones, whatever becomes of the folder. References are searched with the other ones of
their class: where their masks are met best is the cut, and what looks less like its class than they do is absent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.base.auto import AUTO
from fsdino.base.ranges import Count, Number, within_ranges
from fsdino.base.reference import Reference
from fsdino.predict.cut import CUTS, LEAST, best_cut, ious_above, left_out
from fsdino.predict.engines.choice import EngineChoice, torch_device
from fsdino.predict.images import Item, find_images, read_ahead
from fsdino.predict.support import Support, read_support

ENOUGH = 40  # images that means are taken of; more change them little
FEW = 8
# Where the chain cuts features that are centred, which spread more: the best on base classes of photographs.
CENTRED = 0.5


@within_ranges
def adapt(
    images: str,
    out: str,
    model: str = AUTO,
    encoder_weights: str | None = None,
    device: str = "auto",
    support: str | None = None,
    support_images: str | None = None,
    max_references: Number = 10,
    number: Count = ENOUGH,
    overwrite: bool = False,
) -> Path:
    """Save an encoder by name, adapted to images like those that it will segment, and to references; no training.

    The folder that is written is a model for every command: `fsdino predict --model OUT`.

    Args:
        images: a folder, a glob or a video, as for predict: a few dozen images like yours, or yours themselves.
        out: folder of the adapted model; it is returned.
        model: the encoder, a name of `fsdino models` or timm's; auto takes the best that is on this disk.
        encoder_weights: file with the encoder's weights, in place of a download.
        device: cpu, cuda, or auto, which takes a GPU where there is one.
        support: references, as for predict; classes with three or more of them decide where masks are cut, and below
            which likeness a class counts as absent, for all classes alike.
        support_images: folder of the images of a COCO JSON, when it is not beside it.
        max_references: references used per class; 0 takes all.
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
    shown: list[list[Reference]] = []
    if support is not None:
        shown = _enough(read_support(support, images=support_images, max_references=max_references))
    # Here and not above, as in `EngineChoice.open`: `fsdino --help` need not wait for torch.
    from fsdino.base.foundation import chain_on, is_encoder
    from fsdino.base.storage import save

    name = EngineChoice(model, device=device, encoder_weights=encoder_weights).settled().model
    if not is_encoder(name):
        raise ValueError(f"model '{name}' is no encoder; name one of `fsdino models`, or train on your images.")
    method = chain_on(name, encoder_weights, cut=CENTRED).to(torch_device(device))
    skipped: dict[str, str] = {}
    readable = _readable(chosen, skipped)
    first = list(islice(readable, 1))
    if not first:
        raise ValueError(f"none of {len(chosen)} images at '{images}' can be read: {next(iter(skipped.values()))}")
    method.fit_means(chain(first, readable))
    told = ""
    if shown:
        chosen_by = judged(method, shown)
        # Anew, since a model is saved with what it was built with.
        final = chain_on(name, encoder_weights, **chosen_by)
        final.means.copy_(method.means)
        method, told = final, ", cut {cut:.2f}, absent below likeness {presence_cut:.2f}".format(**chosen_by)
    save(method, target)
    for image, reason in skipped.items():
        print(f"left out '{image}': {reason}", file=sys.stderr)
    used = len(chosen) - len(skipped)
    if used < FEW:
        print(
            f"careful: {used} images are few; with a few dozen the mean is of the kind, not of these.", file=sys.stderr
        )
    print(f"{name}, adapted to {used} of {len(items)} images{told}: {target}")
    return target


def chosen_of(items: Sequence[Item], number: int = ENOUGH) -> Sequence[Item]:
    """At most so many images, evenly spread."""
    return items[:: -(-len(items) // number)]


def _enough(support: Support) -> list[list[Reference]]:
    """The references of each class that has enough of them with masks."""
    classes = [
        one for one in support.references.values() if sum(r.mask is not None and not r.negative for r in one) >= LEAST
    ]
    if not classes:
        raise ValueError(
            f"no class has {LEAST} references with masks, which is what it takes; show more, or leave support out."
        )
    return classes


def judged(method: Any, classes: Sequence[Sequence[Reference]]) -> dict[str, float]:
    """A chain's `cut` and `presence_cut`, by references that are searched with the others of their class.

    The method cuts there from now on.
    """
    # As in `adapt`.
    from fsdino.base.memory import image_tensor

    def looked(image: np.ndarray) -> Any:
        return method.encode_query(method.resize.image(image_tensor(image).to(method.device))[None])

    looks = [list(left_out(method, references)) for references in classes]
    curves = []
    for some in looks:
        ious = []
        for memory, image, mask in some:
            score = method.relative_scores(memory, looked(image))[0, 0]
            ious.append(ious_above(CUTS, method.resize.invert(score, mask.shape).cpu().numpy(), mask))
        curves.append(np.mean(ious, axis=0))
    method.cut = best_cut(np.mean(curves, axis=0))
    # Only now, since it is the likeness of what is cut out: presence is made of it.
    found = (method.decode_encoded(memory, looked(image)) for some in looks for memory, image, _ in some)
    likeness = np.array([one.presence_logit.item() / method.sharpness + method.presence_cut for one in found])
    # About one reference in six is less like its class.
    return {"cut": method.cut, "presence_cut": float(likeness.mean() - likeness.std())}


def _readable(items: Sequence[Item], skipped: dict[str, str]) -> Iterator[np.ndarray]:
    """The images that can be read; why others cannot goes into `skipped`."""
    for item, image in read_ahead(items):
        if isinstance(image, Exception):
            skipped[item.name] = str(image)
        else:
            yield image
