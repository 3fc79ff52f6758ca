"""Every listed family of encoders through the package, with random weights: `python -m benchmarks.accuracy.families`.

For each encoder and two sizes, the multiples of its patch nearest below SIZES: it is built whole (on no memory, which
counts its parameters), the training-free chain on it remembers and segments drawn scenes, and the smallest of each
family is exported and its graphs' masks compared with torch's, pixel by pixel. Large encoders predict with their first
`blocks` blocks, the largest not at all, and every export has `blocks` blocks: what a graph holds beyond them is more of
the same. The columns say how many. Rows that the CSV has are kept, so an interrupted table goes on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch

from benchmarks.common import RESULTS, Row, provenance, read_rows, run_script, update_rows
from fsdino.base import registry
from fsdino.base.catalog import CATALOG
from fsdino.base.reference import Reference
from fsdino.data.world.index import SyntheticWorld
from fsdino.export.command import export_graphs
from fsdino.methods.chain import ChainMethod
from fsdino.models.encoder import FeatureEncoder
from fsdino.predict.engines.onnx import OnnxEngine

SIZES = (518, 224)
PLAIN = ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
WHOLE, LARGEST = 6e6, 1e9  # parameters up to which all blocks predict, and up to which the first ones do
SCENES = 2
SMALL = {"embed_dim": 32, "num_heads": 2}  # of tests


@dataclass(frozen=True)
class Case:
    """An encoder of a family."""

    family: str
    timm: str


def cases() -> list[Case]:
    """Every encoder with a short name and a few plain ones, the smallest of a family first."""
    listed = [(re.sub(r"-(t|s|b|l|h|g|7b|so400m)\d+(plus)?", "", e.name), e) for e in CATALOG.values()]
    listed.sort(key=lambda pair: pair[1].parameters)
    found = [Case(family, e.timm.partition(".")[0]) for family, e in listed]
    return sorted([*found, *(Case("plain ViT", name) for name in PLAIN)], key=lambda case: case.family)


def whole(name: str, size: int) -> FeatureEncoder:
    """An encoder with all of its blocks, without memory for them, at the multiple of its patch below a size."""
    with torch.device("meta"):
        patch = FeatureEncoder(name, 16 * 14, (0,), {"depth": 1}).patch_size
        return FeatureEncoder(name, size // patch * patch, (0,))


def chain(name: str, side: int, blocks: int, small: bool = False) -> ChainMethod:
    """The chain on the first blocks of an encoder with random weights, the same at every call."""
    kwargs: dict[str, Any] = {"depth": blocks, **(SMALL if small else {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {"encoder": name, "img_size": side, "taps": tuple(range(blocks))[-5:], "encoder_kwargs": kwargs}
        method: ChainMethod = registry.build("chain", **made)
    with torch.no_grad():
        for key, parameter in method.encoder.named_parameters():
            # Untrained, what a block adds is scaled by 1e-5 in half of the families: blocks, and with them rotary
            # positions, would be as good as absent.
            if re.search(r"\.(gamma(_\d)?|ls\d\.gamma)$", key):
                parameter.fill_(1.0)
    # Less its means: untrained features are alike everywhere but for a little, and rounding would draw the mask.
    return method.fit_directions().fit_means(scenes()[1])


@cache
def scenes() -> tuple[Reference, list[np.ndarray]]:
    """A reference and images of its class, drawn."""
    index = SyntheticWorld("novel", SCENES + 1)
    class_id = min(index.class_names)
    first, *others = index.images(class_id)[: SCENES + 1]
    mask = index.load_mask(first, class_id) == 1
    return Reference(index.load_image(first), mask=mask), [index.load_image(name) for name in others]


def masks(engine: Any) -> np.ndarray:
    """What an engine finds in the scenes, (SCENES, H, W) bool."""
    reference, images = scenes()
    joined = engine.join([engine.remember([reference])])
    return np.stack([found.mask for image in images for found in engine.find(joined, image)])


def verdict(found: np.ndarray) -> str:
    """Yes where masks have something in them and are not everything."""
    share = float(found.mean())
    return "yes" if 0 < share < 1 else f"no, masks of {100 * share:.0f} %"


def exported(method: ChainMethod) -> np.ndarray:
    """The masks of a method's graphs, written and read back."""
    with TemporaryDirectory() as folder:
        export_graphs(method, Path(folder), ("onnx",))
        return masks(OnnxEngine(folder))


def row(case: Case, size: int, blocks: int, exports: bool, small: bool = False) -> Row:
    """One encoder at one size."""
    started = time.process_time()
    encoder = whole(case.timm, size)
    parameters, depth, side = sum(p.numel() for p in encoder.parameters()), encoder.depth, encoder.img_size
    used = depth if parameters <= WHOLE and not small else min(blocks, depth)
    found: Row = {"family": case.family, "timm": case.timm, "parameters": parameters}
    found |= {"patch": encoder.patch_size, "size": side, "blocks": depth, "builds": "yes"}
    if parameters > LARGEST:
        found |= {"predicts": "not tried: too large here", "predicts_blocks": ""}
    else:
        method = chain(case.timm, side, used, small)
        there = masks(method)
        found |= {"predicts": verdict(there), "predicts_blocks": used}
    if exports:
        if used > blocks:
            method = chain(case.timm, side, blocks, small)
            there = masks(method)
        found |= {"exports": "yes", "exports_blocks": min(used, blocks)}
        try:
            found["agreement"] = round(float((there == exported(method)).mean()), 6)
        except ValueError as error:  # a graph that is not what torch computes: the row says so, the others go on
            found |= {"exports": f"no: {str(error).partition(' differs ')[2].partition(';')[0]}", "agreement": ""}
    else:
        found |= {"exports": "as the smallest of its family", "exports_blocks": "", "agreement": ""}
    return found | {"cpu_seconds": round(time.process_time() - started, 1)}


def wanted(only: str) -> Iterator[tuple[Case, bool]]:
    """Encoders whose name holds `only`, and whether each is the smallest of its family."""
    seen: set[str] = set()
    for case in cases():
        smallest = case.family not in seen
        seen.add(case.family)
        if only in case.timm and timm.is_model(case.timm):
            yield case, smallest


def main(
    csv: Path = RESULTS / "families.csv",
    only: str = "",
    sizes: tuple[int, ...] = SIZES,
    blocks: int = 2,
    small: bool = False,
    minutes: float = 25.0,
) -> None:
    """Fill the table.

    Args:
        only: encoders whose name holds this.
        sizes: sides of the square in pixels; each encoder takes the multiples of its patch below.
        blocks: of the exported encoders, and of the large ones.
        small: narrow encoders, for tests.
        minutes: no row is begun after this time.
    """
    started = time.monotonic()
    # The smallest of each family come first: they are the ones that are exported. Then the smaller size, for breadth.
    todo = [(not smallest, size, case) for case, smallest in wanted(only) for size in sizes]
    for large, size, case in sorted(todo, key=lambda entry: entry[:2]):
        old = read_rows(csv)
        if time.monotonic() - started > 60 * minutes:
            print(f"{minutes:g} minutes are over; the same command goes on.", flush=True)
            return
        if len(old) and (case.timm, str(size)) in set(old[["timm", "asked"]].itertuples(index=False, name=None)):
            continue
        found = row(case, size, blocks, not large, small) | {"asked": size}
        update_rows(csv, [found | provenance(seed=0)], ("timm", "asked"))
        print({k: found[k] for k in ("timm", "size", "predicts", "agreement", "cpu_seconds")}, flush=True)


if __name__ == "__main__":
    run_script(main)
