"""Clicks, boxes, and the decoder on many prompts of many images."""

import torch

from fsdino.teachers.architecture import build_sam
from fsdino.teachers.prompting import central_clicks, decode_prompts, mask_ious, noisy_boxes, sample_clicks, tight_boxes
from tests.small import SAM as SMALL


def rectangle(y0, x0, y1, x1, size=32):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def test_batched_decoding_equals_segment_anything_image_by_image():
    sam = build_sam(SMALL, seed=0)
    embedding = torch.randn(3, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[[3.0, 4.0]], [[20.0, 9.0]], [[30.0, 30.0]], [[0.0, 0.0]]])
    labels, place = torch.ones(4, 1), torch.tensor([2, 0, 1, 2])
    with torch.no_grad():
        masks, scores = decode_prompts(sam, embedding, place, points, labels)
        for row, image in enumerate(place.tolist()):
            sparse, dense = sam.prompt_encoder((points[row : row + 1], labels[row : row + 1]), None, None)
            expected, iou = sam.mask_decoder.predict_masks(
                embedding[image : image + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
            )
            torch.testing.assert_close(masks[row], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(scores[row], iou[0], atol=1e-5, rtol=1e-5)


def test_decoding_under_autocast_gives_float32_masks():
    sam = build_sam(SMALL, seed=0)
    embedding = torch.zeros(1, 32, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        masks, scores = decode_prompts(sam, embedding, torch.tensor([0]), boxes=torch.tensor([[2.0, 2.0, 9.0, 9.0]]))
    assert masks.shape == (1, 4, 32, 32) and masks.dtype == scores.dtype == torch.float32


def test_the_decoder_runs_where_operations_are_only_counted():
    sam = build_sam(SMALL, seed=0).to("meta")
    embedding, image = torch.zeros(1, 32, 8, 8, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    masks, _ = decode_prompts(sam, embedding, image, boxes=torch.zeros(1, 4, device="meta"))
    assert masks.shape == (1, 4, 32, 32) and masks.is_meta


def test_clicks_hit_the_region_and_mostly_its_inside():
    region = rectangle(4, 6, 27, 29).expand(200, -1, -1)
    clicks = sample_clicks(region, torch.Generator().manual_seed(0)).long()
    assert region[0][clicks[:, 1], clicks[:, 0]].all()
    inside = rectangle(6, 8, 25, 27)[clicks[:, 1], clicks[:, 0]].float().mean()
    assert inside > 0.8  # 0.69 if clicks were uniform
    again = sample_clicks(region, torch.Generator().manual_seed(0)).long()
    assert torch.equal(clicks, again)


def test_boxes_are_tight_and_noise_is_bounded():
    masks = torch.stack([rectangle(4, 6, 10, 20), rectangle(0, 0, 31, 31), rectangle(5, 5, 5, 5)])
    boxes = tight_boxes(masks)
    assert boxes.tolist() == [[6, 4, 20, 10], [0, 0, 31, 31], [5, 5, 5, 5]]
    noisy = noisy_boxes(masks, torch.Generator().manual_seed(0), limit=3)
    assert (noisy - boxes).abs().max() <= 3 and noisy.min() >= 0 and noisy.max() <= 31
    assert (noisy[:, 2:] >= noisy[:, :2]).all()


def test_central_click_is_the_middle():
    assert central_clicks(rectangle(10, 4, 14, 8)[None]).tolist() == [[6, 12]]
    corner = central_clicks(rectangle(0, 0, 4, 4)[None])  # the image's edge is an edge of the object
    assert corner.tolist() == [[2, 2]]


def test_iou_counts_valid_pixels_only():
    pred, truth = rectangle(0, 0, 3, 3), rectangle(0, 0, 3, 7)
    assert mask_ious(pred, truth) == 0.5
    assert mask_ious(pred, truth, valid=rectangle(0, 0, 31, 3)) == 1.0
    empty = torch.zeros(32, 32, dtype=torch.bool)
    assert mask_ious(empty, empty) == 1.0
