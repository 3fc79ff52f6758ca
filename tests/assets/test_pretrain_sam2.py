"""Training of a small SAM2: every part learns, draws repeat, views and masks move together."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fsdino.assets.make import sam2
from fsdino.assets.pretrain_sam2 import Sam2PretrainModule, mask_loss, second_view
from fsdino.methods.sam2.net import Decoded
from fsdino.methods.sam2.weights import build_sam2


def scenes(count: int = 3, side: int = 48) -> dict[str, Tensor]:
    """Bright squares on noise; the last mask of each scene is padding."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    masks[:, 0, 5:20, 5:20], masks[:, 1, 25:40, 20:45] = 1, 1
    image = 0.4 * torch.rand(count, 3, side, side, generator=generator)
    image = image + 0.5 * masks[:, :1].float() + torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1) * masks[:, 1:2]
    valid = torch.tensor([True, True, False]).expand(count, -1)
    return {"image": image.clamp(0, 1), "masks": masks, "valid": valid}


def module(**kwargs: float) -> Sam2PretrainModule:
    return Sam2PretrainModule("mini", 64, **kwargs)  # type: ignore[arg-type]


def test_every_part_learns() -> None:
    model = module(click_share=0.5, absent_share=0.3)
    generator = torch.Generator().manual_seed(3)
    parts = model.losses(scenes(), generator)
    assert set(parts) == {"click", "box", "track", "object"} and all(float(v.detach()) > 0 for v in parts.values())
    torch.stack(list(parts.values())).sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    # codes of slots that two frames do not use, and of a missing object, which is never written to memory
    assert {name.removeprefix("sam2.net.") for name in silent} <= {
        "no_memory_positional_encoding", "no_object_pointer", "occlusion_spatial_embedding_parameter"
    }  # fmt: skip


def test_draws_depend_on_the_generator_alone() -> None:
    model, batch = module().eval(), scenes()
    first, again, other = (
        torch.stack(list(model.losses(batch, torch.Generator().manual_seed(seed)).values())).detach()
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_padding_is_never_an_object() -> None:
    images, image, masks = module(objects_per_image=3)._objects(scenes(), torch.Generator().manual_seed(0))
    assert images.shape == (3, 3, 64, 64) and image.tolist() == [0, 0, 1, 1, 2, 2]
    assert masks.flatten(1).any(1).all()


def test_masks_move_with_their_images() -> None:
    batch = scenes()
    masks = batch["masks"][:, 0] == 1
    marked = masks[:, None].float().expand(-1, 3, -1, -1)
    views, moved = second_view(marked, torch.arange(3), masks, torch.Generator().manual_seed(0))
    inside, outside = views.mean(1)[moved].mean(), views.mean(1)[~moved].mean()
    assert inside > 0.7 and outside < 0.15
    assert not torch.equal(moved, masks)


def test_best_mask_counts() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:6] = True
    right = torch.where(masks, 20.0, -20.0)[:, None]
    ious = torch.tensor([[0.0, 1.0]])
    loss = mask_loss(Decoded(torch.cat([-right, right], 1), ious, torch.zeros(1, 2, 4), torch.zeros(1, 1)), masks)
    torch.testing.assert_close(loss, torch.zeros(1), atol=1e-4, rtol=0)


def test_it_learns() -> None:
    """Two scenes by heart: the first steps trade BCE against Dice, then every part falls."""
    model, batch = module(absent_share=0.0), scenes(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(16):
        loss = torch.stack(list(model.losses(batch, torch.Generator().manual_seed(0)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.85 * history[0]


def test_the_command_goes_on_and_its_file_opens(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epoch_length": 2, "batch_size": 2, "folder": str(tmp_path / "run")}
    file = tmp_path / "mini.safetensors"
    sam2(str(file), epochs=1, **options)
    first = load_file(file)
    sam2(str(file), epochs=1, **options)  # finds the run done and writes the same weights
    assert all(torch.equal(value, first[name]) for name, value in load_file(file).items())
    sam2(str(file), epochs=2, **options)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 1  # the second, counted from 0
    assert build_sam2(weights=file, img_size=128).grid == 8
