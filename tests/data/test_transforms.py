"""Joint augmentation."""

import cv2
import numpy as np

from fsdino.data.transforms import JointAugment


def _scene() -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 80, (40, 60, 3)).astype(np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 40:55] = 1
    image[mask == 1] = (250, 240, 230)
    mask[:2] = 255
    return image, mask


def test_image_and_mask_move_together_and_the_object_stays():
    image, mask = _scene()
    augment = JointAugment(brightness=0, contrast=0, saturation=0, grey_prob=0, crop_scale=(0.1, 0.8), keep=0.5)
    sizes, flipped = set(), 0
    for seed in range(60):
        new_image, new_mask = augment(image, mask, np.random.default_rng(seed))
        assert new_image.shape[:2] == new_mask.shape and new_image.flags.c_contiguous and new_mask.flags.c_contiguous
        assert ((new_image.min(-1) > 200) == (new_mask == 1)).all()
        assert (new_mask == 1).sum() >= 0.5 * (mask == 1).sum()
        sizes.add(new_mask.shape)
        flipped += int((new_mask == 1)[:, : new_mask.shape[1] // 2].sum() > (new_mask == 1).sum() / 2)
    assert len(sizes) > 20 and 5 < flipped < 55


def test_the_whole_image_when_no_crop_keeps_the_object():
    image, mask = _scene()
    mask[:, :] = 1
    augment = JointAugment(crop_scale=(0.1, 0.2), keep=0.9)
    assert augment(image, mask, np.random.default_rng(0))[1].shape == (40, 60)


def test_the_generator_alone_decides():
    image, mask = _scene()
    a, b = (JointAugment()(image, mask, np.random.default_rng(7)) for _ in range(2))
    c = JointAugment()(image, mask, np.random.default_rng(8))
    assert all((x == y).all() for x, y in zip(a, b)) and (a[0].shape != c[0].shape or (a[0] != c[0]).any())


def test_colours_change_and_the_mask_does_not():
    image, mask = _scene()
    augment = JointAugment(crop_scale=(1, 1), crop_ratio=(1, 1), flip_prob=0, grey_prob=1)
    new_image, new_mask = augment(image, mask, np.random.default_rng(0))
    assert (new_mask == mask).all() and new_image.dtype == np.uint8 and (new_image != image).any()
    assert (new_image[..., :1] == new_image).all()


def test_no_change_when_all_is_off():
    image, mask = _scene()
    off = JointAugment((1, 1), (1, 1), flip_prob=0, brightness=0, contrast=0, saturation=0, grey_prob=0)
    new_image, new_mask = off(image, mask, np.random.default_rng(0))
    assert np.abs(new_image.astype(int) - image).max() <= 1 and (new_mask == mask).all()


def test_a_mask_without_object_may_be_cropped_anywhere():
    image, mask = _scene()
    shapes = {JointAugment()(image, np.zeros_like(mask), np.random.default_rng(s))[1].shape for s in range(10)}
    assert len(shapes) > 5


def test_an_image_decoded_smaller_is_cropped_as_its_mask() -> None:
    mask = np.zeros((80, 120), np.uint8)
    mask[20:60, 40:100] = 1
    image = np.repeat((mask[::4, ::4] * 200)[..., None], 3, -1)
    off = {"brightness": 0, "contrast": 0, "saturation": 0, "grey_prob": 0}

    def enlarged(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return cv2.resize(crop, size[::-1], interpolation=cv2.INTER_NEAREST)

    for seed in range(20):
        found, cut = JointAugment(shrink=enlarged, **off)(image, mask, np.random.default_rng(seed))
        assert found.shape[:2] == cut.shape and ((found[..., 0] > 100) != (cut == 1)).mean() < 0.12
        assert min(cut.shape[0] / 80, cut.shape[1] / 120) >= JointAugment().least_side - 0.01
