"""An encoder by name, fitted to a folder of images: a model like any other afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fsdino
from fsdino.cli import main
from fsdino.predict.adapt import CENTRED, adapt
from fsdino.predict.cut import CUTS
from fsdino.predict.support import read_support
from tests.small import refuses, scene, write_references


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(9):
        Image.fromarray(scene(40, 60, seed=seed)[0]).save(folder / f"{seed}.png")
    return folder


def test_the_mean_of_the_images_is_taken_off(photos: Path, vit_file: Path, tmp_path: Path, capsys) -> None:
    out = adapt(str(photos), str(tmp_path / "mine"), "test_vit", str(vit_file), "cpu", number=3)
    assert capsys.readouterr().out == f"test_vit, adapted to 3 of 9 images: {out}\n"
    found, plain = fsdino.load(out), fsdino.load("test_vit", encoder_weights=vit_file)
    spread = [np.asarray(Image.open(photos / f"{i}.png")) for i in (0, 3, 6)]
    torch.testing.assert_close(found.means, plain.fit_means(spread).means)
    assert found.means.abs().sum() > 0 and found.cut == CENTRED


def test_it_is_a_model_for_other_commands(photos: Path, vit_file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_references(tmp_path / "refs", {"cat": 3})
    given = ["--model", "test_vit", "--encoder-weights", str(vit_file), "--device", "cpu"]
    assert main(["adapt", "photos", "--out", "mine", *given]) == 0
    assert main(["remember", "refs", "--out", "cat.fsmem", "--model", "mine", "--device", "cpu"]) == 0
    (photos / "9.png").write_bytes((photos / "0.png").read_bytes())  # more images change no memory
    run = ["predict", "--support", "cat.fsmem", "--images", "photos", "--out", "masks", "--device", "cpu"]
    assert main([*run, "--model", "mine"]) == 0 and len(list((tmp_path / "masks" / "labels").iterdir())) == 10
    assert main([*run, *given, "--overwrite"]) == 2  # the memory is of the adapted model


def test_what_cannot_be_read_is_told_and_left_out(photos: Path, vit_file: Path, tmp_path: Path, capsys) -> None:
    (photos / "4.png").write_text("no image")
    out, others = str(tmp_path / "mine"), ("test_vit", str(vit_file), "cpu")
    adapt(str(photos), out, *others)
    said = capsys.readouterr()
    assert "adapted to 8 of 9 images" in said.out and "left out '4.png': " in said.err and "few" not in said.err
    refuses("'.*mine' holds a model; name another folder, or add --overwrite", adapt, str(photos), out, *others)
    adapt(str(photos / "1.png"), out, *others, overwrite=True)
    assert "careful: 1 images are few" in capsys.readouterr().err
    broken = (str(photos / "4.png"), str(tmp_path / "none"), *others)
    refuses("none of 1 images at '.*4.png' can be read: ", adapt, *broken)
    assert not (tmp_path / "none").exists()
    refuses("model 'tiny' is no encoder; name one of `fsdino models`", adapt, str(photos), "x", "tiny")
    refuses("'.*1.png' is a file; name a folder", adapt, str(photos), str(photos / "1.png"))
    refuses("device 'cuda:9'", adapt, str(photos), "x", device="cuda:9")
    refuses("number: expected", adapt, str(photos), "x", number=0)


def test_references_decide_the_cut_and_what_is_absent(photos: Path, vit_file: Path, tmp_path: Path, capsys) -> None:
    write_references(tmp_path / "refs", {"cat": 3, "dog": 1})
    others = ("test_vit", str(vit_file), "cpu", str(tmp_path / "refs"))
    found = fsdino.load(adapt(str(photos), str(tmp_path / "mine"), *others))
    assert f", cut {found.cut:.2f}, absent below likeness {found.presence_cut:.2f}: " in capsys.readouterr().out
    chosen = found.cut
    cats = read_support(tmp_path / "refs").references["cat"]  # the one dog says nothing
    logits, ious = [], np.zeros(len(CUTS))
    for one in cats:
        found.cut, memory = chosen, found.remember([other for other in cats if other is not one])
        logits.append(found.decode_query(memory, found._square(np.asarray(one.image))[None]).presence_logit.item())
        for i, found.cut in enumerate(CUTS):
            mask = found.segment(memory, one.image, min_presence=0).mask
            ious[i] += (mask & one.mask).sum() / (mask | one.mask).sum()
    assert ious.max() == pytest.approx(ious[np.abs(CUTS - chosen).argmin()]) and chosen != CENTRED
    likeness = found.presence_cut + np.array(logits) / found.sharpness
    assert found.presence_cut == pytest.approx(likeness.mean() - likeness.std(), abs=1e-4)
    few = (*others[:3], str(tmp_path / "refs" / "dog"))
    refuses(
        "no class has 3 references with masks, which is what it takes", adapt, str(photos), str(tmp_path / "x"), *few
    )
