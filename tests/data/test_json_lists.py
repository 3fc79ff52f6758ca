"""Large JSON files an entry at a time."""

import json
import tracemalloc

import pytest

from fsdino.data import json_lists as module
from fsdino.data.files import DataSetError
from fsdino.data.json_lists import json_at, json_lists
from fsdino.data.readers.coco import CocoIndex
from tests.data.small import HEIGHT, WIDTH, instance, photo, square, write_json

CONTENT = {
    "info": {"year": 2014, "said": [1, {"a": "ü"}]},
    "annotations": [{"id": i, "number": 10**i, "text": 'brackets ]}," and größe' * i} for i in range(9)],
    "empty": [],
    "images": [{"id": 1.5e3}, [], None, "é", 12345],
}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_those_of_the_whole_file_wherever_it_is_cut(tmp_path, monkeypatch, chunk, escaped, indent):
    monkeypatch.setattr(module, "CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(CONTENT, ensure_ascii=escaped, indent=indent) + "\n", encoding="utf-8")
    found = list(json_lists(file, ("images", "annotations", "empty")))
    assert [(key, value) for key, value, *_ in found] == [
        (key, value) for key in ("annotations", "images") for value in CONTENT[key]
    ]
    with file.open("rb") as opened:
        assert all(json_at(opened, start, end) == value for _, value, start, end in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected '{' at byte 0, found ''"),
        ("[]", "expected '{'"),
        ('{"a": [1, 2}', "expected ','"),
        ('{"a": [1, 2', "expected ','"),
        ('{"a": [tru]}', "Expecting value"),
        ('{"a": {"b": 1}}', r"expected '\['"),
        ('{"a": [], "a": []}', "it has 'a' twice"),
        ('{"a": []} x', "something stands behind its end"),
        ('{"a": [' + "[" * 100_000, "nested too deeply|Expecting value"),
        ('{"b": []}', "has no 'a': it is no COCO-format file"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataSetError, match=words):
        list(json_lists(tmp_path / "a.json", ("a",)))
    (tmp_path / "b.json").write_bytes(b'{"a": ["\xff"]}')
    with pytest.raises(DataSetError, match="utf-8"):
        list(json_lists(tmp_path / "b.json", ("a",)))


def test_annotations_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 14)
    count = 4000
    content = {
        # As in LVIS, the annotations stand first.
        "annotations": [instance(i, i % 50, 1 + i % 3, [square(5, 5, 30) * 9]) for i in range(count)],
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(50)],
        "categories": [{"id": c, "name": f"class{c}"} for c in (1, 2, 3)],
    }
    file = write_json(tmp_path / "instances.json", content)
    photo(tmp_path / "images/0.jpg")
    tracemalloc.start()
    index = CocoIndex(file, tmp_path / "images")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 60 * count and peak < file.stat().st_size / 2
    assert index.images(1) == sorted(f"{i}.jpg" for i in range(50)) and index.load_mask("7.jpg", 1).sum() == 900
    file.write_text("{}" * 400)
    with pytest.raises(DataSetError, match="it has changed since it was opened"):
        index.load_mask("0.jpg", 1)
