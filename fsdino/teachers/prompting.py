"""Clicks and boxes drawn from masks, and SAM's decoder run on many objects of many images at once."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from fsdino.base.devices import without_autocast


def decode_prompts(
    sam: Sam,
    embedding: Tensor,
    image: Tensor,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    boxes: Tensor | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks of N prompts, each in any image of a batch.

    Args:
        sam: the model.
        embedding: (B, D, h, w) image embeddings.
        image: (N,) long, the image of each prompt, in [0, B).
        points: (N, P, 2) clicks as (x, y) in pixels of the model's input, pixel centres at whole numbers.
        labels: (N, P) 1 = on the object, 0 = off it, -1 = no click.
        boxes: (N, 4) boxes as (x0, y0, x1, y1) in the same pixels.
        masks: (N, 1, 4h, 4w) mask logits of an earlier round.

    Returns:
        mask_logits (N, 1 + num_multimask, 4h, 4w), the single mask first, and their predicted IoU
        (N, 1 + num_multimask); both float32.
    """
    # Sines of positions need more than bfloat16's 8 bits of precision.
    with without_autocast(embedding.device):
        clicks = None if points is None else (points.float(), labels)
        sparse, dense = sam.prompt_encoder(points=clicks, boxes=boxes, masks=None if masks is None else masks.float())
        image_pe = sam.prompt_encoder.get_dense_pe()
    # segment-anything's decoder takes one image and adds the dense prompt to its embedding: with a zero image, and each
    # prompt's own embedding added to its dense prompt beforehand, one call serves many images.
    dense = dense.to(embedding.dtype) + embedding[image]
    mask_logits, iou_pred = sam.mask_decoder.predict_masks(
        image_embeddings=torch.zeros_like(embedding[:1]),
        image_pe=image_pe,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return mask_logits.float(), iou_pred.float()


def sample_clicks(region: Tensor, generator: torch.Generator, interior: float = 0.8) -> Tensor:
    """One random pixel of each region, mostly well inside it.

    Args:
        region: (N, S, S) bool; a region without a pixel gets a pixel anywhere.
        generator: on the device of `region`.
        interior: share of the clicks that prefer the interior, in [0, 1]; the others are uniform.

    Returns:
        (N, 2) clicks as (x, y) in pixels, float.
    """
    count, height, width = region.shape
    inside = region.float()
    # How much of a square around a pixel is object, to the fourth power: about 1 inside, a sixteenth on a straight
    # border. Two strips in place of a square cost side + side, not side x side.
    side = max(3, height // 16 * 2 + 1)
    rows = F.avg_pool2d(inside[:, None], (side, 1), stride=1, padding=(side // 2, 0))
    depth = F.avg_pool2d(rows, (1, side), stride=1, padding=(0, side // 2))[:, 0] ** 4
    prefers = torch.rand(count, generator=generator, device=region.device) < interior
    # The small number lets `multinomial` draw from an empty region; beside a region with pixels it weighs nothing.
    weights = torch.where(prefers[:, None, None], inside * depth, inside).flatten(1) + 1e-9
    index = torch.multinomial(weights, 1, generator=generator)[:, 0]
    return torch.stack([index % width, index // width], dim=-1).float()


def tight_boxes(masks: Tensor) -> Tensor:
    """Smallest boxes of pixel centres, (N, 4) float (x0, y0, x1, y1), around bool masks (N, S, S), none empty."""
    # `torchvision.ops.masks_to_boxes` goes mask by mask and waits for the device at each.
    columns, rows = masks.any(1).float(), masks.any(2).float()
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1 = masks.shape[2] - 1 - columns.flip(1).argmax(1)
    y1 = masks.shape[1] - 1 - rows.flip(1).argmax(1)
    return torch.stack([x0, y0, x1, y1], dim=-1).float()


def noisy_boxes(masks: Tensor, generator: torch.Generator, noise: float = 0.1, limit: float = 20.0) -> Tensor:
    """Tight boxes whose corners move by a tenth of the side, as in SAM's training (appendix A of the paper).

    Args:
        masks: (N, S, S) bool, at least one pixel each.
        generator: on the device of `masks`.
        noise: standard deviation in units of the box's side.
        limit: largest move in pixels.

    Returns:
        (N, 4) float as of `tight_boxes`, inside the image.
    """
    boxes = tight_boxes(masks)
    side = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    move = torch.randn(boxes.shape, generator=generator, device=boxes.device) * noise * side
    moved = boxes + move.clamp(-limit, limit)
    # Corners of a thin box may have passed each other: put them in order before they are clamped.
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    return torch.cat([low, high], dim=-1).clamp(0, masks.shape[-1] - 1)


def central_clicks(masks: Tensor) -> Tensor:
    """The pixel (x, y) of each mask that is farthest from its border: the click of SAM's evaluation.

    Masks (N, S, S) bool, at least one pixel each, give (N, 2) float.
    """
    clicks = []
    for mask in masks.cpu().numpy().astype(np.uint8):
        # Padded by one pixel, so that the image's edge counts as a border of the object.
        distance = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        clicks.append((float(x), float(y)))
    return torch.tensor(clicks, device=masks.device).reshape(-1, 2)


def mask_ious(pred: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Intersection over union of masks (..., S, S) bool where `valid`: (...) float, 1 where both are empty."""
    if valid is not None:
        pred, truth = pred & valid, truth & valid
    both = (pred & truth).sum((-2, -1)).float()
    either = (pred | truth).sum((-2, -1)).float()
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))
