"""`fsdino demo`: wrong options, uploads that are deleted, and in a browser one draws, searches and sees the mask."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from fsdino.demo.drawings import opened
from fsdino.demo.serve import POLICY, demo, keep_offline, open_studio, shown_name, start
from fsdino.demo.studio import PROTOTYPE, Studio
from tests.demo.test_studio import filled, studio
from tests.small import refuses, small_segmenter, write_image

IMAGE = np.zeros((40, 60, 3), np.uint8)


def test_models_to_compare_are_opened_and_named() -> None:
    assert shown_name("runs/photos/2026-11-20/export") == "photos/2026-11-20"
    desk = open_studio("tiny", [PROTOTYPE], "cpu")
    assert desk.names == ["FS-DINO tiny", "prototype"] and desk.others == {PROTOTYPE: None}


def test_a_frozen_encoder_is_compared_with_its_prototypes(vit_file: Path) -> None:
    desk = open_studio("test_vit", [PROTOTYPE], "cpu", str(vit_file))
    assert desk.names == ["chain test_vit", "prototype"]
    session = filled(desk, images=1)
    desk.search(session, desk.names)
    assert list(session.cards[0].found) == desk.names
    assert open_studio("auto", [], "cpu").names == ["FS-DINO tiny"]


def test_wrong_options_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    refuses("max_upload_mb: expected greater than or equal to 1, got 0", demo, max_upload_mb=0)
    refuses("no model 'nothing'", demo, model="nothing", kind=FileNotFoundError)
    for port in (99999, 0, -1):
        refuses(f"there is no port {port}; choose one from 1 to 65535", demo, port=port)
    with pytest.raises(ValueError, match=r"^cannot listen on port 7860 of 192.0.2.1: .*; choose another --port or --h"):
        demo(host="192.0.2.1", port=7860)  # an address that is nobody's
    refuses(r"^cannot listen on 192.0.2.1: ", demo, host="192.0.2.1")
    refuses(r"^cannot listen on \\ud800: ", demo, host="\ud800")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ValueError, match="address already in use"):
        demo(port=taken.getsockname()[1])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_uploads_are_deleted_when_the_process_is_asked_to_end(name, tmp_path, monkeypatch) -> None:
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


BUSY = """
import threading, time
from fsdino.demo import serve
from fsdino.demo.studio import Studio
from tests.small import small_segmenter

def opened(*_):
    threading.Thread(target=time.sleep, args=(3600,)).start()  # what is searched, and does not end
    return Studio(small_segmenter(promptable=True), "FS-DINO small", {})

serve.open_studio = opened
serve.demo()
"""


@pytest.mark.slow
def test_the_page_ends_under_open_pages_and_searches(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    given = {**os.environ, "TMPDIR": str(tmp_path)}
    said = tmp_path / "errors.txt"
    with said.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=errors, text=True, env=given
        )
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0]  # type: ignore[union-attr,index]
        assert [path.name for path in tmp_path.glob("fsdino-demo-*")]
        with urlopen(f"{url}gradio_api/heartbeat/one"):
            process.terminate()
            assert process.wait(300) == 0
    finally:
        process.kill()
    assert not list(tmp_path.glob("fsdino-demo-*")) and "Traceback" not in said.read_text()


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
    return [str(write_image(folder / f"{i}.png", 60, 80, seed=i)) for i in range(3)]


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


def test_a_mask_is_drawn_by_keys_alone(browser: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, _ = browser
    put_on_board(page, write_images(tmp_path)[0])
    page.focus("#board .tools [data-do='choose']")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('#board .hint').textContent.startsWith('Arrows move')")
    clean = page.evaluate("document.querySelector('#board canvas').toDataURL()")
    page.keyboard.press("Enter")
    for key in ("ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    for key in ("Enter", *["ArrowRight"] * 8, *["ArrowDown"] * 8, *["Shift+ArrowLeft"] * 2, "Enter", "Tab"):
        page.keyboard.press(key)
    assert page.evaluate("document.querySelector('#board canvas').toDataURL()") != clean
    page.click("#add")
    page.wait_for_selector(".examples li img")


def test_what_is_wrong_is_said_on_the_page(browser: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, _ = browser
    page.click("#find")
    page.wait_for_selector("text=there is no image to search yet")
    (tmp_path / "text.png").write_text("no image")
    page.set_input_files("#board input.file", str(tmp_path / "text.png"))
    page.wait_for_selector("text='text.png' is not an image that can be read")
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.set_input_files("#board input.file", str(tmp_path / "large.png"))
    page.wait_for_selector("text=larger than 1 MB")


def test_the_server_forbids_other_addresses_and_reads_uploads_alone(served: str, tmp_path: Path) -> None:
    with urlopen(served) as answer:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["referrer-policy"] == "no-referrer"
    Image.fromarray(IMAGE).save(tmp_path / "secret.png")
    refuses("is not an uploaded file", opened, str(tmp_path / "secret.png"), "secret.png")
    uploads = Path(os.environ["GRADIO_TEMP_DIR"])
    Image.fromarray(IMAGE).save(uploads / "mine.png")
    assert opened(str(uploads / "mine.png"), "mine.png")[1].shape == IMAGE.shape
    Image.new("1", (9000, 6000)).save(uploads / "huge.png")
    refuses("has 54 megapixels, this page takes 50", opened, str(uploads / "huge.png"), "huge.png")


def test_a_taken_port_and_a_missing_gradio_are_named(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Studio(small_segmenter(), "small", {})
    taken = int(served.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=f"^port {taken} of 127.0.0.1 is not free; choose another --port or --host.$"):
        start(desk, "127.0.0.1", taken, 1)
    monkeypatch.setitem(sys.modules, "gradio", None)
    refuses(r"pip install fsdino\[demo\]", start, desk, "127.0.0.1", None, 1, kind=ImportError)
