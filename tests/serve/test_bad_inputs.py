"""Bad input is one sentence with the right code, and never a 500."""

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from fsdino.predict.memory_file import SavedMemory, load_memory, save_memory
from tests.serve.small import files, png, square, taught

IMAGE, MASK = square()
FIVE = json.dumps([{"points": [[1, 1]]}] * 5)
LARGE = png(np.zeros((999, 999), np.uint8))
LOST = "0123456789abcdef"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it is huge."""
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def exif_of_nonsense() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(buffer, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    return buffer.getvalue()


REMEMBER: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "no image": ({}, {"class_name": "a"}, 422, "images: field required"),
    "text as image": ({"images": b"hello", "masks": MASK}, {}, 422, "'images 0.png' is not an image"),
    "cut image": ({"images": IMAGE[:90], "masks": MASK}, {}, 422, "'images 0.png' is not an image"),
    "bomb of 180 megapixels": ({"images": bomb(20_000, 9_000), "masks": MASK}, {}, 413, "far too many megapixels"),
    "bomb of 60 megapixels": ({"images": bomb(10_000, 6_000), "masks": MASK}, {}, 413, "has 60 megapixels, 1 are"),
    "large together": ({"images": [LARGE] * 5}, {"references": FIVE}, 413, "have 5 megapixels, 4 are"),
    "bomb as mask": ({"images": IMAGE, "masks": bomb(50_000, 50_000)}, {}, 413, "megapixels"),
    "mask of other size": ({"images": IMAGE, "masks": square(side=30)[1]}, {}, 422, "the mask is 40x30 pixels and the"),
    "empty mask": ({"images": IMAGE, "masks": png(np.zeros((40, 50), np.uint8))}, {}, 422, "has no foreground pixel"),
    "no mask": ({"images": IMAGE}, {}, 422, "mask 0 is asked for, 0 came"),
    "a mask too many": ({"images": IMAGE, "masks": [MASK, MASK]}, {}, 422, "mask 1 ('masks 1.png') belongs to no"),
    "no class": ({"images": IMAGE, "masks": MASK}, {"class_name": None}, 422, "a reference has no class"),
    "control characters": ({"images": IMAGE, "masks": MASK}, {"class_name": "a\nb"}, 422, "class_name: string should"),
    "long name": ({"images": IMAGE, "masks": MASK}, {"class_name": "a" * 101}, 422, "class_name: string should"),
    "path as model": ({"images": IMAGE, "masks": MASK}, {"model": "../../etc/passwd"}, 404, "there is no model"),
    "not JSON": ({"images": IMAGE}, {"references": "{"}, 422, "references: invalid JSON"),
    "JSON of another kind": ({"images": IMAGE}, {"references": '{"points": 1}'}, 422, "references: input should be a"),
    "nested JSON": ({"images": IMAGE}, {"references": "[" * 100_000}, 422, "references: invalid JSON: recursion limit"),
    "unknown hint": ({"images": IMAGE}, {"references": '[{"polygon": []}]'}, 422, "references: 0.polygon: extra"),
    "no reference": ({"images": IMAGE}, {"references": "[]"}, 422, "0 references came, 1 to 5 are taken"),
    "too many references": ({"images": IMAGE}, {"references": json.dumps([{"image": 0}] * 6)}, 422, "6 references"),
    "image that is not there": ({"images": IMAGE}, {"references": '[{"image": 7, "box": [1,1,5,5]}]'}, 422, "image 7"),
    "no hint": ({"images": IMAGE}, {"references": "[{}]"}, 422, "has neither a mask nor points"),
    "point outside": ({"images": IMAGE}, {"references": '[{"points": [[900, 1]]}]'}, 422, "(900, 1) is outside"),
    "NaN point": ({"images": IMAGE}, {"references": '[{"points": [[NaN, 1]]}]'}, 422, "0.points.0.0: input"),
    "huge point": ({"images": IMAGE}, {"references": '[{"points": [[1e300, 1]]}]'}, 422, "0.points.0.0: input"),
    "wrong label": ({"images": IMAGE}, {"references": '[{"points": [[9, 9]], "labels": [7]}]'}, 422, "labels are 1"),
    "box inside out": ({"images": IMAGE}, {"references": '[{"box": [9, 9, 2, 2]}]'}, 422, "expected a box"),
    "nothing but negatives": (
        {"images": IMAGE, "masks": MASK}, {"references": '[{"mask": 0, "negative": true}]'}, 422, "references alone",
    ),
    "hints for a model of masks": (
        {"images": IMAGE}, {"references": '[{"box": [5, 5, 20, 20]}]', "model": "other"}, 422, "answers to masks alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEMBER)
def test_references_that_cannot_be_used(name: str, client) -> None:
    sent, form, code, words = REMEMBER[name]
    data = {key: value for key, value in ({"class_name": "thing"} | form).items() if value is not None}
    answer = client.post("/v1/memories", files=files(**sent), data=data)
    assert answer.status_code == code and words in answer.json()["detail"], answer.text
    assert "\n" not in answer.json()["detail"] and len(answer.json()["detail"]) < 300
    assert client.get("/v1/memories").json() == {"memories": []}


SEGMENT: dict[str, tuple[dict[str, Any], list[Any], int, str]] = {
    "unknown memory": ({"memories": [LOST]}, [IMAGE], 404, f"there is no memory {LOST}"),
    "path as memory": ({"memories": ["../../../etc/passwd"]}, [IMAGE], 422, "memories.0: string should match"),
    "no memory": ({"memories": []}, [IMAGE], 422, "memories: field required"),
    "memory twice": ({"memories": ["ID", "ID"]}, [IMAGE], 422, "asked for twice"),
    "too many memories": ({"memories": ["ID", LOST, LOST]}, [IMAGE], 422, "3 memories came, up to 2"),
    "too many images": ({}, [IMAGE] * 4, 422, "4 images came, up to 3"),
    "NaN threshold": ({"threshold": "nan"}, [IMAGE], 422, "threshold: input should be less than 1"),
    "infinite threshold": ({"threshold": "inf"}, [IMAGE], 422, "threshold: input should be"),
    "threshold of 0": ({"threshold": "0"}, [IMAGE], 422, "threshold: input should be greater than 0"),
    "NaN score": ({"min_score": "nan"}, [IMAGE], 422, "min_score: input should be"),
    "unknown form": ({"output": "../json"}, [IMAGE], 422, "output: input should be 'json'"),
    "second image broken": ({}, [IMAGE, b"\xff\xd8\xff"], 422, "'images 1.png' is not an image"),
    "bomb": ({"output": "overlay"}, [bomb(20_000, 9_000)], 413, "megapixels, 1 are taken"),
    "body too large": ({}, [IMAGE, bytes(1_100_000)], 413, "the request is larger than 1 MB"),
}


@pytest.mark.parametrize("name", SEGMENT)
def test_questions_that_cannot_be_answered(name: str, client) -> None:
    form, images, code, words = SEGMENT[name]
    data, known = {"memories": ["ID"]} | form, taught(client)
    data["memories"] = [known if one == "ID" else one for one in data["memories"]]
    answer = client.post("/v1/segment", files=files(images=images), data=data)
    assert answer.status_code == code and words in answer.json()["detail"], answer.text


def test_an_image_with_broken_exif_is_an_image(client) -> None:
    memory = taught(client)
    answer = client.post("/v1/segment", files=files(images=exif_of_nonsense()), data={"memories": [memory]})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("metadata", "arrays", "words"),
    [
        (None, {}, "cannot be read"),
        ({"format": "other"}, {"a": np.zeros(1, np.float32)}, "is not a saved memory"),
        ({"format": "fsmem"}, {}, "has format version None"),
    ],
)
def test_files_that_are_no_memories(metadata, arrays, words, client) -> None:
    data = b"not a memory" if metadata is None else save(arrays, metadata)
    answer = client.post("/v1/memories/upload", files={"file": ("../../a.fsmem", data)})
    assert answer.status_code == 422 and words in answer.json()["detail"] and "/" not in answer.json()["detail"]


def test_a_memory_of_another_model_or_shape_or_with_nans_is_refused(client, service, tmp_path) -> None:
    good = load_memory(service.store.path(taught(client)))
    mine, narrow = good.fingerprint, {"prototypes": good.arrays["prototypes"][..., :3]}
    cases = [
        ("0" * 16, good.arrays, "which is not served here"),
        (mine, narrow, "not a memory that the model can use"),
        (mine, {"other": good.arrays["fg"]}, "not a memory that the model can use"),
        (mine, {n: np.full_like(a, np.nan) for n, a in good.arrays.items()}, "not a memory that the model can use"),
    ]
    for fingerprint, arrays, words in cases:
        path = save_memory(SavedMemory("x", fingerprint, arrays, good.thumbnail), tmp_path / "x.fsmem")
        answer = client.post("/v1/memories/upload", files={"file": path.read_bytes()})
        assert answer.status_code == 422 and words in answer.json()["detail"], answer.text
    answer = client.post("/v1/memories/upload", files={"file": bytes(900_000)})
    assert answer.status_code == 422
    assert len(client.get("/v1/memories").json()["memories"]) == 1


def test_the_folder_holds_so_many_memories(client) -> None:
    for _ in range(4):
        taught(client)
    answer = client.post("/v1/memories", files=files(images=IMAGE, masks=MASK), data={"class_name": "fifth"})
    assert answer.status_code == 409 and answer.json()["detail"].startswith("there are 4 memories, which is all")


@pytest.mark.parametrize("path", ["/v1/memories/..%2f..%2fetc", "/v1/memories/" + "0" * 17, "/v1/memories/%00"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_path_like_ids(path: str, method: str, client) -> None:
    assert client.request(method, path).status_code in (404, 422)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.99])
def test_truncated_forms(cut: float, client) -> None:
    parts = {"files": files(images=IMAGE, masks=MASK), "data": {"class_name": "a"}}
    whole = client.build_request("POST", "/v1/memories", **parts)
    body = whole.read()
    headers = {"content-type": whole.headers["content-type"]}
    answer = client.post("/v1/memories", content=body[: int(cut * len(body))], headers=headers)
    assert answer.status_code in (400, 422) and "\n" not in answer.json()["detail"], answer.text


def test_a_body_without_a_length_is_counted(client) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    start = b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n'
    endless = (start, *(bytes(100_000) for _ in range(20)))
    answer = client.post("/v1/segment", content=iter(endless), headers=headers)
    assert answer.status_code == 413 and answer.json()["detail"].startswith("the request is larger than 1 MB")


def test_no_such_address_or_method(client) -> None:
    assert client.get("/v2/models").json()["detail"].startswith("there is nothing at this address")
    assert client.put("/v1/models").status_code == 405
