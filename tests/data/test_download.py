"""Data sets by name over HTTP: broken lines, lying servers, wrong digests and hostile archives."""

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fsdino.cli import main
from fsdino.data import archives, transfer
from fsdino.data.archives import unpack
from fsdino.data.catalog import DataSet, Source, data_sets
from fsdino.data.download import LOCK_FILE, by_hand, download
from fsdino.data.transfer import Transfer
from tests.small import refuses


@dataclass
class Served:
    """What the server has, and how it misbehaves."""

    content: bytes = b""
    tag: str = '"one"'
    drop_after: int = 0  # bytes of an answer after which the line breaks; 0: never
    says_more: int = 0  # bytes promised and not sent
    ranges: bool = True
    status: int = 200
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server of one file on this machine."""
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append(wanted)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = int(wanted[6:-1]) if wanted and state.ranges and self.headers["If-Range"] == state.tag else 0
            if start >= len(state.content) > 0 and start:
                self.send_error(416)
                return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(body) + state.says_more))
            self.send_header("ETag", state.tag)
            self.end_headers()
            self.wfile.write(body[: state.drop_after] if state.drop_after else body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/set.zip"
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    yield state
    server.shutdown()
    server.server_close()


def zipped(**files: str) -> bytes:
    """A zip file; in the names "__" stands for "/"."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return buffer.getvalue()


def described(served: Served, **options: Any) -> DataSet:
    """A data set with the served file as its only source."""
    source = Source(served.url, **{"gives": "images/*.jpg", "megabytes": 1, **options})
    return DataSet("made", "a made set", dict, sources=(source,), licence="public domain")


GOOD = zipped(images__1="no", **{"images__1.jpg": "one", "images__2.jpg": "two" * 5000})


def test_a_whole_set_is_fetched_unpacked_and_remembered(served: Served, tmp_path: Path, capsys) -> None:
    served.content = GOOD
    (line,) = download(described(served), tmp_path / "root", accepted=True)
    assert "3 files, no digest is published: its sha256" in line
    assert "licence: public domain" in capsys.readouterr().out
    assert (tmp_path / "root/images/2.jpg").read_text() == "two" * 5000
    noted = json.loads((tmp_path / "root" / LOCK_FILE).read_text())[served.url]
    assert noted["sha256"] == hashlib.sha256(GOOD).hexdigest() and noted["bytes"] == len(GOOD)
    kept = {path.name for path in (tmp_path / "root").iterdir()} - {".downloads.lock"}
    assert kept == {"images", LOCK_FILE}, "no archive, no part, no tag, no folder of unpacking"
    served.asked.clear()
    assert "is there already" in download(described(served), tmp_path / "root", accepted=True)[0]
    assert served.asked == []


def test_a_line_that_drops_goes_on_where_it_broke(served: Served, tmp_path: Path) -> None:
    served.content, served.drop_after = GOOD, 4000
    download(described(served), tmp_path, accepted=True)
    assert (tmp_path / "images/1.jpg").read_text() == "one"
    assert served.asked[:3] == ["", "bytes=4000-", "bytes=8000-"]


def test_a_killed_download_goes_on_and_another_version_starts_anew(served: Served, tmp_path: Path) -> None:
    served.content, part = GOOD, tmp_path / "set.zip.part"
    part.write_bytes(GOOD[:100])
    part.with_name("set.zip.part.tag").write_text('"one"')
    Transfer(served.url, part, 10**6).run()
    assert part.read_bytes() == GOOD and served.asked == ["bytes=100-"]
    served.content, served.tag = b"another" * 50, '"two"'
    part.write_bytes(GOOD[:100])
    Transfer(served.url, part, 10**6).run()
    assert part.read_bytes() == b"another" * 50, "two versions are never glued together"
    part.write_bytes(GOOD)  # longer than the file is now
    part.with_name("set.zip.part.tag").write_text('"two"')
    Transfer(served.url, part, 10**6).run()
    assert part.read_bytes() == b"another" * 50


def test_a_server_that_ignores_ranges_sends_all_again(served: Served, tmp_path: Path) -> None:
    served.content, served.ranges, part = GOOD, False, tmp_path / "set.zip.part"
    part.write_bytes(GOOD[:100])
    part.with_name("set.zip.part.tag").write_text('"one"')
    Transfer(served.url, part, 10**6).run()
    assert part.read_bytes() == GOOD


def test_servers_that_lie_about_the_length(served: Served, tmp_path: Path) -> None:
    served.content, served.says_more, served.ranges = GOOD, 50, False
    refuses("broke off.*the same command goes on", download, described(served), tmp_path, True, kind=OSError)
    assert not (tmp_path / "images").exists() and len(served.asked) < 20
    served.says_more = 10**12
    refuses(r"has 1,000,000,\d+,\d+ bytes or more, expected were at most", download, described(served), tmp_path, True,
            kind=OSError)  # fmt: skip
    served.says_more = -40  # cut, and nobody says so
    refuses("is no whole zip or tar file", download, described(served), tmp_path, True)
    served.says_more = 0
    assert download(described(served), tmp_path, True), "what was cut is not held against the whole file"


def test_a_server_without_the_file(served: Served, tmp_path: Path) -> None:
    served.status = 404
    refuses("the server says 404", download, described(served), tmp_path, True, kind=OSError)
    assert len(served.asked) == 1, "asking again gives nothing"
    served.status = 503
    refuses("the server says 503", download, described(served), tmp_path, True, kind=OSError)
    nowhere = served.url.replace("127.0.0.1", "127.0.0.1.invalid")
    refuses("cannot fetch", Transfer(nowhere, tmp_path / "x.part", 10).run, kind=OSError)


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_published_digests_are_held_to(served: Served, tmp_path: Path, kind: str) -> None:
    served.content = GOOD
    digest = f"{kind}:{hashlib.new(kind, GOOD).hexdigest()}"
    served.content = GOOD + b" "
    refuses(
        f"came with {kind} .* expected .* as published", download, described(served, checksum=digest), tmp_path, True
    )
    assert list(tmp_path.glob("set*")) == [] and not (tmp_path / "images").exists()
    served.content = GOOD
    assert f"{kind} as published" in download(described(served, checksum=digest), tmp_path, True)[0]


def test_without_one_the_first_download_is_held_to(served: Served, tmp_path: Path) -> None:
    served.content = GOOD
    download(described(served), tmp_path, True)
    shutil.rmtree(tmp_path / "images")
    served.content = zipped(**{"images__1.jpg": "changed"})
    refuses(r"expected .* as on 20\d\d-.*, see downloads.json", download, described(served), tmp_path, True)
    served.content = GOOD
    assert "as in the first download" in download(described(served), tmp_path, True)[0]
    shutil.rmtree(tmp_path / "images")
    (tmp_path / LOCK_FILE).write_text("[1]")
    refuses("is no record of downloads", download, described(served), tmp_path, True)


def link_zip() -> bytes:
    buffer, link = io.BytesIO(), zipfile.ZipInfo("images/1.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def tarred(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def bomb(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(count):
            archive.writestr(f"images/{i}.jpg", bytes(300_000))
    return buffer.getvalue()


HOSTILE = {
    "zip slip": (zipped(**{"..__out.txt": "x", "images__1.jpg": "y"}), "leads out of the folder"),
    "zip root": (zipped(**{"__tmp__out.txt": "x"}), "leads out of the folder"),
    "zip drive": (zipped(**{"C:\\out.txt": "x"}), "leads out of the folder"),
    "zip backslash": (zipped(**{"images\\..\\..\\out.txt": "x"}), "leads out of the folder"),
    "zip link": (link_zip(), "is a link or a device"),
    "zip bomb": (bomb(4), "unpacks to more than"),
    "tar slip": (tarred((entry("../out.txt"), b"x")), "leads out of the folder"),
    "tar root": (tarred((entry("/out.txt"), b"x")), "leads out of the folder"),
    "tar link": (tarred((entry("images/1.jpg"), b"y"), (entry("a", tarfile.SYMTYPE, "/etc"), b"")), "is a link"),
    "tar hard link": (tarred((entry("a", tarfile.LNKTYPE, "../../x"), b"")), "is a link or a device"),
    "tar device": (tarred((entry("images/1.jpg", tarfile.CHRTYPE), b"")), "is a link or a device"),
    "tar bomb": (tarred((entry("images/1.jpg"), bytes(1_000_000))), "unpacks to more than"),
    "page": (b"<html>sign in first</html>", "is no whole zip or tar file"),
    "cut": (tarred((entry("images/1.jpg"), GOOD), mode="w:gz")[:-300], "is no whole zip or tar file"),
    "empty": (b"", "is no whole zip or tar file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing_behind(tmp_path: Path, case: str) -> None:
    content, words = HOSTILE[case]
    folder, archive = tmp_path / "deep" / "root", tmp_path / "deep" / "archive"
    folder.mkdir(parents=True)
    archive.write_bytes(content)
    refuses(words, unpack, archive, folder, max_bytes=900_000)
    assert list(folder.iterdir()) == [] and {p.name for p in tmp_path.rglob("*")} == {"deep", "root", "archive"}


def test_good_archives_of_each_kind_and_the_count_of_files(tmp_path: Path) -> None:
    for number, content in enumerate([GOOD, *(tarred((entry("images/1.jpg"), b"y"), mode=m) for m in ("w", "w:gz"))]):
        (tmp_path / "archive").write_bytes(content)
        assert unpack(tmp_path / "archive", tmp_path / str(number)) >= 1
        assert (tmp_path / str(number) / "images/1.jpg").is_file()
    (tmp_path / "archive").write_bytes(GOOD)
    refuses("or 2 files", unpack, tmp_path / "archive", tmp_path / "few", max_files=2)


def test_the_disk_is_looked_at_before(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.content = GOOD
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    refuses("about 0.0 GB are needed .* 0.0 GB are free", download, described(served), tmp_path, True, kind=OSError)
    assert served.asked == []
    (tmp_path / "archive").write_bytes(GOOD)
    refuses("more to unpack", archives.unpack, tmp_path / "archive", tmp_path / "x", kind=OSError)


def test_the_licence_comes_first(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuses("is not accepted: read it, then add --accept-licence", download, described(served), tmp_path)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda _: "no")
    refuses("was not accepted: nothing was fetched", download, described(served), tmp_path)
    assert served.asked == []
    served.content = GOOD
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert download(described(served), tmp_path)


def test_sets_that_need_a_login_are_explained(tmp_path: Path, capsys) -> None:
    root = str(tmp_path)
    assert main(["data", "fss1000", "--download", "--root", root]) == 2
    assert (
        f"fewshot_data.zip from the FSS-1000 page (github.com/HKUSTCV/FSS-1000), so that '{root}/FSS-1000/*/1.jpg'"
        in (capsys.readouterr().err)
    )
    assert main(["data", "coco20i", "--download", "--root", root]) == 2
    told = capsys.readouterr()
    assert "CC BY 4.0" in told.out and "--accept-licence" in told.err
    assert main(["data", "coco20i", "--download"]) == 2 and "give --root DIR" in capsys.readouterr().err
    assert main(["data", "synthetic", "--download", "--root", root]) == 2


@pytest.mark.parametrize("name", sorted(data_sets()))
def test_what_is_offered_is_what_the_reader_looks_for(name: str, tmp_path: Path) -> None:
    described = data_sets()[name]
    assert bool(described.sources) == bool(described.licence)
    if not described.sources:
        assert len(by_hand(described, tmp_path)) > 40
        return
    for source in described.sources:
        places = [(Path(folder) / one.path).as_posix() for one in described.requirements for folder in one.folders]
        # SBD's folder is found by the reader and named in the optional requirement's words alone.
        sbd = source.gives.startswith("benchmark_RELEASE")
        assert sbd or any(Path(place).match(source.gives) or place == source.gives for place in places), source
        assert source.url.startswith("http") and source.megabytes > 0 and source.grows >= 1
        kind, _, digest = source.checksum.partition(":")
        assert not kind or len(digest) == {"md5": 32, "sha256": 64}[kind]
