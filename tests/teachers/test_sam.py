"""Teachers from files: formats, digests, and what is said when a file is not what it should be."""

import pytest
import torch
from safetensors.torch import save_file

from fsdino.base.digest import file_sha256
from fsdino.teachers.architecture import build_sam
from fsdino.teachers.sam import SamTeacher, save_sam
from tests.small import SAM as SMALL


@pytest.fixture()
def sam():
    return build_sam(SMALL, seed=0)


def test_pth_and_safetensors_give_the_same_teacher(sam, tmp_path):
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    save_sam(sam, SMALL, tmp_path / "sam.safetensors")
    save_file({k: v.clone() for k, v in sam.state_dict().items()}, tmp_path / "bare.safetensors")
    teachers = [SamTeacher.from_checkpoint(tmp_path / n) for n in ("sam.pth", "sam.safetensors", "bare.safetensors")]
    assert len({teacher.fingerprint for teacher in teachers}) == 1
    assert all(teacher.config == SMALL for teacher in teachers)
    sam.mask_decoder.iou_token.weight.data += 1
    assert SamTeacher(sam, SMALL).fingerprint != teachers[0].fingerprint


def test_embedding_is_segment_anythings(sam):
    teacher = SamTeacher(sam, SMALL)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = sam.image_encoder(torch.stack([sam.preprocess(image * 255) for image in images]))
    assert torch.equal(teacher.embed(images), expected)
    assert teacher.embed(torch.rand(1, 3, 50, 50)).shape == (1, *teacher.entry_shape)


def test_prompts_scale_with_the_image(sam):
    teacher = SamTeacher(sam, SMALL)
    embedding = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(1, 1)
    small, _ = teacher.decode_points(embedding, torch.tensor([[[7.5, 15.5]]]), labels, size=32)
    large, _ = teacher.decode_points(embedding, torch.tensor([[[15.5, 31.5]]]), labels, size=64)
    enlarged = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large, enlarged)
    box = torch.tensor([[2.0, 2.0, 9.0, 9.0]])
    masks, scores = teacher.decode_boxes(embedding, box, size=32)
    assert masks.shape == (1, 4, 32, 32) and scores.shape == (1, 4)


def test_teacher_is_frozen_and_no_module(sam):
    teacher = SamTeacher(sam.train(), SMALL)
    assert not isinstance(teacher, torch.nn.Module)
    assert not teacher.sam.training and not any(p.requires_grad for p in teacher.sam.parameters())
    assert teacher.to("cpu").device == torch.device("cpu")


def test_digest_is_checked(sam, tmp_path):
    path = tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    assert SamTeacher.from_checkpoint(path, sha256=file_sha256(path).upper()).name == "sam"
    with pytest.raises(ValueError, match=rf"sha256 {file_sha256(path)}, expected 0000; download it again"):
        SamTeacher.from_checkpoint(path, sha256="0000")


def test_url_is_downloaded_once(sam, tmp_path, monkeypatch):
    calls = []

    def download(url, target):
        calls.append(url)
        torch.save(sam.state_dict(), target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert SamTeacher.from_checkpoint("https://example.org/some_sam.pth?x=1").config == SMALL
    assert calls == ["https://example.org/some_sam.pth?x=1"]


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"teacher file nowhere.pth does not exist; give a .pth"):
        SamTeacher.from_checkpoint("nowhere.pth")


def test_file_that_is_no_sam(tmp_path, sam):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no SAM checkpoint: it has no 'image_encoder.patch_embed.proj.weight'"):
        SamTeacher.from_checkpoint(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"no SAM checkpoint: it holds a list"):
        SamTeacher.from_checkpoint(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"text.pth cannot be read"):
        SamTeacher.from_checkpoint(tmp_path / "text.pth")
    torch.save({k: v for k, v in sam.state_dict().items() if "iou_token" not in k}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"no 'mask_decoder.iou_token.weight'"):
        SamTeacher.from_checkpoint(tmp_path / "cut.pth")
    torch.save({k: v for k, v in sam.state_dict().items() if "no_mask_embed" not in k}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"1 keys missing, 0 unexpected.*'prompt_encoder.no_mask_embed.weight'"):
        SamTeacher.from_checkpoint(tmp_path / "cut.pth")


def test_random_teacher_by_name():
    assert SamTeacher.random("tiny", seed=1).fingerprint != SamTeacher.random("tiny", seed=2).fingerprint
    with pytest.raises(ValueError, match=r"unknown SAM size 'vit_x'; use one of tiny, vit_b"):
        SamTeacher.random("vit_x")
