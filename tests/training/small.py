"""What trains in milliseconds: images of noise, a teacher and a student of them, a trainer, a training side."""

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from fsdino.base.checkpoint import MODEL_PREFIX
from fsdino.cache.image_list import ImageList
from fsdino.data.class_index import ClassIndex
from fsdino.data.splits import TrainSet
from fsdino.models.segmenter import FewShotSegmenter
from fsdino.teachers.architecture import build_sam
from fsdino.teachers.sam import SamTeacher
from tests.small import SAM, small_segmenter


def noise(image_id):
    return np.random.default_rng(int(image_id)).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def image_list(count=8):
    return ImageList("noise", tuple(str(i) for i in range(count)), noise)


def small_teacher(seed=0):
    return SamTeacher(build_sam(SAM, seed=seed), SAM, name=f"small-{seed}")


def student(seed=0, **overrides) -> FewShotSegmenter:
    """FS-DINO at 28 pixels, whose adapter fits the small teacher."""
    return small_segmenter(seed, **{"variant": "compact", "img_size": 28, **overrides})


def small_trainer(folder, **kwargs):
    options = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0,
        "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder, "gradient_clip_val": 1.0,
    }  # fmt: skip
    return Trainer(**{**options, **kwargs})


def train_set(index: ClassIndex, classes, val_classes=(), val_episodes=None, **kwargs) -> TrainSet:
    """A training side of one data set."""
    images = ImageList(index.name, tuple(index.all_images()), index.load_image)
    fixed = {"ignore_classes": [], "annotated": images, "images": images, "val_index": index}
    return TrainSet(index, list(classes), **fixed, val_classes=list(val_classes), val_episodes=val_episodes, **kwargs)


def weights(checkpoint) -> dict[str, torch.Tensor]:
    """A method's weights in a checkpoint."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {k.removeprefix(MODEL_PREFIX): v for k, v in state.items() if k.startswith(MODEL_PREFIX)}


class Losses(Callback):
    """Records the loss and the size of every step, and stops hard after a step where it is told to."""

    def __init__(self, die_at_step=None):
        self.values, self.sizes, self.die_at_step = [], [], die_at_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.die_at_step:
            raise RuntimeError("killed")
        self.values.append(float(outputs["loss"]))
        self.sizes.append(batch["image"].shape[-1])


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
