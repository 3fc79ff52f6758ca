"""The real classes in sizes that train in milliseconds."""

import numpy as np
import torch
from lightning import Trainer

from fsdino.cache.image_list import ImageList
from fsdino.models.config import SegmenterConfig
from fsdino.teachers.architecture import SamConfig, build_sam
from fsdino.teachers.sam import SamTeacher

SAM = SamConfig(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=3, window_size=4, global_blocks=(1,),
                prompt_dim=32, decoder_mlp_dim=32, decoder_heads=2, iou_dim=16)  # fmt: skip
STUDENT = SegmenterConfig(
    encoder="vit_small_patch14_dinov2",
    encoder_kwargs={"patch_size": 7, "embed_dim": 24, "depth": 3, "num_heads": 2},
    img_size=28,
    adapter_tap=1,
    reader_taps=(2,),
    variant="compact",
    prompt_dim=32,
    adapter_dim=16,
    adapter_hidden=16,
    adapter_heads=2,
    decoder_mlp_dim=32,
    decoder_heads=2,
    decoder_iou_dim=16,
)


def noise(image_id):
    return np.random.default_rng(int(image_id)).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def image_list(count=8):
    return ImageList("noise", tuple(str(i) for i in range(count)), noise)


def small_teacher(seed=0):
    return SamTeacher(build_sam(SAM, seed=seed), SAM, name=f"small-{seed}")


def small_trainer(folder, **kwargs):
    options = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1, "default_root_dir": folder, "gradient_clip_val": 1.0,
    }  # fmt: skip
    return Trainer(**{**options, **kwargs})


def rectangles(count, size=32, objects=2, seed=0):
    """Batches of bright rectangles on noise, the last object of every second image missing."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(count):
        image = 0.2 * torch.rand(3, size, size, generator=generator)
        masks = torch.zeros(objects, size, size, dtype=torch.uint8)
        for m in range(objects):
            y, x = torch.randint(0, size // 2, (2,), generator=generator).tolist()
            masks[:, y : y + 12, x : x + 12] = 0
            masks[m, y : y + 12, x : x + 12] = 1
            image[:, y : y + 12, x : x + 12] = torch.rand(3, 1, 1, generator=generator)
        masks[:, 0, 0] = 255
        items.append({"image": image, "masks": masks, "valid": torch.tensor([True] * (objects - 1) + [i % 2 == 0])})
    return items
