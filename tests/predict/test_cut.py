"""A class's own cut: found by its references, kept in its memory, obeyed at every door."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fsdino.annotate.lessons import Lessons, Teaching
from fsdino.base.reference import Reference
from fsdino.base.registry import build
from fsdino.base.result import Segmentation
from fsdino.base.storage import save
from fsdino.cli import main
from fsdino.predict.cut import cut_of, with_cuts
from fsdino.predict.engines.choice import EngineChoice
from fsdino.predict.finish import Finish
from fsdino.predict.memory_file import load_memory, save_memory
from fsdino.predict.support import read_support
from fsdino.serve.service import Question, Runner
from fsdino.serve.store import MemoryStore
from fsdino.serve.uploads import Upload
from tests.annotate.colour_engine import ColourEngine, picture, square
from tests.predict.test_finish import run
from tests.serve.small import LIMITS
from tests.small import METHOD_ARGS, refuses, scene, write_references

RED = (250, 10, 10)


class Timid(ColourEngine):
    """Gives the object 0.3 and what is not the object 0.1; counts what it is shown."""

    name = "chain"

    def find(self, joined: Sequence[Any], image: np.ndarray) -> Iterator[Segmentation]:
        for found in super().find(joined, image):
            probs = np.where(found.mask, np.float32(0.3), np.float32(0.1))
            yield Segmentation(probs > 0.5, probs, 0.8, True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain, references of a cat, and a photograph."""
    root = tmp_path_factory.mktemp("cut")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(build("chain", **METHOD_ARGS["chain"]), root / "model")
    write_references(root / "refs", {"cat": 1})
    write_references(root / "three", {"cat": 3})
    (root / "photos").mkdir()
    Image.fromarray(scene(50, 70, seed=4)[0]).save(root / "photos" / "a.png")
    return root


def shown(count: int) -> list[Reference]:
    places = [(4, 6), (14, 20), (2, 2)][:count]
    return [Reference(picture(RED, *at), mask=square(*at), name=str(at)) for at in places]


def test_references_find_the_cut_between_object_and_rest() -> None:
    engine = Timid()
    found = cut_of(engine, shown(3))
    assert found is not None and 0 < found < 1
    # Each is searched with the others, never with itself.
    assert engine.remembered == [
        [str(a), str(b)] for a, b in [((14, 20), (2, 2)), ((4, 6), (2, 2)), ((4, 6), (14, 20))]
    ]
    (one,) = with_cuts(engine.find([engine.remember(shown(3))], picture(RED, 9, 3)), [found], 0.5)
    assert np.array_equal(one.mask, square(9, 3))
    assert cut_of(Timid(), shown(2)) is None
    hinted = [*shown(2), Reference(picture(RED), box=(6, 4, 13, 11)), Reference(*_negative(), negative=True)]
    assert cut_of(Timid(), hinted) is None
    refuses("does not cut relative to each image", cut_of, ColourEngine(), shown(3))


def _negative() -> tuple[np.ndarray, np.ndarray]:
    return picture((10, 250, 10)), square()


def test_a_moved_result_is_cut_where_its_image_says() -> None:
    probs = np.linspace(0.1, 0.6, 12, dtype=np.float32).reshape(3, 4)
    given = [Segmentation(probs > 0.5, probs, 0.8, there) for there in (True, True, False)]
    moved, same, absent = with_cuts(given, [0.4, None, 0.4], 0.3)
    logits = np.log(probs / (1 - probs))
    assert np.array_equal(moved.mask, logits > logits.mean() + 0.4 * (logits.max() - logits.mean()))
    assert np.array_equal(moved.mask, moved.probs > 0.3) and (np.diff(moved.probs.ravel()) > 0).all()
    assert same is given[1] and not absent.mask.any()


def test_every_door_obeys_what_a_memory_knows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, gate, memory = ["--threshold", "references"], ["--min-presence", "0"], place / "cat.fsmem"
    direct = run(place, "direct", "--support", str(place / "three"), *asked, *gate)
    assert "cuts: cat 0." in capsys.readouterr().out
    common = ["--support", str(place / "three"), "--model", str(place / "model"), "--out", str(memory)]
    assert main(["remember", *common, *asked]) == 0
    saved = load_memory(memory)
    told = json.loads((direct / "progress.jsonl").read_text().splitlines()[0])["settings"]
    assert saved.cut is not None and told["cuts"] == {"cat": saved.cut}

    kept = run(place, "kept", "--support", str(memory), *gate)
    other = run(place, "other", "--support", str(memory), *gate, "--threshold", "0.05")
    masks = [np.asarray(Image.open(out / "labels" / "a.png")) > 0 for out in (direct, kept, other)]
    assert np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])
    assert "cuts" not in (other / "progress.jsonl").read_text()

    engine = EngineChoice(str(place / "model")).open()
    image = np.asarray(Image.open(place / "photos" / "a.png"))
    for limit, mask in ((None, masks[0]), (0.05, masks[2])):
        lessons = Lessons(engine, read_support(str(memory)), Teaching(threshold=limit, min_presence=0.0))
        assert np.array_equal(lessons.find(image).classes["cat"].mask, mask)
        runner = Runner("small", engine, MemoryStore(place / f"memories{limit}", 9), LIMITS)
        question = Question(runner.store.add([saved]), limit, 0.0, "json", Finish(min_presence=0.0))
        with (place / "photos" / "a.png").open("rb") as file:
            (answer,), _ = runner.find(question, [Upload(file, "a.png")], float("inf"))
        assert answer["found"][0]["area"] == mask.sum()
        runner.store.close()
    few = ["--support", str(place / "refs"), "--model", str(place / "model"), "--out", str(place / "few.fsmem")]
    assert main(["remember", *few, *asked]) == 0 and load_memory(place / "few.fsmem").cut is None
    assert "cat has fewer than 3 references" in capsys.readouterr().err
    saved.cut = 1.5
    refuses("is damaged", load_memory, save_memory(saved, place / "wrong.fsmem"))
