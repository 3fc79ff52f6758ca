"""The page itself: drawing board and examples on the left, images with their masks on the right."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from fsdino.base.result import Segmentation
from fsdino.demo.drawings import ANSWER_SIDE, drawn_over, example_item, opened, source_of
from fsdino.demo.marks import reference_from
from fsdino.demo.samples import embedded_world
from fsdino.demo.shelf import VISITOR_BYTES, Shelf
from fsdino.demo.studio import MAX_EXAMPLES, MAX_IMAGES, Card, Session, Studio, masks_zip

WEB = Path(__file__).parent / "web"
BOARD_SIDE = 1280  # longer side in pixels of what is sent to be drawn on
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]


def page_theme() -> Any:
    """Quiet greys and one blue, in the fonts of the system."""
    theme = gr.themes.Base(primary_hue="sky", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"])
    return theme.set(
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_hover="#005f94",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover_dark="#1586c9",
        button_primary_text_color="#ffffff",
        block_radius="12px",
        button_large_radius="10px",
    )


def page_css() -> str:
    """The page's style sheet."""
    return (WEB / "page.css").read_text(encoding="utf-8")


def component(name: str, **props: Any) -> Any:
    """One of the page's own components, from web/NAME.html and web/NAME.js."""
    html, script = ((WEB / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "js"))
    return gr.HTML(value="", html_template=html, js_on_load=script, apply_default_css=False, elem_id=name, **props)


def build_page(studio: Studio, upload_mb: int) -> Any:
    """Lay the page out and connect it: a `gradio.Blocks`, to be launched.

    Args:
        studio: what answers.
        upload_mb: largest file in megabytes; the server enforces it, the page says it.
    """
    desk = Desk(studio)
    with gr.Blocks(title="FS-DINO", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        session = gr.State(Session())
        gr.HTML(
            "<div class='head'><h1>FS-DINO</h1><p>Show it an object once, find it everywhere.</p>"
            f"<span class='model'>{studio.name}</span></div>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=380):
                gr.HTML("<div class='title'>1 · Show what you mean</div>")
                board = component("board", image=None, limit=upload_mb, hints=studio.main.takes_hints)
                with gr.Row(elem_classes="actions"):
                    add = gr.Button("Add example", elem_id="add")
                    find = gr.Button("Find it", variant="primary", elem_id="find")
                examples = component("examples", items=[])
                sample = gr.Button("No image at hand? Try a sample", size="sm", elem_id="sample")
            with gr.Column(scale=7, min_width=420):
                gr.HTML("<div class='title'>2 · Images to search</div>")
                methods = gr.CheckboxGroup(
                    studio.names,
                    value=[studio.name],
                    label="Methods",
                    show_label=False,
                    elem_id="methods",
                    visible=len(studio.names) > 1,
                    container=False,
                )
                results = component("results", items=[], turn=0, limit=upload_mb)
                with gr.Row(elem_classes="actions"):
                    masks = gr.DownloadButton("Masks (.zip)", interactive=False, size="sm", elem_id="masks")
                    memory = gr.DownloadButton("Memory (.fsmem)", interactive=False, size="sm", elem_id="memory")
        left, right, files = [session, board, examples], [session, results], [masks, memory]
        quiet: dict[str, Any] = {"api_visibility": "private"}
        slow = {**quiet, "show_progress": "minimal", "show_progress_on": [results]}
        # One search at a time, so that the answer to the last question comes last.
        slow |= {"concurrency_id": "search", "concurrency_limit": 1}
        # `success` and not `then`: after a visitor's mistake nothing is searched.
        board.picked(desk.picked, session, [session, board], **quiet)
        gr.on([add.click], desk.add, [session, board], left, **quiet)
        examples.removed(desk.forget, session, [session, examples, results], **quiet)
        results.added(desk.take, session, right, **quiet).success(
            desk.search_if_ready, [session, methods], [*right, *files], **slow
        )
        results.removed(desk.drop, session, right, **quiet)
        results.corrected(desk.correct, [session, methods], [*right, *files], **slow)
        results.restored(desk.restore, [session, methods], [*right, *files], **slow)
        gr.on([find.click], desk.add_if_drawn, [session, board], left, **quiet).success(
            desk.search, [session, methods], [*right, *files], **slow
        )
        methods.input(desk.search_if_ready, [session, methods], [*right, *files], **slow)
        gr.on([sample.click], desk.sample, session, [*left, results], **quiet).success(
            desk.search, [session, methods], [*right, *files], **slow
        )
    return page


def said(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show a visitor's mistake as the one sentence that it is."""

    @functools.wraps(handler)
    def answer(*args: Any) -> Any:
        try:
            return handler(*args)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), title="Not yet", duration=8, print_exception=False) from error

    return answer


class Desk:
    """What the page's buttons do. A session goes in and out of each, the rest are updates of components."""

    def __init__(self, studio: Studio) -> None:
        self.studio, self.shelf = studio, Shelf()
        # Whatever a visitor does wrong becomes a sentence on the page, in every handler alike.
        handlers = "picked add add_if_drawn forget take drop search search_if_ready correct restore sample"
        for name in handlers.split():
            setattr(self, name, said(self._noted(getattr(self, name))))

    def _noted(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """The same, with room made for what it keeps."""

        @functools.wraps(handler)
        def answer(session: Session, *args: Any) -> Any:
            if session.emptied:
                session.emptied = False
                gr.Warning("others needed the memory, so your images were put away; add them again.")
            found = handler(session, *args)
            self.shelf.used(session)
            return found

        return answer

    def picked(self, session: Session, event: gr.EventData) -> tuple[Session, Any]:
        """An image was put on the drawing board."""
        session.draft = opened(event._data["path"], event._data["name"])
        return session, on_board(session)

    def add(self, session: Session, drawn: str) -> tuple[Session, Any, Any]:
        """The marks on the board become an example."""
        if session.draft is None:
            raise ValueError("there is no image on the board; drop one there first.")
        if len(session.examples) >= MAX_EXAMPLES:
            raise ValueError(f"{MAX_EXAMPLES} examples are the most that this page keeps; remove one first.")
        name, image = session.draft
        board = json.loads(drawn) if drawn else {}
        reference = reference_from(image, board.get("marks", []), bool(board.get("negative")), name)
        session.examples.append(self.studio.example(reference))
        session.draft = None
        return session, on_board(session), example_list(session)

    def add_if_drawn(self, session: Session, drawn: str) -> tuple[Session, Any, Any]:
        """As `add`, where something is drawn, so that one button is enough."""
        has_marks = session.draft is not None and bool((json.loads(drawn) if drawn else {}).get("marks"))
        return self.add(session, drawn) if has_marks else (session, gr.skip(), gr.skip())

    def forget(self, session: Session, event: gr.EventData) -> tuple[Session, Any, Any]:
        """Take an example away, and with the last one that shows the object the answers to it."""
        session.examples = [example for example in session.examples if example.key != event._data["key"]]
        if not all(example.reference.negative for example in session.examples):
            return session, example_list(session), gr.skip()
        for card in session.cards:
            card.found, card.clicks = {}, []
        return session, example_list(session), self.cards(session)

    def take(self, session: Session, event: gr.EventData) -> tuple[Session, Any]:
        """Take images to search; what cannot be read is said and left out."""
        for file in event._data["files"]:
            if len(session.cards) >= MAX_IMAGES:
                gr.Warning(f"{MAX_IMAGES} images are the most that this page keeps; `fsdino predict` has no limit.")
                break
            try:
                card = Card(*opened(file["path"], file["name"]))
                # With a mask of each method, which comes later.
                coming = card.image.nbytes + len(self.studio.names) * card.image[..., 0].size
                if session.held + coming > VISITOR_BYTES:
                    much = f"{VISITOR_BYTES // 10**6} MB of pixels"
                    gr.Warning(f"{much} are the most that this page keeps; `fsdino predict` has no limit.")
                    break
                session.cards.append(card)
            except (ValueError, OSError) as error:
                gr.Warning(str(error))
        return session, self.cards(session)

    def drop(self, session: Session, event: gr.EventData) -> tuple[Session, Any]:
        """Take an image away."""
        session.cards = [card for card in session.cards if card.key != event._data["key"]]
        return session, self.cards(session)

    def search(self, session: Session, names: Sequence[str]) -> tuple[Any, ...]:
        """Ask the chosen methods about every image."""
        if not session.cards:
            raise ValueError("there is no image to search yet; drop some on the right.")
        return self._searched(session, names, None)

    def search_if_ready(self, session: Session, names: Sequence[str]) -> tuple[Any, ...]:
        """As `search`, where there are examples and images."""
        ready = session.cards and any(not example.reference.negative for example in session.examples)
        return self.search(session, names) if ready else self._unsearched(session)

    def correct(self, session: Session, names: Sequence[str], event: gr.EventData) -> tuple[Any, ...]:
        """A click on the main answer: more of this, or less."""
        card, x, y = session.card(event._data["key"]), event._data["x"], event._data["y"]
        # The image may have been taken away between the click and its turn.
        if card is None:
            return self._unsearched(session)
        height, width = card.image.shape[:2]
        place = (min(max(x, 0), 1) * width - 0.5, min(max(y, 0), 1) * height - 0.5, bool(event._data["on"]))
        # A new list each time: a search that is running still reads the older one.
        before, card.clicks = card.clicks, [*card.clicks, place]
        try:
            return self._searched(session, names, card)
        except ValueError as error:
            card.clicks = before
            gr.Warning(str(error))
            return self._unsearched(session)

    def restore(self, session: Session, names: Sequence[str], event: gr.EventData) -> tuple[Any, ...]:
        """Forget the corrections of an image."""
        card = session.card(event._data["key"])
        if card is None:
            return self._unsearched(session)
        card.clicks = []
        return self._searched(session, names, card)

    def sample(self, session: Session) -> tuple[Session, Any, Any, Any]:
        """A class of the embedded world that the bundled model has never seen, and scenes with and without it."""
        reference, images = embedded_world(session.samples)
        session.samples, session.draft = session.samples + 1, None
        session.examples = [self.studio.example(reference)]
        session.cards = [Card(name, image) for name, image in images]
        return session, on_board(session), example_list(session), self.cards(session)

    def _unsearched(self, session: Session) -> tuple[Any, ...]:
        """The images as they are, and the files to keep unchanged."""
        return session, self.cards(session), gr.skip(), gr.skip()

    def _searched(self, session: Session, names: Sequence[str], only: Card | None) -> tuple[Any, ...]:
        chosen = [name for name in self.studio.names if name in names] or [self.studio.name]
        self.studio.search(session, chosen, only=only)
        if (remark := self.studio.caution(session)) is not None:
            gr.Warning(remark, title="Not its kind of image", duration=15)
        # A folder of its own for each search: an earlier archive may still be on its way to the browser.
        folder = Path(tempfile.mkdtemp(prefix="results-", dir=os.environ["GRADIO_TEMP_DIR"]))
        archive = masks_zip(session, folder / "masks.zip")
        kept = self.studio.save_memory(session, "object", folder / "memory.fsmem")
        downloads = (gr.DownloadButton(value=str(file), interactive=True) for file in (archive, kept))
        return session, self.cards(session), *downloads

    def cards(self, session: Session) -> Any:
        """The images with what was found in them."""
        items = []
        for card in list(session.cards):
            plain = {"source": source_of(card.image, ANSWER_SIDE), "alt": card.name, "present": True}
            answers = [self._answer(method, card, found) for method, found in card.found.items()] or [plain]
            if len(answers) == 1:
                answers[0]["method"] = ""
            items.append({"key": card.key, "name": card.name, "clicks": len(card.clicks), "answers": answers})
        # The script hears only of what has changed; with another turn it draws anew also after a click that failed,
        # which has marked its answer as busy.
        return gr.HTML(items=items, turn=time.monotonic_ns())

    def _answer(self, method: str, card: Card, found: Segmentation) -> dict[str, Any]:
        is_main = method == self.studio.name
        drawn = drawn_over(card.image, found.mask, card.clicks if is_main else ())
        return {
            "method": method,
            "source": source_of(drawn, ANSWER_SIDE),
            "alt": f"{method}: {'found' if found.present else 'absent'}",
            "present": found.present,
            "verdict": "found" if found.present else "absent",
            "detail": f"score {found.score:.2f}" + (f" · there {100 * (found.presence or 0):.0f} %" if is_main else ""),
            "clickable": is_main and self.studio.main.takes_clicks,
        }


def on_board(session: Session) -> Any:
    """The drawing board with the draft, or empty."""
    if session.draft is None:
        return gr.HTML(image=None, value="")
    name, image = session.draft
    height, width = image.shape[:2]
    shown = {"name": name, "width": width, "height": height, "source": source_of(image, BOARD_SIDE)}
    return gr.HTML(image=shown, value="")


def example_list(session: Session) -> Any:
    """Thumbnails of the examples with their masks."""
    return gr.HTML(items=[example_item(i, example) for i, example in enumerate(session.examples, start=1)])
