"""A small model, references and images to search, as `fsdino predict` is given them."""

from pathlib import Path

import pytest

from fsdino.base.storage import save
from tests.small import small_segmenter, write_image, write_references


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(small_segmenter(), tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="session")
def support_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_references(tmp_path_factory.mktemp("refs"), {"cat": 2, "dog": 1})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, name in enumerate(("a.jpg", "b.png", "deep/c.jpg")):
        write_image(tmp_path / "photos" / name, 50 + i, 70, seed=20 + i)
    return tmp_path / "photos"
