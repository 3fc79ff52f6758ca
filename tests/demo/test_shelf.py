"""What the page's visitors keep is bounded: whoever was away longest loses it, and is told."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fsdino.demo.shelf import Shelf
from fsdino.demo.studio import Card, Session
from tests.demo.test_studio import filled, studio


def visitor(images: int = 2) -> Session:
    return Session(cards=[Card(f"{i}", np.zeros((100, 100, 3), np.uint8)) for i in range(images)])


def test_room_is_made_by_those_who_were_away_longest() -> None:
    shelf, visitors = Shelf(most=150_000), [visitor() for _ in range(3)]
    assert visitors[0].held == 60_000
    for one in (visitors[0], visitors[1], visitors[0], visitors[2]):
        shelf.used(one)
    assert [one.held for one in visitors] == [60_000, 0, 60_000]
    assert [one.emptied for one in visitors] == [False, True, False]
    large = visitor(images=9)
    shelf.used(large)  # more than all may have: the one who is here keeps it
    assert [one.held for one in (*visitors, large)] == [0, 0, 0, 270_000]


def test_visitors_who_are_gone_take_no_room() -> None:
    shelf, first = Shelf(most=150_000), visitor()
    shelf.used(first)
    shelf.used(visitor(images=3))
    shelf.used(visitor())
    assert first.held == 60_000


def test_a_session_counts_all_of_its_pixels_and_keeps_no_probabilities() -> None:
    desk = studio()
    session = filled(desk)
    before = session.held
    desk.search(session, ["small"])
    masks = [card.found["small"].mask for card in session.cards]
    assert session.held == before + sum(mask.size for mask in masks)
    assert all(card.found["small"].probs.size == 0 for card in session.cards)


def test_the_page_refuses_what_is_too_much_and_says_what_was_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    from fsdino.demo import page

    said: list[str] = []
    monkeypatch.setattr(page.gr, "Warning", lambda text, **_: said.append(text))
    monkeypatch.setattr(page, "opened", lambda path, name: (name, np.zeros((100, 100, 3), np.uint8)))
    monkeypatch.setattr(page, "VISITOR_BYTES", 100_000)
    desk, session = page.Desk(studio()), Session()
    desk.shelf = Shelf(most=0)

    def take(session: Any, count: int) -> Any:
        files = [{"path": "a", "name": f"{i}.png"} for i in range(count)]
        return desk.take(session, SimpleNamespace(_data={"files": files}))

    take(session, 4)
    assert len(session.cards) == 2 and len(said) == 1 and "most that this page keeps" in said[0]
    take(Session(), 1)
    assert session.cards == [] and len(said) == 1
    take(session, 1)
    assert len(session.cards) == 1 and "were put away" in said[1]


def test_without_the_last_example_there_is_no_answer() -> None:
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    from fsdino.demo.page import Desk

    inner = studio()
    desk, session = Desk(inner), filled(inner)
    inner.search(session, ["small"])
    desk.forget(session, SimpleNamespace(_data={"key": session.examples[0].key}))
    assert session.examples == [] and all(card.found == {} for card in session.cards)
