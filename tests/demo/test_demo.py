"""The demo: marks become references, the studio answers, and in a browser one draws, searches and sees the mask."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import socket
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino.base.reference import Reference
from fsdino.base.registry import build
from fsdino.demo.marks import reference_from
from fsdino.demo.samples import embedded_world
from fsdino.demo.serve import POLICY, demo, keep_offline, open_studio, shown_name
from fsdino.demo.studio import PROTOTYPE, Card, Session, Studio, masks_zip, prototype_of
from fsdino.predict.memory_file import load_memory
from tests.small import scene, small_segmenter

IMAGE = np.zeros((40, 60, 3), np.uint8)


def mark(tool: str, *points: tuple[float, float], **more: Any) -> dict[str, Any]:
    return {"tool": tool, "points": [list(point) for point in points], **more}


# ---- marks


def test_outlines_brush_and_eraser_paint_a_mask() -> None:
    square = mark("outline", (10, 5), (29, 5), (29, 24), (10, 24))
    mask = np.asarray(reference_from(IMAGE, [square]).mask)
    assert mask.sum() == 400 and mask[5:25, 10:30].all()
    erased = np.asarray(reference_from(IMAGE, [square, mark("erase", (10, 5), (29, 5), width=3)]).mask)
    assert 0 < erased.sum() < 400 and not erased[5, 10:30].any() and erased[20, 20]
    brushed = np.asarray(reference_from(IMAGE, [mark("brush", (30, 20), width=9)]).mask)
    assert brushed[20, 30] and 40 < brushed.sum() < 90


def test_an_outline_that_goes_round_twice_is_filled() -> None:
    once = [(10, 5), (29, 5), (29, 24), (10, 24)]
    for points in (once, once[::-1]):
        marks = mark("outline", *points), mark("outline", *points, *points)
        single, double = (reference_from(IMAGE, [one]).mask for one in marks)
        assert np.array_equal(single, double)
    eight = reference_from(IMAGE, [mark("outline", (0, 0), (30, 30), (30, 0), (0, 30))]).mask
    assert np.asarray(eight)[15, [3, 27]].all() and not np.asarray(eight)[[3, 27], 15].any()


def test_hints_stay_hints_and_a_mask_wins() -> None:
    hints = [mark("box", (20, 30), (5, 4)), mark("click", (7, 8), on=True), mark("click", (50, 30), on=False),
             mark("scribble", (6, 6), (12, 6))]  # fmt: skip
    found = reference_from(IMAGE, hints, negative=True, name="a.jpg")
    assert found.mask is None and found.negative and found.name == "a.jpg"
    assert found.box == (5, 4, 20, 30) and found.labels == [1, 0]
    assert np.asarray(found.points).tolist() == [[7, 8], [50, 30]] and np.asarray(found.scribble).sum() == 7
    assert reference_from(IMAGE, [*hints, mark("brush", (9, 9), width=3)]).mask is not None


def test_marks_outside_are_moved_to_the_border() -> None:
    found = reference_from(IMAGE, [mark("click", (-5, 99))])
    assert np.asarray(found.points).tolist() == [[0, 39]]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([], "nothing is drawn"),
        ([mark("erase", (3, 3), width=4)], "nothing is drawn"),
        ("outline", "expected a list"),
        ([mark("click", (1, 1))] * 3000, "at most 2000 marks"),
        ([{"tool": "spray"}], "tool 'spray' is unknown"),
        ([{"tool": "box"}], "has no list of points"),
        ([{"tool": "box", "points": [["a", "b"]]}], "has no list of points"),
        ([{"tool": "box", "points": []}], "no usable point"),
        ([mark("click", (float("nan"), 1))], "no usable point"),
    ],
)
def test_marks_of_another_form_are_refused(marks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference_from(IMAGE, marks)


# ---- the studio


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
    assert gone.found["small"] is found[0] and kept.found["small"] is found[1] and not session.cards[1].found
    assert desk.save_memory(session, "thing", tmp_path / "thing.fsmem").is_file(), "of the examples that were searched"
    with zipfile.ZipFile(masks_zip(session, tmp_path / "masks.zip")) as archive:
        assert archive.namelist() == ["small/01 1.png", "scores.csv"]


def test_examples_are_remembered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, asked = studio(), []
    session, remember = filled(desk), desk.main.remember
    monkeypatch.setattr(desk.main, "remember", lambda given: asked.append(len(given)) or remember(given))
    for only in (None, session.cards[0], session.cards[1]):
        desk.search(session, ["small"], only=only)
    desk.save_memory(session, "thing", tmp_path / "thing.fsmem")
    assert asked == [1]
    session.examples.append(desk.example(session.examples[0].as_mask))
    desk.search(session, ["small"])
    assert asked == [1, 2]


def test_the_memory_is_the_main_models(tmp_path: Path) -> None:
    desk = studio()
    session = filled(desk)
    desk.search(session, ["small"])
    path = desk.save_memory(session, "thing", tmp_path / "thing.fsmem")
    memory = load_memory(path, desk.main.fingerprint())
    assert memory.class_name == "thing" and memory.thumbnail.shape[2] == 3


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
    before, card.clicks = card.found["small"].probs, [(5.0, 5.0, True), (60.0, 40.0, False)]
    desk.search(session, ["small"], only=card)
    after = card.found["small"]
    assert not np.array_equal(before, after.probs) and after.present


def test_what_cannot_be_done_is_said() -> None:
    desk, (image, mask) = studio(), scene()
    with pytest.raises(ValueError, match="small learns from masks alone"):
        desk.example(Reference(image, points=[(3, 3)]))
    with pytest.raises(ValueError, match="no example of the object yet"):
        desk.search(Session(), ["small"])
    negative = Session(examples=[desk.example(Reference(image, mask=mask, negative=True))])
    with pytest.raises(ValueError, match="no example of the object yet"):
        desk.search(negative, ["small"])
    with pytest.raises(ValueError, match="needs an FS-DINO model"):
        prototype_of(build("all_foreground", img_size=56), [Reference(image, mask=mask)])


def test_an_empty_drawing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_segmenter(promptable=True)
    monkeypatch.setattr(model, "draw_mask", lambda reference: np.zeros((60, 80), bool))
    with pytest.raises(ValueError, match="gave an empty mask"):
        Studio(model, "small", {}).example(Reference(scene()[0], points=[(3, 3)]))


def test_the_sample_has_images_with_and_without_the_class() -> None:
    reference, images = embedded_world()
    assert np.asarray(reference.mask).any() and len(images) == 6
    assert sum("without" in name for name, _ in images) == 2
    assert embedded_world(1)[0].name != reference.name


# ---- the command


def test_names_on_the_page() -> None:
    assert shown_name("tiny") == "FS-DINO tiny"
    assert shown_name("runs/photos/2026-11-20/export") == "photos/2026-11-20"


def test_models_to_compare_are_opened() -> None:
    desk = open_studio("tiny", [PROTOTYPE], "cpu")
    assert desk.names == ["FS-DINO tiny", "prototype"] and desk.others == {PROTOTYPE: None}


def test_wrong_options_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ValueError, match="max_upload_mb 0 is not positive"):
        demo(max_upload_mb=0)
    with pytest.raises(FileNotFoundError, match="no model 'nothing'"):
        demo(model="nothing")
    for port in (99999, 0, -1):
        with pytest.raises(ValueError, match=f"there is no port {port}; choose one from 1 to 65535"):
            demo(port=port)
    with pytest.raises(ValueError, match=r"^cannot listen on port 7860 of 192.0.2.1: .*; choose another --port or --h"):
        demo(host="192.0.2.1", port=7860)  # an address that is nobody's
    with pytest.raises(ValueError, match=r"^cannot listen on 192.0.2.1: "):
        demo(host="192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ValueError, match="address already in use"):
        demo(port=taken.getsockname()[1])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_uploads_are_deleted_when_the_process_is_asked_to_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name, None)
    if number is None or signal.getsignal(number) is not signal.SIG_DFL:
        pytest.skip(f"{name} is not there, or handled by somebody else")

    def busy(*_: Any) -> Studio:
        (Path(os.environ["GRADIO_TEMP_DIR"]) / "upload.png").write_bytes(b"x")
        signal.raise_signal(number)
        raise AssertionError("it went on")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("fsdino.demo.serve.open_studio", busy)
    with pytest.raises(KeyboardInterrupt):
        demo()
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is signal.SIG_DFL


# ---- the page's buttons


def test_a_button_pressed_twice_takes_one_thing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    from fsdino.demo.page import Desk

    inner = studio()
    desk, session = Desk(inner), filled(inner, images=3)
    session.examples.append(inner.example(session.examples[0].as_mask))
    cards, examples = list(session.cards), list(session.examples)
    for _ in range(2):
        desk.drop(session, SimpleNamespace(_data={"key": cards[1].key}))
        desk.forget(session, SimpleNamespace(_data={"key": examples[0].key}))
    assert session.cards == [cards[0], cards[2]] and session.examples == examples[1:]
    gone = {"key": cards[1].key, "x": 0.5, "y": 0.5, "on": True}
    assert desk.correct(session, ["small"], SimpleNamespace(_data=gone))[0] is session
    assert desk.restore(session, ["small"], SimpleNamespace(_data=gone))[0] is session


# ---- in a browser


def browser_path() -> str:
    """A Chromium on this machine, or a skip that says what is missing."""
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    pytest.importorskip("playwright", reason="the browser test needs playwright")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a small promptable model, on a free port; it skips before anything is started."""
    browser_path()
    from fsdino.demo.serve import start

    keep_offline(str(tmp_path_factory.mktemp("uploads")))
    desk = Studio(small_segmenter(promptable=True), "FS-DINO small", {PROTOTYPE: None})
    page, url = start(desk, "127.0.0.1", None, max_upload_mb=1)
    yield url
    page.close(verbose=False)


@pytest.fixture
def browser(served: str) -> Iterator[tuple[Any, list[str]]]:
    """The open page, in a browser that reaches this machine alone, and the addresses that it asked for."""
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with sync_playwright() as driver:
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        opened = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox", rules])
        page = opened.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(180_000)  # of a machine that does other things as well
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served)
        page.wait_for_selector(".board .empty")
        yield page, asked
        opened.close()


def write_images(folder: Path) -> list[str]:
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(scene(60, 80, seed=i)[0]).save(path)
    return [str(path) for path in paths]


def drag(page: Any, *corners: tuple[float, float]) -> None:
    """Draw on the board through points in shares of its width and height."""
    frame = page.locator("#board canvas").bounding_box()
    places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    page.mouse.up()


def put_on_board(page: Any, path: str) -> None:
    page.set_input_files("#board input.file", path)
    page.wait_for_function("document.querySelector('#board .hint').textContent.startsWith('Draw around')")


def test_draw_search_see_correct_and_keep(browser: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, asked = browser
    paths = write_images(tmp_path)
    put_on_board(page, paths[0])
    drag(page, (0.2, 0.2), (0.7, 0.2), (0.7, 0.7), (0.2, 0.7))
    page.click("#add")
    page.wait_for_selector(".examples li img")
    put_on_board(page, paths[1])
    page.click('[data-tool="box"]')
    drag(page, (0.3, 0.3), (0.8, 0.9))
    page.set_input_files("#results input.file", paths[1:])
    page.wait_for_selector(".card:nth-child(2) .verdict")
    page.click("#methods label:nth-child(2)")
    page.wait_for_selector(".answer[data-method='prototype']")
    earlier = page.locator(".card").first.element_handle()
    page.click("#find")
    page.wait_for_selector(".examples li:nth-child(2)")  # what was drawn became an example by itself
    page.wait_for_function("card => !card.isConnected", arg=earlier)  # and new answers have come
    verdicts = page.locator(".verdict").all_inner_texts()
    assert len(verdicts) == 4 and set(verdicts) <= {"found", "absent"}
    before = page.locator(".answer.clickable img").first.get_attribute("src")
    page.locator(".answer.clickable img").first.click()
    page.wait_for_selector(".card header button:has-text('Undo correction')")
    assert page.locator(".answer.clickable img").first.get_attribute("src") != before
    for button, suffix in (("#masks", ".zip"), ("#memory", ".fsmem")):
        with page.expect_download() as download:
            page.click(button)
        assert download.value.suggested_filename.endswith(suffix)
    away = [url for url in asked if not url.startswith(("http://127.0.0.1", "data:", "blob:"))]
    assert not away, "nothing is asked of any other machine"


def test_what_is_wrong_is_said_on_the_page(browser: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, _ = browser
    page.click("#find")
    page.wait_for_selector("text=there is no image to search yet")
    (tmp_path / "text.png").write_text("no image")
    page.set_input_files("#board input.file", str(tmp_path / "text.png"))
    page.wait_for_selector("text='text.png' is no image that can be read")
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.set_input_files("#board input.file", str(tmp_path / "large.png"))
    page.wait_for_selector("text=larger than 1 MB")


def test_the_server_forbids_other_addresses_and_reads_uploads_alone(served: str, tmp_path: Path) -> None:
    from urllib.request import urlopen

    from fsdino.demo.page import opened

    with urlopen(served) as answer:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["referrer-policy"] == "no-referrer"
    Image.fromarray(IMAGE).save(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="is no uploaded file"):
        opened(str(tmp_path / "secret.png"), "secret.png")
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    Image.fromarray(IMAGE).save(uploads / "mine.png")
    assert opened(str(uploads / "mine.png"), "mine.png")[1].shape == IMAGE.shape
    Image.new("1", (9000, 6000)).save(uploads / "huge.png")
    with pytest.raises(ValueError, match="has 54 megapixels, this page takes 50"):
        opened(str(uploads / "huge.png"), "huge.png")


def test_a_taken_port_and_a_missing_gradio_are_named(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from fsdino.demo.serve import start

    desk = Studio(small_segmenter(), "small", {})
    taken = int(served.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=f"^port {taken} of 127.0.0.1 is not free; choose another --port or --host.$"):
        start(desk, "127.0.0.1", taken, 1)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install fsdino\[demo\]"):
        start(desk, "127.0.0.1", None, 1)
