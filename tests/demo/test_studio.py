"""What the page does, without the page: every method answers, and what is kept is what was searched."""

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.base.reference import Reference
from fsdino.base.registry import build
from fsdino.demo.samples import embedded_world
from fsdino.demo.studio import PROTOTYPE, Card, Session, Studio, masks_zip, prototype_of
from fsdino.predict.memory_file import load_memory
from tests.small import refuses, scene, small_segmenter


def studio(**others: Any) -> Studio:
    return Studio(small_segmenter(), "small", {PROTOTYPE: None, **others})


def filled(desk: Studio, images: int = 2) -> Session:
    image, mask = scene()
    session = Session(cards=[Card(f"{i}.jpg", scene(50 + i, 70, seed=i + 1)[0]) for i in range(images)])
    session.examples.append(desk.example(Reference(image, mask=mask, name="first")))
    return session


def test_every_method_answers_at_the_images_size(tmp_path: Path) -> None:
    desk = studio(floor=build("all_foreground", img_size=56))
    session = filled(desk)
    desk.search(session, desk.names)
    for card in session.cards:
        assert list(card.found) == ["small", PROTOTYPE, "floor"] and card.found["floor"].mask.all()
        assert all(one.mask.shape == card.image.shape[:2] for one in card.found.values())
    alone = desk.main.segment(desk.main.remember([session.examples[0].reference]), session.cards[0].image)
    assert np.array_equal(session.cards[0].found["small"].mask, alone.mask)
    with zipfile.ZipFile(masks_zip(session, tmp_path / "masks.zip")) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("scores.csv").decode())))
        assert len(rows) == 6 and rows[0]["image"] == "0.jpg" and rows[2]["method"] == "floor"
        kept = np.asarray(Image.open(io.BytesIO(archive.read("floor/01 0.png"))))
        assert kept.shape == (50, 70) and kept.min() == 255


def test_one_image_can_be_searched_again() -> None:
    desk = studio()
    session = filled(desk)
    desk.search(session, ["small"])
    first, second = session.cards
    before = first.found["small"], second.found["small"]
    desk.search(session, [PROTOTYPE], only=second)
    assert first.found == {"small": before[0]} and list(second.found) == ["small", PROTOTYPE]
    assert second.found["small"] is before[1]


def test_what_changes_during_a_search_is_not_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = studio()
    session, (shown, _) = filled(desk), scene(40, 44)
    gone, kept = session.cards
    found, segment = [], desk.main.segment

    def meanwhile(memory: Any, image: np.ndarray) -> Any:
        session.cards, session.examples = [kept, Card("new.jpg", shown)], []
        found.append(segment(memory, image))
        return found[-1]

    monkeypatch.setattr(desk.main, "segment", meanwhile)
    desk.search(session, ["small"])
    assert gone.found["small"].mask is found[0].mask and kept.found["small"].mask is found[1].mask
    assert not session.cards[1].found
    assert desk.save_memory(session, "thing", tmp_path / "thing.fsmem").is_file(), "of the examples that were searched"
    with zipfile.ZipFile(masks_zip(session, tmp_path / "masks.zip")) as archive:
        assert archive.namelist() == ["small/01 1.png", "scores.csv"]


def test_examples_are_remembered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, asked = studio(), []
    session, remember = filled(desk), desk.main.remember
    monkeypatch.setattr(desk.main, "remember", lambda given: asked.append(len(given)) or remember(given))
    for only in (None, session.cards[0], session.cards[1]):
        desk.search(session, ["small"], only=only)
    path = desk.save_memory(session, "thing", tmp_path / "thing.fsmem")
    assert load_memory(path, desk.main.fingerprint()).class_name == "thing", "the main model's memory"
    assert asked == [1]
    session.examples.append(desk.example(session.examples[0].as_mask))
    desk.search(session, ["small"])
    assert asked == [1, 2]


def test_the_prototypes_threshold_fits_the_examples() -> None:
    model = small_segmenter()
    image, mask = scene()
    method = prototype_of(model, [Reference(image, mask=mask)])
    assert method.encoder is model.encoder and method.score_threshold != 0.0


def test_hints_are_drawn_and_corrections_change_the_answer() -> None:
    desk = Studio(small_segmenter(promptable=True), "small", {PROTOTYPE: None})
    assert desk.main.takes_hints and not studio().main.takes_hints
    image, _ = scene()
    session = filled(desk, images=1)
    session.examples.append(desk.example(Reference(image, box=(10, 10, 60, 50), name="boxed")))
    assert session.examples[1].mask.shape == image.shape[:2] and session.examples[1].mask.any()
    desk.search(session, desk.names)
    card = session.cards[0]
    before, card.clicks = card.found["small"], [(5.0, 5.0, True), (60.0, 40.0, False)]
    desk.search(session, ["small"], only=card)
    after = card.found["small"]
    changed = not np.array_equal(before.mask, after.mask) or before.score != after.score
    assert changed and after.present


def test_what_cannot_be_done_is_said(monkeypatch) -> None:
    desk, (image, mask) = studio(), scene()
    refuses("small learns from masks alone", desk.example, Reference(image, points=[(3, 3)]))
    refuses("no example of the object yet", desk.search, Session(), ["small"])
    negative = Session(examples=[desk.example(Reference(image, mask=mask, negative=True))])
    refuses("no example of the object yet", desk.search, negative, ["small"])
    refuses("needs an FS-DINO model", prototype_of, build("all_foreground", img_size=56), [Reference(image, mask=mask)])
    model = small_segmenter(promptable=True)
    monkeypatch.setattr(model, "draw_mask", lambda reference: np.zeros((60, 80), bool))
    with pytest.raises(ValueError, match="gave an empty mask"):
        Studio(model, "small", {}).example(Reference(image, points=[(3, 3)]))


def test_the_sample_has_images_with_and_without_the_class() -> None:
    reference, images = embedded_world()
    assert np.asarray(reference.mask).any() and len(images) == 6
    assert sum("without" in name for name, _ in images) == 2
    assert embedded_world(1)[0].name != reference.name
