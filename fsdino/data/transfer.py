"""One file over HTTP: it goes on where it broke off, and counts as there when it is whole and what it should be."""

from __future__ import annotations

import hashlib
import http.client
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

TRIES = 5  # in a row without a single new byte
TIMEOUT = 60.0  # seconds without an answer
PAUSE = 2.0  # seconds before the first new try, then twice as long each time
_BLOCK = 1 << 20


class TransferError(OSError):
    """A file that could not be fetched; what there is of it stays for the next try."""


@dataclass
class Transfer:
    """A file on its way.

    Args:
        part: where it grows; beside it lies the server's mark of the version, so that two are never glued together.
        max_bytes: a server that promises or sends more is not believed.
    """

    url: str
    part: Path
    max_bytes: int

    @property
    def have(self) -> int:
        """Bytes that are there."""
        return self.part.stat().st_size if self.part.is_file() else 0

    @property
    def _tag_file(self) -> Path:
        return self.part.with_name(f"{self.part.name}.tag")

    def run(self) -> None:
        """Fetch all that is missing.

        Raises:
            TransferError: if the server has no such file, or breaks off again and again.
        """
        failures, most = 0, self.have
        while True:
            try:
                if self._once():
                    return
                reason = "the connection broke off"
            except HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise self._failed(f"the server says {error.code} {error.reason}") from error
                reason = f"the server says {error.code} {error.reason}"
            except (URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            # A slow line that breaks off every minute gets there all the same; one that gives nothing is given up.
            failures, most = (0, self.have) if self.have > most else (failures + 1, most)
            if failures >= TRIES:
                raise self._failed(reason)
            time.sleep(PAUSE * 2**failures if failures else 0)

    def restart(self) -> None:
        """Forget what is there."""
        self.part.unlink(missing_ok=True)
        self._tag_file.unlink(missing_ok=True)

    def _once(self) -> bool:
        """One request; whether the file is whole after it."""
        have, tag = self.have, self._tag_file.read_text() if self._tag_file.is_file() else ""
        # Without a mark nobody knows whether the rest would fit to the beginning.
        if have and not tag:
            self.restart()
            have = 0
        # With If-Range a server whose file has changed sends all of the new one.
        headers = {"Range": f"bytes={have}-", "If-Range": tag} if have else {}
        request = Request(self.url, headers={"User-Agent": "fsdino", **headers})
        try:
            answer = urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code != 416:
                raise
            # "Nothing there any more": the beginning is longer than the file, so it is of another one.
            self.restart()
            return False
        with answer:
            start, total = _place(answer.status, answer.headers)
            if start != have:
                self.restart()
                if start != 0:
                    return False
            if total is not None and total > self.max_bytes:
                raise self._too_large(total)
            mark = answer.headers.get("ETag", "")
            # A weak ETag (W/...) does not promise equal bytes.
            self._tag_file.write_text(mark if mark.startswith('"') else answer.headers.get("Last-Modified", ""))
            self._receive(answer, total)
        return self.have > 0 and (total is None or self.have == total)

    def _receive(self, answer: Any, total: int | None) -> None:
        name = self.part.name.removesuffix(".part")
        options: dict[str, Any] = {"total": total, "initial": self.have, "unit": "B", "unit_scale": True, "desc": name}
        with self.part.open("ab") as file, tqdm(**options) as bar:
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
                if file.tell() > self.max_bytes:
                    raise self._too_large(file.tell())

    def _too_large(self, size: int) -> TransferError:
        self.restart()
        return TransferError(
            f"{self.url} has {size:,} bytes or more, expected were at most {self.max_bytes:,}: nothing was kept; its "
            "home has changed, fetch the file by hand."
        )

    def _failed(self, reason: str) -> TransferError:
        return TransferError(
            f"cannot fetch {self.url} ({reason}); {self.have:,} bytes are in '{self.part}': the same command goes on "
            "from there, or fetch the file by hand."
        )


def _place(status: int, headers: Mapping[str, str]) -> tuple[int, int | None]:
    """Where an answer's bytes begin in the file, and the size of the whole file where it is said."""
    if status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        # An answer that does not say where it begins fits nowhere.
        return (-1, None) if found is None else (int(found[1]), None if found[2] == "*" else int(found[2]))
    length = headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def file_digest(path: Path, kind: str) -> str:
    """A file's md5 or sha256 in lower-case hex."""
    # MD5 here tells a broken download from a whole one; it is what older data sets are published with.
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
