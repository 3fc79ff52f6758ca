"""Pictures of tasks: where they may come from, and how much of them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from fsdino.annotate.label_studio import pictures as module
from fsdino.annotate.label_studio.client import Studio
from fsdino.annotate.label_studio.pictures import Pictures
from tests.annotate.colour_engine import picture
from tests.annotate.fake_label_studio import LEGACY, PERSONAL, FakeLabelStudio, serving
from tests.small import refuses

IMAGE = picture((200, 30, 30))


@pytest.fixture(scope="module")
def studio() -> Iterator[FakeLabelStudio]:
    fake = FakeLabelStudio()
    fake.add_task(IMAGE)
    with serving(fake.app()) as fake.url:
        yield fake


def reader(studio: FakeLabelStudio, key: str = LEGACY, **options: Any) -> Pictures:
    return Pictures(Studio(studio.url, key).client, **options)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("key", [LEGACY, PERSONAL])
def test_uploads_come_with_either_token(studio: FakeLabelStudio, key: str) -> None:
    assert (reader(studio, key).read("/data/upload/1/1.png") == IMAGE).all()


def test_a_short_lived_token_is_renewed(studio: FakeLabelStudio) -> None:
    pictures = reader(studio, PERSONAL)
    pictures.read("/data/upload/1/1.png")
    studio.access = "changed meanwhile"
    assert pictures.read(f"{studio.url}/data/upload/1/1.png") is not None


def test_a_wrong_token_is_one_sentence(studio: FakeLabelStudio) -> None:
    refuses("answers 401", reader(studio, "wrong").read, "/data/upload/1/1.png", kind=OSError)


def test_local_files_are_read_from_their_folder_alone(studio: FakeLabelStudio, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    (folder / "a b").mkdir(parents=True)
    (folder / "a b" / "x.png").write_bytes(png(IMAGE))
    (tmp_path / "secret.png").write_bytes(png(IMAGE))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    pictures = reader(studio, files=folder)
    assert (pictures.read("/data/local-files/?d=a%20b/x.png") == IMAGE).all()
    for name in ("../secret.png", "/../secret.png", "link.png", "%2e%2e/secret.png", ""):
        refuses("is outside of the folder", pictures.read, f"/data/local-files/?d={name}")
    refuses("is not in the folder", pictures.read, "/data/local-files/?d=y.png", kind=OSError)
    refuses("does not exist", reader, studio, files=tmp_path / "none")


def test_other_hosts_must_be_named_and_get_no_token(studio: FakeLabelStudio) -> None:
    other = FakeLabelStudio()
    other.add_task(IMAGE)
    with serving(other.app()) as other.url:
        address, host = f"{other.url}/open/1.png", other.url.removeprefix("http://")
        refuses("are not read; name the host with --picture-hosts", reader(studio).read, address)
        for hosts in ([host], ["127.0.0.1"], ["*"]):
            assert (reader(studio, hosts=hosts).read(address) == IMAGE).all()
        assert other.asked_with == [None, None, None]
        # Sent on by Label Studio, as it does for pictures in cloud storage: the same rule, and again no token.
        moved = f"/moved?to={address}"
        refuses("are not read", reader(studio).read, moved)
        assert (reader(studio, hosts=["*"]).read(moved) == IMAGE).all()
        assert other.asked_with[3:] == [None]


def test_going_in_circles_ends(studio: FakeLabelStudio) -> None:
    circle = f"/moved?to={quote('/moved?to=' + quote('/moved?to=' + quote('/moved?to=/moved?to=/')))}"
    refuses("is sent on more than 3 times", reader(studio).read, circle, kind=OSError)


def test_a_file_is_taken_up_to_a_size(studio: FakeLabelStudio, tmp_path: Path) -> None:
    refuses("has more than 1 MB", reader(studio, max_mb=1).read, "/endless")
    (tmp_path / "x.png").write_bytes(b"\0" * (2**20 + 1))
    refuses("has more than 1 MB", reader(studio, max_mb=1, files=tmp_path).read, "/data/local-files/?d=x.png")


def test_an_image_is_taken_up_to_a_number_of_pixels(studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    refuses("has 32x24 pixels", reader(studio).read, "/data/upload/1/1.png")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket/x.png", "is not at an address of http or https"),
        ("file:///etc/passwd", "is not at an address of http or https"),
        ("http://[::1", "has no address that can be read"),
        ("", "has no picture's address"),
        (None, "has no picture's address"),
        (["a"], "has no picture's address"),
        ("/api/projects/1/", "cannot be read as an image"),
    ],
)
def test_other_addresses_are_one_sentence(studio: FakeLabelStudio, address: Any, words: str) -> None:
    refuses(words, reader(studio).read, address)


def test_what_is_not_there_is_one_sentence(studio: FakeLabelStudio) -> None:
    refuses("answers 404", reader(studio).read, "/data/upload/1/none.png", kind=OSError)
    refuses("cannot be fetched", reader(studio, hosts=["*"]).read, "http://127.0.0.1:9/x.png", kind=OSError)


def test_pictures_are_kept_up_to_a_size(studio: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = reader(studio)
    first = pictures.read("/data/upload/1/1.png")
    assert pictures.read("/data/upload/1/1.png") is first
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    pictures.read("/open/1.png")
    assert pictures.read("/data/upload/1/1.png") is not first
