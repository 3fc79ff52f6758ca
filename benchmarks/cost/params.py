"""Parameters and multiply-adds of every method and preset: `python -m benchmarks.cost.params`.

Models are built on the meta device, without weights, at their published configurations. One row a method and preset:

    total            parameters of the whole system; a distillation teacher is no part of it
    trained          those that learn from episodes
    encoder          those of the image encoder(s), with adapters inside
    adapter, prompts, decoder    the other parts of FS-DINO
    inference        those that are read while remembering a reference with a mask and segmenting an image
    gmac             multiply-adds, in 10^9, of one image with a remembered reference
    gmac_encoder     the encoder's share of `gmac`
    gmac_remember    multiply-adds of remembering one reference
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import RESULTS, Row, provenance, read_rows, run_script, write_rows
from fsdino.base.method import FewShotMethod
from fsdino.base.registry import build
from fsdino.models.config import VARIANTS, preset
from fsdino.models.segmenter import FewShotSegmenter

PRESETS = ("tiny", "photos", "s14", "b14", "l14")
ENCODER_PARTS = ("encoder", "sam2.net.vision_encoder", "sam.image_encoder")


class Entry(NamedTuple):
    """One row of the table: what readers call the method, its size, and what builds it on the current device."""

    method: str
    preset: str
    build: Callable[[], FewShotMethod]


def entries() -> Iterator[Entry]:
    """Every method and preset, without weights from disk."""
    for name in PRESETS:
        for variant in VARIANTS:
            yield Entry(f"FS-DINO {variant}", name, lambda name=name, variant=variant: segmenter(name, variant))
    for size in ("tiny", "small", "base_plus", "large"):
        yield Entry("SANSA", size, lambda size=size: build("sansa", size=size))
    yield Entry("SANSA", "mini", lambda: build("sansa", size="mini", img_size=128))
    yield Entry("FSSAM", "small + b14", lambda: build("fssam"))
    yield Entry("FSSAM", "mini + tiny", mini_fssam)
    for name in PRESETS:
        yield Entry("prototype", name, lambda name=name: prototype(name))
    for size in ("vit_b", "vit_h"):
        yield Entry("PerSAM", size, lambda size=size: build("persam", config=size))


def segmenter(name: str, variant: str = "full", **overrides: Any) -> FewShotSegmenter:
    """FS-DINO of a preset and variant; overrides are fields of its config."""
    config = preset(name, variant=variant, encoder_weights=None, **overrides)
    return FewShotSegmenter(config).eval()


def mini_fssam() -> FewShotMethod:
    """FSSAM of the embedded world."""
    config = preset("tiny")
    encoder = {"encoder": config.encoder, "encoder_img_size": config.img_size, "encoder_kwargs": config.encoder_kwargs}
    return build("fssam", size="mini", img_size=128, tap=config.reader_taps[-1], **encoder)


def prototype(name: str) -> FewShotMethod:
    """The prototype on the encoder of a preset."""
    config = preset(name)
    names = ("encoder", "img_size", "encoder_kwargs", "encoder_stride")
    return build("prototype", tap=config.reader_taps[-1], **{name: getattr(config, name) for name in names})


class Touched(TorchDispatchMode):
    """Notes which parameters any operation reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sizes = {id(p): p.numel() for p in model.parameters()}
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, noting its parameters."""
        self.seen.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.sizes)
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        """Numbers in the parameters seen."""
        return sum(self.sizes[i] for i in self.seen)


class EverywherePicked(TorchDispatchMode):
    """Masks used as indices hold everywhere: without numbers, segment-anything's clicks count as of every label."""

    OPERATIONS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation with numbers in place of masks."""
        if func in self.OPERATIONS:
            args = (args[0], [number for index in args[1] for number in self.numbers(index)], *args[2:])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def numbers(index: Tensor | None) -> list[Tensor | None]:
        """One index for each dimension of a mask without numbers; any other index as it is."""
        if index is None or not index.is_meta or index.dtype != torch.bool:
            return [index]
        return [torch.zeros(index.numel(), dtype=torch.long, device=index.device)] * index.ndim


def row(entry: Entry) -> Row:
    """The columns of the module's docstring, counted on the meta device."""
    with torch.device("meta"):
        model = entry.build().to("meta")
        size = model.img_size
        image, mask = torch.rand(1, 3, size, size), torch.rand(1, 1, size, size)
        with Touched(model) as touched:
            memory, remembered, _ = counted(lambda: model.encode_support(image[:, None], mask))
            _, segmented, by_module = counted(lambda: model.decode_query(memory, image))
    parts = encoder_parts(model)
    own = model.part_sizes() if model.name == "fsdino" else {}
    return {
        "method": entry.method,
        "preset": entry.preset,
        "img_size": size,
        "total": count(model.parameters()),
        "trained": count(model.trainable_parameters()),
        "encoder": sum(count(part.parameters()) for part in parts),
        "adapter": own.get("adapter", ""),
        "prompts": own.get("prompts + reader", ""),
        "decoder": own.get("decoder", ""),
        "inference": touched.count,
        "gmac": round(segmented, 2),
        "gmac_encoder": round(sum(by_module.get(type(part).__name__, 0.0) for part in parts), 2),
        "gmac_remember": round(remembered, 2),
    }


def count(parameters: Iterable[Tensor]) -> int:
    """Numbers in parameters."""
    return sum(p.numel() for p in parameters)


def encoder_parts(model: nn.Module) -> list[nn.Module]:
    """The image encoders of any method of the package."""
    found = []
    for name in ENCODER_PARTS:
        try:
            found.append(model.get_submodule(name))
        except AttributeError:
            continue  # methods have one or two of them
    return found


def counted(run: Callable[[], Any]) -> tuple[Any, float, dict[str, float]]:
    """What `run` returns, its multiply-adds in 10^9 without gradients, and the same by module."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, EverywherePicked():
        result = run()
    by_module = {name: sum(ops.values()) / 2e9 for name, ops in counter.get_flop_counts().items()}
    return result, counter.get_total_flops() / 2e9, by_module


def main(csv: Path = RESULTS / "params.csv", only: str = "") -> None:
    """Count entries whose 'method preset' holds `only`; other rows stay, those of methods that are gone do not."""
    about = provenance(seed=0, protocol="one reference with a mask, one image, published sizes, meta device")
    old = read_rows(csv).to_dict("records")
    rows: dict[tuple[str, str], Row] = {(one["method"], one["preset"]): one for one in old}
    for entry in entries():
        if only in f"{entry.method} {entry.preset}":
            found = rows[entry.method, entry.preset] = row(entry) | about
            counts = f"{found['total']:>12,}{found['trained']:>12,}{found['gmac']:>10.1f}"
            print(f"{entry.method:<24}{entry.preset:<14}{counts}", flush=True)
    order = [(entry.method, entry.preset) for entry in entries()]
    write_rows(csv, [rows[key] for key in order if key in rows])


if __name__ == "__main__":
    run_script(main)
