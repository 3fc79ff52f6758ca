"""The two graphs of a method: `remember` (paid once per class) and `segment` (paid once per image)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fsdino.base.method import FewShotMethod
from fsdino.models.encoder import FeatureEncoder

OPSET = 18
SHOTS = 3  # references of the example inputs


class RememberGraph(nn.Module):
    """References to a memory."""

    def __init__(self, model: FewShotMethod) -> None:
        super().__init__()
        self.model = model

    def forward(self, support_images: Tensor, support_masks: Tensor) -> tuple[Tensor, ...]:
        """Images (K, 3, S, S) and masks (K, S, S), float in [0, 1], of one class to the tensors of its memory."""
        memory = self.model.encode_support(support_images[None], support_masks[None])
        return tuple(memory.tensors().values())


class SegmentGraph(nn.Module):
    """Images and memories, whose tensors have these names, to masks."""

    def __init__(self, model: FewShotMethod, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, images: Tensor, *memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find N classes in each of B images.

        Args:
            images: (B, 3, S, S) float in [0, 1].
            memory: tensors of `RememberGraph`, stacked to batch N.

        Returns:
            Mask logits (B, N, s, s), predicted IoU (B, N) and presence logits (B, N).
        """
        batch, classes = images.shape[0], memory[0].shape[0]
        arrays: dict[str, Any] = dict(zip(self.names, memory))
        held = self.model.memory_type(**arrays)
        output = self.model.decode_all(held, self.model.encode_query(images))
        side = output.mask_logits.shape[-1]
        return (
            output.mask_logits.reshape(batch, classes, side, side),
            output.iou_pred.reshape(batch, classes),
            output.presence_logit.reshape(batch, classes),
        )


@dataclass
class Graph:
    """One graph ready for export."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]  # examples, to trace with
    input_names: list[str]
    output_names: list[str]
    dynamic_shapes: Any  # as `torch.export.export` takes them
    growing: Mapping[str, int]  # inputs whose axis grows with the references, see `Memory`


def encoder_of(model: FewShotMethod) -> FeatureEncoder:
    """The frozen encoder inside a method that can be exported."""
    return next(part for part in model.modules() if isinstance(part, FeatureEncoder))


def graphs(model: FewShotMethod) -> list[Graph]:
    """Both graphs of a method on the CPU, in evaluation mode; its encoder takes the native size alone afterwards."""
    # Resizing the position embedding to any size would enter the graphs, which never need it.
    encoder_of(model).freeze_size_()
    side, classes = model.img_size, 2
    images, masks = example_scenes(SHOTS + 2, side)
    images, asked, masks = images[:SHOTS], images[SHOTS:], masks[:SHOTS]
    remember = RememberGraph(model)
    with torch.no_grad():
        memory = model.encode_support(images[None], masks[None])
    names = tuple(memory.tensors())
    stacked = tuple(torch.cat([tensor] * classes) for tensor in memory.tensors().values())
    # Tracing takes a size of 1 for a constant, so the examples hold two classes, two images and three references.
    shot_dim, image_dim, class_dim = Dim("shots", min=1, max=1024), Dim("images", max=1024), Dim("classes", max=1024)
    first_only: list[Any] = []
    for name in names:
        shape: dict[int, Any] = {0: class_dim}
        if axis := memory.growing.get(name):
            shape[axis] = Dim("positions", max=2**24)
        first_only.append(shape)
    return [
        Graph(
            "remember",
            remember,
            (images, masks),
            input_names=["support_images", "support_masks"],
            output_names=list(names),
            dynamic_shapes={"support_images": {0: shot_dim}, "support_masks": {0: shot_dim}},
            growing={},
        ),
        Graph(
            "segment",
            SegmentGraph(model, names),
            (asked, *stacked),
            input_names=["images", *names],
            output_names=["mask_logits", "iou_pred", "presence_logit"],
            dynamic_shapes={"images": {0: image_dim}, "memory": tuple(first_only)},
            growing=memory.growing,
        ),
    ]


def example_scenes(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, side, side) in [0, 1], each with a red disc on soft blobs, and the discs' masks.

    Runtimes are compared on the examples, so there has to be something to find: where all positions are alike, which of
    them are an image's best, a choice that `own_cosines` makes, hangs on the last digit.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = 0.2 + 0.4 * torch.rand(count, 3, 6, 6, generator=generator)
    ground = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    centres = 0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator)
    places = (torch.arange(side) + 0.5) / side
    away = (places[:, None] - centres[:, 0]) ** 2 + (places - centres[:, 1]) ** 2  # (count, side, side)
    masks = (away < 0.04).float()
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return torch.where(masks[:, None] > 0, red, ground), masks


def export_program(graph: Graph) -> ExportedProgram:
    """Trace a graph with `torch.export`, its batch dimensions dynamic."""
    with torch.no_grad():
        return torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.dynamic_shapes, strict=False)


def export_onnx(graph: Graph, program: ExportedProgram, path: Path) -> None:
    """Write a traced graph as ONNX, in one file."""
    torch.onnx.export(
        program,
        graph.inputs,
        path,
        input_names=graph.input_names,
        output_names=graph.output_names,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
