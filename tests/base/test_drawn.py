"""The caution about images that the bundled model was not made for: on photographs, once, and nowhere else."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.common import RESULTS
from fsdino.base.bundled import bundled_fingerprint
from fsdino.base.drawn import CUT, caution, look_drawn, shared_detail
from fsdino.base.storage import load
from fsdino.data.world.index import SyntheticWorld
from fsdino.demo.studio import Card, Session, Studio
from fsdino.predict.command import predict, remember
from fsdino.predict.engines.choice import EngineChoice
from tests.small import small_segmenter


def lit(seed: int, height: int = 160, width: int = 200) -> np.ndarray:
    """What the detail of a photograph is: light and shade over colours that change slowly."""
    rng = np.random.default_rng(seed)
    light = cv2.GaussianBlur(rng.uniform(0, 1, (height, width, 1)), (0, 0), 2)[..., None]
    light = 0.5 + (light - light.mean()) / (6 * light.std())
    colours = cv2.resize(rng.uniform(0.4, 1.0, (3, 3, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 2, (height, width, 3))
    return np.clip(255 * light * colours + noise, 0, 255).astype(np.uint8)


def painted(count: int) -> list[np.ndarray]:
    world = SyntheticWorld("novel", 2)
    return [world.load_image(world.images(class_id)[0]) for class_id in list(world.class_names)[:count]]


def test_light_is_shared_by_the_colours_and_paint_is_not() -> None:
    assert min(shared_detail(lit(seed)) for seed in range(5)) > 0.8
    assert np.mean([shared_detail(image) for image in painted(10)]) < 0.4
    grey = np.repeat(lit(1)[..., :1], 3, axis=2)
    assert shared_detail(grey) == pytest.approx(1.0)


def test_what_shows_nothing_tells_nothing() -> None:
    assert shared_detail(np.full((30, 40, 3), 90, np.uint8)) == -1.0
    assert shared_detail(lit(0)[:1, :1]) == -1.0
    assert look_drawn([])


def test_the_middle_of_the_first_few_decides() -> None:
    photographs, drawn = [lit(seed) for seed in range(4)], painted(6)
    assert look_drawn(drawn) and not look_drawn(photographs)
    assert look_drawn([*drawn[:3], *photographs[:2]]) and not look_drawn([*photographs[:3], *drawn])


def test_only_the_bundled_model_needs_it() -> None:
    assert caution(small_segmenter().fingerprint(), [lit(0)]) is None
    assert load("tiny").fingerprint() == bundled_fingerprint("tiny")
    assert caution(bundled_fingerprint("tiny"), painted(3)) is None
    assert "'tiny' knows drawn shapes and textures alone" in (caution(bundled_fingerprint("tiny"), [lit(0)]) or "")


def test_predict_and_remember_say_it_once(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "refs" / "thing").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    mask = np.zeros((160, 200), np.uint8)
    mask[40:100, 50:120] = 255
    Image.fromarray(lit(0)).save(tmp_path / "refs" / "thing" / "a.png")
    Image.fromarray(mask).save(tmp_path / "refs" / "thing" / "a_mask.png")
    for seed in (1, 2):
        Image.fromarray(lit(seed)).save(tmp_path / "photos" / f"{seed}.png")
    refs, photos, tiny = str(tmp_path / "refs"), str(tmp_path / "photos"), EngineChoice("tiny")
    assert predict(refs, photos, str(tmp_path / "out"), tiny, formats="labels") == 0
    assert capsys.readouterr().err.count("careful: the bundled model 'tiny'") == 1
    remember(refs, str(tmp_path / "thing.fsmem"), tiny)
    assert capsys.readouterr().err.count("careful: the bundled model 'tiny'") == 1
    Image.fromarray(painted(1)[0]).save(tmp_path / "drawn.png")
    assert predict(refs, str(tmp_path / "drawn.png"), str(tmp_path / "other"), tiny, formats="labels") == 0
    assert "careful" not in capsys.readouterr().err


def test_the_page_says_it_once_a_visitor() -> None:
    desk = Studio(load("tiny"), "tiny", {})
    session = Session(cards=[Card("drawn", painted(1)[0])])
    assert desk.caution(session) is None
    session.cards = [Card("photo", lit(3))]
    assert "photographs" in (desk.caution(session) or "") and desk.caution(session) is None


def test_the_cut_is_the_one_that_was_measured() -> None:
    rows = pd.read_csv(RESULTS / "drawn.csv")
    assert set(rows["cut"]) == {CUT} and set(rows["best cut of the first halves"]) == {CUT}
