"""`fsdino adapt` as a plain function: an encoder by name, fitted to a folder of images, and to references.

What most images of a kind share lies in every feature, and makes everything look alike. The training-free chain takes
the mean feature off where it knows it (`ChainMethod.means`). The means are saved with the model, so memories and runs
that go on later are of the same ones, whatever becomes of the folder. References are searched with the other ones of
their class: where their masks are met best is the cut, and what looks less like its class than they do is absent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fsdino.base.auto import AUTO
from fsdino.base.devices import device_here
from fsdino.base.foundation import chain_on, is_encoder
from fsdino.base.memory import image_tensor
from fsdino.base.ranges import Count, Number, within_ranges
from fsdino.base.reference import Reference, reference_arrays
from fsdino.base.storage import save
from fsdino.methods.chain import ChainMethod, with_mirrored
from fsdino.predict.cut import CUTS, LEAST, MOST, best_cut, ious_above, with_masks
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
        ValueError: the model has been trained, no image can be read, or there is a model or a file at `out`.
    """
    target = Path(out)
    if (target / "config.json").exists() and not overwrite:
        raise ValueError(f"'{out}' holds a model; name another folder, or add --overwrite.")
    if target.exists() and not target.is_dir():
        raise ValueError(f"'{out}' is a file; name a folder for the model.")
    items = find_images(images, exclude=out)
    chosen = chosen_of(items, number)
    shown: list[list[Reference]] = []
    if support is not None:
        shown = _enough(read_support(support, images=support_images, max_references=max_references))
    place = device_here(torch_device(device))
    name = EngineChoice(model, device=device, encoder_weights=encoder_weights).settled().model
    if not is_encoder(name):
        raise ValueError(f"model '{name}' is no encoder; name one of `fsdino models`, or train on your images.")
    method: ChainMethod = chain_on(name, encoder_weights, cut=CENTRED).to(place)
    skipped: dict[str, str] = {}
    searched = sum(min(MOST, len(with_masks(one))) for one in shown)
    with tqdm(total=len(chosen) + searched, desc="adapt", unit="image", dynamic_ncols=True) as bar:
        readable = _readable(chosen, skipped, bar.update)
        first = list(islice(readable, 1))
        if not first:
            raise ValueError(f"none of {len(chosen)} images at '{images}' can be read: {next(iter(skipped.values()))}")
        method.fit_means(chain(first, readable))
        chosen_by = judged(method, shown, bar.update) if shown else {}
    told = ""
    if shown:
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
    classes = [one for one in support.references.values() if len(with_masks(one)) >= LEAST]
    if not classes:
        raise ValueError(
            f"no class has {LEAST} references with masks, which is what it takes; show more, or leave support out."
        )
    return classes


def judged(
    method: ChainMethod, classes: Sequence[Sequence[Reference]], step: Callable[[], Any] = int
) -> dict[str, float]:
    """A chain's `cut` and `presence_cut`, by references that are searched with the others of their class.

    The method cuts there from now on. Up to five references of a class are searched; `step` is called after each one.
    """
    looks, curves = list[tuple[Any, Any]](), list[np.ndarray]()
    for references in classes:
        ious = []
        for scores, mask in _left_out(method, with_masks(references)):
            relative = method.resize.invert(method.relative(scores[0])[0, 0], mask.shape)
            ious.append(ious_above(CUTS, relative.cpu().numpy(), mask))
            looks.append(scores)
            step()
        curves.append(np.mean(ious, axis=0))
    method.cut = round(best_cut(np.mean(curves, axis=0)), 2)
    # Only now, since it is the likeness of what is cut out: presence is made of it.
    presences = np.array([method.decode_scores(*scores).presence_logit.item() for scores in looks])
    likeness = presences / method.sharpness + method.presence_cut
    # About one reference in six is less like its class.
    return {"cut": method.cut, "presence_cut": round(float(likeness.mean() - likeness.std()), 4)}


def _left_out(method: ChainMethod, references: Sequence[Reference]) -> Iterator[tuple[Any, np.ndarray]]:
    """A chain's scores of references, up to five, each searched with all the others, and their masks (H, W) bool."""
    pairs = [reference_arrays(one) for one in references]
    resize, device, count = method.resize, method.device, len(pairs)
    images = torch.stack([resize.image(image_tensor(image).to(device)) for image, _ in pairs])[None]
    masks = torch.stack([resize.soft_mask(torch.from_numpy(mask).float().to(device)) for _, mask in pairs])[None]
    if method.mirror:
        images, masks = with_mirrored(images), with_mirrored(masks)
    # Once each, whoever they are remembered with.
    maps = [method.encoder(image[None]) for image in images[0]]
    for i in range(min(count, MOST)):
        others = [k for k in range(len(maps)) if k % count != i]
        memory = method.encode_support_maps(
            [torch.cat(some) for some in zip(*(maps[k] for k in others))], masks[:, others]
        )
        yield method.scores(memory, method.encode_query_maps(maps[i])), pairs[i][1]


def _readable(items: Sequence[Item], skipped: dict[str, str], step: Callable[[], Any]) -> Iterator[np.ndarray]:
    """The images that can be read; why others cannot goes into `skipped`."""
    for item, image in read_ahead(items):
        if isinstance(image, Exception):
            skipped[item.name] = str(image)
        else:
            yield image
        step()
