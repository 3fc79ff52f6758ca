"""Images and masks as cameras and annotation tools write them."""

import numpy as np
import pytest
from PIL import Image

from fsdino.base.image import ENOUGH
from fsdino.base.resize import Resize
from fsdino.data.images import check_mask_size, image_size, read_image, read_labels, read_mask, read_reduced
from tests.data.small import labels, photo, shared_data
from tests.small import refuses


@pytest.fixture
def image():
    array = np.zeros((6, 10, 3), np.uint8)
    array[:, :5] = (200, 30, 60)
    return array


def test_exif_orientation_is_applied(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise when shown
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    assert found.shape == (10, 6, 3) and image_size(tmp_path / "a.png") == (10, 6)
    assert (found[0, 0] == (200, 30, 60)).all() and (found[-1, 0] == 0).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_any_mode_becomes_rgb_bytes(tmp_path, image, mode):
    name = "a.tif" if mode == "CMYK" else "a.png"
    Image.fromarray(image).convert(mode).save(tmp_path / name)
    found = read_image(tmp_path / name)
    assert found.shape == (6, 10, 3) and found.dtype == np.uint8 and found[:, :5].mean() > found[:, 5:].mean()


def test_transparent_pixels_are_laid_on_white(tmp_path, image):
    alpha = np.zeros((6, 10, 1), np.uint8)
    alpha[:, :5] = 255
    Image.fromarray(np.concatenate([image, alpha], -1)).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert (found[:, :5] == image[:, :5]).all() and (found[:, 5:] == 255).all()


def test_sixteen_bit_keeps_the_upper_byte(tmp_path):
    Image.fromarray((np.arange(60).reshape(6, 10) * 1000).astype(np.uint16)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png")[..., 1] == (np.arange(60).reshape(6, 10) * 1000) // 256).all()


def test_a_cut_jpeg_is_named(tmp_path):
    path = photo(tmp_path / "cut.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:3000])
    refuses(r"'.*cut\.jpg' cannot be read \(.*truncated.*\): copy or download it again", read_image, path)


def test_no_image_and_no_file(tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    refuses(r"'.*a\.jpg' cannot be read", read_image, tmp_path / "a.jpg")
    refuses(r"'.*a\.jpg' cannot be read", image_size, tmp_path / "a.jpg")
    for reader in (read_image, read_labels, read_mask, image_size):
        with pytest.raises(FileNotFoundError, match=r"'.*b\.jpg' does not exist: check the data set's root"):
            reader(tmp_path / "b.jpg")


def test_labels_are_numbers_not_colours(tmp_path):
    array = np.arange(60, dtype=np.uint8).reshape(6, 10)
    assert (read_labels(labels(tmp_path / "p.png", array, palette=True)) == array).all()
    Image.fromarray(array.astype(np.uint16) * 500).save(tmp_path / "deep.png")
    assert (read_labels(tmp_path / "deep.png") == array.astype(int) * 500).all()
    Image.fromarray(np.repeat(array[..., None], 3, -1)).save(tmp_path / "rgb.png")
    assert (read_labels(tmp_path / "rgb.png") == array).all()
    colours = np.zeros((6, 10, 3), np.uint8)
    colours[..., 0] = 7
    Image.fromarray(colours).save(tmp_path / "c.png")
    refuses(r"'.*c\.png' has colours .* save it as a grey or palette PNG", read_labels, tmp_path / "c.png")


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (90, 128)])
@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_masks_are_cut_where_people_mean_it(tmp_path, values, mode):
    array = np.full((6, 10), values[0], np.uint8)
    array[2:4, 3:7] = values[1]
    if mode == "1":
        Image.fromarray(array > values[0]).save(tmp_path / "m.png")
    elif mode == "I;16":
        deep = array.astype(np.uint16) * (257 if values[1] > 1 else 1)
        Image.fromarray(deep).save(tmp_path / "m.png")
    else:
        Image.fromarray(array).convert(mode).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == (array == values[1])).all()


def test_a_two_colour_palette_counts_by_its_index_and_0_1_may_hold_the_ignore_label(tmp_path):
    array = np.zeros((6, 10), np.uint8)
    array[2:4] = 1
    image = Image.fromarray(array).convert("P")
    image.putdata(array.ravel().tolist())
    image.putpalette([0, 0, 0, 90, 0, 0])  # the object is painted dark red
    image.save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == array).all()
    array = np.zeros((6, 10), np.uint8)
    array[1:3], array[3] = 1, 255
    Image.fromarray(array).save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png") == array).all()


def test_a_mask_of_another_size_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"mask 'dog\.png' is 10x6 pixels .* its image is 20x6: export the mask"):
        check_mask_size(np.zeros((6, 10)), (6, 20), "dog.png")


def test_a_png_s_checksums_are_looked_at(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    place = whole.index(b"IDAT") + len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    refuses("cannot be read .*: copy or download it again", read_image, path)


def test_too_many_pixels_are_told_from_a_damaged_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    refuses("it has more than 0 megapixels; cut it into parts", read_image, path)


class TestDecodedSmaller:
    """A JPEG that will be resized to a square needs no more pixels than that asks for."""

    @pytest.mark.parametrize(("side", "by"), [(150, 1), (104, 2), (51, 4), (12, 8), (1, 8)])
    def test_both_sides_stay_long_enough(self, tmp_path, side, by):
        found, size = read_reduced(photo(tmp_path / "a.jpg", (300, 402)), side)
        assert found.shape[:2] == (-(-300 // by), -(-402 // by)) and min(found.shape[:2]) >= min(300, ENOUGH * side)
        assert size == (300, 402)

    def test_other_files_stay_whole(self, tmp_path):
        assert read_reduced(photo(tmp_path / "a.png", (300, 400)), 8)[0].shape == (300, 400, 3)

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_modes_and_orientation_are_as_whole(self, tmp_path, mode):
        exif = Image.Exif()
        exif[0x0112] = 6
        ramp = np.add.outer(np.arange(240) // 2, np.arange(320) // 4)[..., None] + np.array([0, 20, 50])
        Image.fromarray(ramp.astype(np.uint8)).convert(mode).save(tmp_path / "a.jpg", exif=exif, quality=95)
        whole, (small, size) = read_image(tmp_path / "a.jpg"), read_reduced(tmp_path / "a.jpg", 40)
        assert whole.shape == (320, 240, 3) and small.shape == (80, 60, 3) and size == (320, 240)
        means = whole.reshape(80, 4, 60, 4, 3).mean((1, 3))
        assert np.abs(means - small).max() < 4

    def test_a_cut_file_is_named(self, tmp_path):
        path = photo(tmp_path / "cut.jpg", (200, 200))
        path.write_bytes(path.read_bytes()[:3000])
        refuses(r"'.*cut\.jpg' cannot be read", read_reduced, path, 20)

    def test_the_photographs_of_the_recipes_are_read_as_ever(self):
        files = sorted((shared_data("coco386") / "images").glob("*.jpg"))
        for path in files[::30]:
            for side in (224, 336, 448):
                found, size = read_reduced(path, side)
                assert np.array_equal(found, read_image(path)) and Resize(side).shrink(found, size) is found
        assert max(min(image_size(path)) for path in files) < 2 * ENOUGH * 224
        assert max(max(image_size(path)) for path in files) < ENOUGH * 448  # no crop is shrunk
