"""Teachers from files: formats, digests, and what is said when a file is not what it should be."""

import shutil
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from fsdino.base.digest import file_sha256
from fsdino.teachers.architecture import build_sam
from fsdino.teachers.sam import SAM_URLS, SamTeacher, save_sam
from tests.small import SAM as SMALL
from tests.small import refuses
from tests.training.small import small_teacher


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


def test_teacher_is_frozen_and_no_module(sam):
    teacher = SamTeacher(sam.train(), SMALL)
    assert not isinstance(teacher, torch.nn.Module)
    assert not teacher.sam.training and not any(p.requires_grad for p in teacher.sam.parameters())
    assert teacher.to("cpu").device == torch.device("cpu")


def test_bfloat16_and_compiled(monkeypatch):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    teacher, compiled = small_teacher(), []
    whole, name = teacher.embed(images), teacher.fingerprint
    half = teacher.run_as(bf16=True).embed(images)
    assert half.dtype == torch.float32 and 0 < (half - whole).abs().max() < 0.05 * whole.abs().max()
    assert teacher.fingerprint != name
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    assert torch.equal(teacher.run_as(compile=True).embed(images), whole)
    assert compiled == [teacher.sam.image_encoder] and teacher.fingerprint == name


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


@pytest.fixture()
def official(sam, tmp_path, monkeypatch):
    """An official name whose address is a file on disk and whose digits are the file's own."""
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    file = (tmp_path / "sam.pth").rename(tmp_path / f"sam_vit_b_{file_sha256(tmp_path / 'sam.pth')[:6]}.pth")

    def download(url, target):
        if url.endswith("away.pth"):
            raise URLError("Name or service not known")
        shutil.copy(tmp_path / url.rpartition("/")[2], target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setitem(SAM_URLS, "vit_b", f"https://example.org/{file.name}")
    return file


def test_official_file_is_held_to_the_digits_in_its_name(official, tmp_path):
    digest = file_sha256(official)
    assert SamTeacher.from_checkpoint("vit_b", sha256=digest).config == SMALL
    kept = tmp_path / "hub" / "checkpoints" / official.name
    refuses("expected 0000; download it again", SamTeacher.from_checkpoint, "vit_b", sha256="0000")
    assert kept.exists()  # the digest was mistyped, the file is good
    for bad in (official, kept):  # as it comes over the network, and as somebody put it there
        kept.unlink(missing_ok=True)
        good = official.read_bytes()
        bad.write_bytes(good[:-100])
        message = rf"{kept} from https://example\.org/{official.name} has sha256 {file_sha256(bad)}, expected one that "
        with pytest.raises(ValueError, match=message + rf"begins with {digest[:6]}; it was deleted: start again"):
            SamTeacher.from_checkpoint("vit_b")
        assert not kept.exists()
        official.write_bytes(good)
    assert SamTeacher.from_checkpoint("vit_b").config == SMALL


def test_address_of_ones_own_is_held_to_the_digest_that_is_given(official, tmp_path):
    shutil.copy(official, tmp_path / "sam_vit_b_000000.pth")  # digits in other names say nothing
    address = "https://example.org/sam_vit_b_000000.pth"
    assert SamTeacher.from_checkpoint(address).config == SMALL
    refuses(r"expected one that begins with 1111; it was deleted", SamTeacher.from_checkpoint, address, sha256="1111")
    assert not (tmp_path / "hub" / "checkpoints" / "sam_vit_b_000000.pth").exists()


def test_without_network_the_message_says_what_to_put_where(official, tmp_path, monkeypatch):
    monkeypatch.setitem(SAM_URLS, "vit_b", "https://example.org/away.pth")
    place = tmp_path / "hub" / "checkpoints" / "away.pth"
    message = r"cannot download https://example\.org/away\.pth \(Name or service not known\); check the network, or "
    with pytest.raises(ConnectionError, match=message + rf"fetch away\.pth by hand and put it at {place}\."):
        SamTeacher.from_checkpoint("vit_b")


def test_file_that_is_missing_or_no_sam(tmp_path, sam):
    with pytest.raises(FileNotFoundError, match=r"teacher file nowhere.pth does not exist; give a .pth"):
        SamTeacher.from_checkpoint("nowhere.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no SAM checkpoint: it has no 'image_encoder.patch_embed.proj.weight'"):
        SamTeacher.from_checkpoint(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    refuses(r"no SAM checkpoint: it holds a list", SamTeacher.from_checkpoint, tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("not weights")
    refuses(r"text.pth cannot be read", SamTeacher.from_checkpoint, tmp_path / "text.pth")
    torch.save({k: v for k, v in sam.state_dict().items() if "iou_token" not in k}, tmp_path / "cut.pth")
    refuses(r"no 'mask_decoder.iou_token.weight'", SamTeacher.from_checkpoint, tmp_path / "cut.pth")
    torch.save({k: v for k, v in sam.state_dict().items() if "no_mask_embed" not in k}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"1 keys missing, 0 unexpected.*'prompt_encoder.no_mask_embed.weight'"):
        SamTeacher.from_checkpoint(tmp_path / "cut.pth")


def test_random_teacher_by_name():
    assert SamTeacher.random("tiny", seed=1).fingerprint != SamTeacher.random("tiny", seed=2).fingerprint
    refuses(r"unknown SAM size 'vit_x'; use one of tiny, vit_b", SamTeacher.random, "vit_x")
