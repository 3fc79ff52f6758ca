"""CVAT: the function that its own command line runs, and the command that learns from a task.

CVAT's server needs docker. Its SDK and its command line are the real ones here; the server is a fake of the documented
part of its API (`fake_cvat`).
"""

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cvat_sdk", reason="cvat-sdk is not installed: pip install fsdino[annotate]")

from cvat_sdk import auto_annotation as cvataa
from cvat_sdk.core.client import Config
from cvat_sdk.masks import decode_mask

from fsdino.annotate.cvat import create
from fsdino.annotate.cvat.function import shapes
from fsdino.annotate.cvat.task import cvat
from fsdino.annotate.lessons import Teaching
from fsdino.annotate.outlines import filled
from fsdino.base.result import LabelMap
from fsdino.cli import main
from tests.annotate import world
from tests.annotate.colour_engine import ColourEngine, HintedEngine, picture, square
from tests.annotate.fake_cvat import TASK, TOKEN, FakeCvat, mask_shape, shape
from tests.annotate.fake_label_studio import serving
from tests.small import refuses

RED = (250, 10, 10)
LABELS = {"thing": "any", "outlined": "polygon", "boxed": "rectangle", "not thing": "any", "named": "tag"}


class Chosen:
    """In place of an `EngineChoice`."""

    def __init__(self, engine: ColourEngine) -> None:
        self.engine = engine

    def open(self) -> ColourEngine:
        return self.engine


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCvat]:
    """Frame 0 is drawn; frames 1 and 2 are not."""
    # The SDK keeps a copy of a task under the server's address, and an address of an earlier test comes back.
    monkeypatch.setattr(Config, "__init__", partialmethod(Config.__init__, cache_dir=tmp_path))
    monkeypatch.delenv("CVAT_ACCESS_TOKEN", raising=False)
    fake = FakeCvat([picture(RED), picture(RED, 14, 20), picture(RED, 0, 0)], LABELS)
    fake.shapes.append(mask_shape(1, 0, 1, square()))
    with serving(fake.app()) as fake.url:
        yield fake


def run(server: FakeCvat, engine: ColourEngine | None = None, **options: Any) -> int:
    chosen: Any = Chosen(engine or ColourEngine())
    return cvat(TASK, chosen, Teaching(), server.url, TOKEN, **options)


def mask_of(one: dict[str, Any], size: tuple[int, int] = (24, 32)) -> np.ndarray:
    return decode_mask(one["points"], image_width=size[1], image_height=size[0])


def test_frames_on_which_nothing_is_drawn_are_annotated(server: FakeCvat, capsys: pytest.CaptureFixture) -> None:
    assert run(server) == 0
    made = server.shapes[1:]
    assert [(one["frame"], one["label_id"], one["type"], one["source"]) for one in made] == [
        (1, 1, "mask", "auto"),
        (2, 1, "mask", "auto"),
    ]
    assert (mask_of(made[0]) == square(14, 20)).all() and made[0]["score"] == 0.8
    assert "2 of 2 frames searched, learnt from 1 drawn ones" in capsys.readouterr().out


def test_a_second_run_goes_on_and_learns_from_people_alone(server: FakeCvat) -> None:
    server.refuse_uploads_after = 1
    refuses("answers 503 Service Unavailable", run, server, kind=OSError)
    server.refuse_uploads_after = None
    engine = ColourEngine()
    assert run(server, engine) == 0
    assert [one["frame"] for one in server.shapes] == [0, 1, 2]
    assert engine.remembered == [["frame frame_0.png (thing)"]]
    run(server)
    assert len(server.shapes) == 3


def test_a_label_is_answered_in_its_kind(server: FakeCvat) -> None:
    x0, y0 = 6.0, 4.0
    server.shapes = [
        shape(1, 0, 2, "polygon", [x0, y0, x0 + 8, y0, x0 + 8, y0 + 8, x0, y0 + 8]),
        shape(2, 0, 3, "rectangle", [x0, y0, x0 + 8, y0 + 8]),
    ]
    server.frames = server.frames[:2]
    assert run(server, HintedEngine()) == 0
    found = {one["label_id"]: one for one in server.shapes[2:]}
    # Two classes of one colour: the first takes the pixels.
    assert set(found) == {3} and found[3]["type"] == "rectangle" and found[3]["points"] == [20, 14, 28, 22]
    server.shapes = [one for one in server.shapes[:2] if one["type"] == "polygon"]
    server.updates += 1
    assert run(server) == 0
    polygon = server.shapes[1]
    assert polygon["type"] == "polygon" and world.iou(filled(polygon["points"], (24, 32)), square(14, 20)) > 0.98


def test_points_and_what_is_not_meant(server: FakeCvat) -> None:
    server.shapes = [shape(1, 0, 1, "points", [10, 8]), mask_shape(2, 0, 4, square(14, 20))]
    server.frames = server.frames[:2]
    assert run(server, HintedEngine()) == 0
    assert [(one["frame"], one["label_id"]) for one in server.shapes[2:]] == [(1, 1)]


def test_an_ellipse_is_learnt(server: FakeCvat) -> None:
    server.shapes = [shape(1, 0, 1, "ellipse", [10, 8, 14, 4])]
    assert run(server) == 0 and (mask_of(server.shapes[1]) == square(14, 20)).all()


def test_a_broken_frame_is_listed_at_the_end(server: FakeCvat, capsys: pytest.CaptureFixture) -> None:
    server.frames[1] = None
    assert run(server) == 1
    assert "frame_1.png: cannot identify image file" in capsys.readouterr().err
    assert [one["frame"] for one in server.shapes] == [0, 2]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["12"], "CVAT asks who you are"),
        (["12", "--token", "wrong"], "answers 401 Unauthorized; check the token"),
        (["13", "--token", TOKEN], "answers 404 Not Found; check the number of the task"),
        (["12", "--token", TOKEN, "--url", "http://127.0.0.1:9"], "cannot be used"),
        (["12", "--token", TOKEN, "--support", "/none"], "does not exist"),
        (["twelve", "--token", TOKEN], "--task"),
    ],
)
def test_bad_input_is_one_sentence(
    server: FakeCvat, capsys: pytest.CaptureFixture, given: list[str], words: str
) -> None:
    assert main(["cvat", *given, *([] if "--url" in given else ["--url", server.url])]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1] and len(server.shapes) == 1


def test_nothing_drawn_is_one_sentence(server: FakeCvat) -> None:
    server.shapes = []
    refuses("there is nothing to look for yet", run, server)


class Context:
    """What CVAT says of an image."""

    frame_name = "x.png"
    conf_threshold: float | None = None
    conv_mask_to_poly = False


def refs(folder: Path, count: int = 3) -> Path:
    """A folder of references of the embedded world."""
    (folder / "refs" / "thing").mkdir(parents=True)
    for k, (image, mask) in enumerate(world.pictures(count)):
        Image.fromarray(image).save(folder / "refs" / "thing" / f"{k}.jpg", quality=95)
        Image.fromarray(mask).save(folder / "refs" / "thing" / f"{k}.png")
    return folder / "refs"


def test_the_function_by_itself(tmp_path: Path) -> None:
    function = create(str(refs(tmp_path)))
    image, truth = world.pictures(4)[3]
    assert isinstance(function.spec, cvataa.DetectionFunctionSpec)
    assert [(label.name, label.type) for label in function.spec.labels] == [("thing", "mask")]
    context: Any = Context()
    [mask] = function.detect(context, Image.fromarray(image))
    assert world.iou(mask_of({"points": mask.points}, truth.shape), truth) > 0.6
    context.conv_mask_to_poly = True
    polygons = function.detect(context, Image.fromarray(image))
    drawn = np.any([filled(one.points, truth.shape) for one in polygons], axis=0)
    assert world.iou(drawn, mask_of({"points": mask.points}, truth.shape)) > 0.98
    context.conf_threshold = 0.9999
    assert function.detect(context, Image.fromarray(image)) == []


def test_parts_can_be_shapes_of_their_own() -> None:
    mask = square() | square(14, 20)
    found = LabelMap(mask.astype(np.uint8), mask.astype(np.float32), {"a": 0.5}, {"a": 0.9})
    assert len(shapes(found, {"a": (1, "mask")}, split_instances=True)) == 2
    assert len(shapes(found, {"a": (1, "mask")}, split_instances=False)) == 1
    assert shapes(found, {"b": (1, "mask")}, split_instances=False) == []


def test_cvats_own_command_line_runs_the_function(
    server: FakeCvat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = pytest.importorskip("cvat_cli.__main__", reason="cvat-cli is not installed: pip install fsdino[annotate]")
    image, truth = world.pictures(4)[3]
    server.frames, server.shapes, server.labels = [image], [], server.labels[:1]
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", TOKEN)
    command = ["--server-host", server.url, "task", "auto-annotate", str(TASK), "--function-module"]
    command += ["fsdino.annotate.cvat", "-p", f"support=str:{refs(tmp_path)}", "-p", "max_references=int:3"]
    assert not cli.main(command)
    [made] = server.shapes
    assert (made["label_id"], made["type"], made["frame"]) == (1, "mask", 0)
    assert world.iou(mask_of(made, truth.shape), truth) > 0.6
