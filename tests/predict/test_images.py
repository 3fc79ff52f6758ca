"""Which images `fsdino predict` finds, what it calls them, and videos whose headers say nothing or too much."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fsdino.predict import EngineChoice, images, predict
from fsdino.predict.images import EndOfVideo, find_images, read_ahead
from tests.small import write_image


def names(where: str | Path, **options: Any) -> list[str]:
    return [item.name for item in find_images(str(where), **options)]


def test_images_are_found_by_folder_glob_and_name(photos: Path) -> None:
    (photos / "notes.txt").write_text("no image")
    (photos / "._a.jpg").write_bytes(b"a Mac's companion file")
    everything = ["a.jpg", "b.png", "deep/c.jpg"]
    assert names(photos) == everything
    assert names(f"{photos}/**/*.*") == everything
    assert names(f"{photos}/*.jpg") == ["a.jpg"]
    assert names(photos / "b.png") == ["b.png"]
    assert names(photos, exclude=photos / "deep") == everything[:2]


def test_names_behind_a_glob_do_not_change_with_what_is_found(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a" / "1.jpg")
    assert names(f"{tmp_path}/photos/*/*.jpg") == names(f"{tmp_path}/photos/**/*.jpg") == ["a/1.jpg"]
    write_image(tmp_path / "photos" / "b" / "1.jpg")
    assert names(f"{tmp_path}/photos/*/*.jpg") == ["a/1.jpg", "b/1.jpg"]
    assert names(f"{tmp_path}/ph*/a/1.jpg") == ["photos/a/1.jpg"]


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    for name in ("a.jpg", ".b.jpg", ".ipynb_checkpoints/c.jpg", "deep/.thumbnails/d.jpg"):
        write_image(tmp_path / ".cache" / name)
    assert names(tmp_path / ".cache") == ["a.jpg"], "only what is hidden below the folder"


def test_an_edited_image_has_another_source(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg")
    (before,) = find_images(str(path))
    assert before.source == (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
    os.utime(path, ns=(0, 1))
    assert find_images(str(path))[0].source != before.source


@pytest.mark.parametrize("out", [".", "photos"])
def test_results_around_the_images_are_named(tmp_path: Path, out: str) -> None:
    write_image(tmp_path / "photos" / "a.jpg")
    with pytest.raises(ValueError, match=r"all images at '.*photos' lie in the folder of the results, .* choose an"):
        find_images(str(tmp_path / "photos"), exclude=tmp_path / out)


def test_reading_ahead_keeps_order_and_hands_errors_on(photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"nothing")
    results = list(read_ahead(find_images(str(photos)), ahead=1))
    assert [item.name for item, _ in results] == ["a.jpg", "b.png", "broken.jpg", "deep/c.jpg"]
    assert [isinstance(image, Exception) for _, image in results] == [False, False, True, False]


def write_video(path: Path, frames: int = 5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))  # type: ignore[attr-defined]
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def test_video_frames_come_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi")
    items = find_images(str(tmp_path), frame_step=2)
    assert [item.name for item in items] == ["clip.avi/000000", "clip.avi/000002", "clip.avi/000004"]
    brightness = [float(np.mean(image)) for _, image in read_ahead(items)]  # type: ignore[arg-type]
    np.testing.assert_allclose(brightness, [0, 80, 160], atol=4)
    assert float(items[0].read().mean()) < 4, "going back works too"


class Film:
    """Stands for OpenCV's reader: five frames, whatever the header says."""

    header = 5.0
    opened = 0

    def __init__(self, path: str) -> None:
        self.at, Film.opened = -1, Film.opened + 1

    def get(self, _: int) -> float:
        return self.header

    def grab(self) -> bool:
        self.at += 1
        return self.at < 5

    def read(self) -> tuple[bool, np.ndarray | None]:
        found = self.grab()
        return found, np.full((4, 6, 3), 10 * self.at, np.uint8) if found else None

    def release(self) -> None:
        Film.opened -= 1


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(images.cv2, "VideoCapture", Film)
    Film.opened = 0
    (tmp_path / "clip.mp4").write_bytes(b"")
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("header", [0.0, -9.2e18, float("nan"), 1e15])
def test_frames_are_counted_where_the_header_does_not(film, monkeypatch, header) -> None:
    monkeypatch.setattr(Film, "header", header)
    assert names(film, frame_step=2) == ["clip.mp4/000000", "clip.mp4/000002", "clip.mp4/000004"]


def test_the_end_of_a_video_is_no_error(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Film, "header", 8.0)
    found = [image for _, image in read_ahead(find_images(str(film)))]
    assert [int(image[0, 0, 0]) for image in found[:5]] == [0, 10, 20, 30, 40]  # type: ignore[index]
    assert all(isinstance(image, EndOfVideo) for image in found[5:]) and len(found) == 8


@pytest.mark.parametrize("header", [5.0, 8.0])
def test_a_video_is_closed_after_its_last_frame(film: Path, monkeypatch: pytest.MonkeyPatch, header: float) -> None:
    monkeypatch.setattr(Film, "header", header)
    items = find_images(str(film), frame_step=2)
    assert Film.opened == 0
    for item in items[:2]:
        item.read()
        assert Film.opened == 1
    items[2].read()
    if header > 5:
        with pytest.raises(EndOfVideo):
            items[3].read()
    assert Film.opened == 0


def test_a_short_video_goes_through_predict(model_dir, support_dir, tmp_path, monkeypatch, capsys) -> None:
    video = write_video(tmp_path / "clip.avi", frames=3)
    monkeypatch.setattr(images._Video, "_count", lambda self: 6)
    assert predict(str(support_dir), str(video), str(tmp_path / "out"), EngineChoice(model_dir)) == 0
    assert len(list((tmp_path / "out" / "labels" / "clip.avi").iterdir())) == 3
    assert capsys.readouterr().out.startswith("3 of 3 images")


def test_a_video_whose_name_is_no_text_is_listed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.avi")).write_bytes(b"x")
    ((_, error),) = read_ahead(find_images(str(tmp_path)))
    assert isinstance(error, ValueError) and "rename the file" in str(error)
