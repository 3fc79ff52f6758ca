"""The pictures of tasks: from a folder of this machine, from Label Studio, and from hosts that are named."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import numpy as np
from PIL import Image

from fsdino.base.image import to_rgb
from fsdino.data.images import UNREADABLE

MAX_PIXELS = 80_000_000  # of one picture, before it is decoded
KEPT_BYTES = 2**28  # of pictures that are kept, since an annotation is used again when the next one comes
LOCAL_FILES = "/data/local-files/"
MAX_REDIRECTS = 3


class Pictures:
    """Reads the pictures of tasks by the addresses that stand in them.

    Args:
        client: reaches Label Studio; its base address is the only one that is sent the token.
        files: the folder that Label Studio serves as local files, where this machine has it as well; None: all come
            through Label Studio.
        hosts: other hosts that pictures may come from, as "images.example.org" or "example.org:8000"; "*" is any.
        max_mb: largest file that is taken, in megabytes.
    """

    def __init__(
        self, client: httpx.Client, files: str | Path | None = None, hosts: Iterable[str] = (), max_mb: int = 50
    ) -> None:
        if files is not None and not Path(files).is_dir():
            raise ValueError(f"the folder '{files}' does not exist; give the one that Label Studio serves.")
        self.client, self.max_bytes, self.hosts = client, max_mb * 2**20, frozenset(hosts)
        self.files = None if files is None else Path(files).resolve()
        # For pictures of others: it knows no token, so it can send none.
        self._others = httpx.Client(timeout=client.timeout, headers={"User-Agent": "fsdino"})
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, address: str) -> np.ndarray:
        """The picture (H, W, 3) uint8 at an address.

        Raises:
            ValueError: if it may not be read, is too large, or is not a picture.
            OSError: if it cannot be reached.
        """
        if not isinstance(address, str) or not address:
            raise ValueError("the task has no picture's address; check the value of the Image tag.")
        with self._lock:
            if address in self._kept:
                self._kept.move_to_end(address)
                return self._kept[address]
        image = self._decoded(self._bytes(address), address)
        with self._lock:
            self._kept[address] = image
            # The last one stays however large it is: it is about to be used.
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return image

    def _bytes(self, address: str) -> bytes:
        try:
            parts, _ = urlsplit(address), httpx.URL(address)
        except (ValueError, httpx.InvalidURL) as error:
            raise ValueError(f"picture '{_short(address)}' has no address that can be read ({error}).") from error
        if self.files is not None and parts.path == LOCAL_FILES and self._is_studio(address):
            return self._local(self.files, unquote(parse_qs(parts.query).get("d", [""])[0]))
        return self._fetched(address)

    def _local(self, folder: Path, name: str) -> bytes:
        # Resolved before it is compared: ".." and links lead out of a folder without looking like it.
        path = (folder / name.lstrip("/")).resolve()
        if folder not in path.parents:
            raise ValueError(f"picture '{name}' is outside of the folder '{folder}'; only what lies in it is read.")
        if not path.is_file():
            raise FileNotFoundError(f"picture '{name}' is not in the folder '{folder}'; check --files.")
        if path.stat().st_size > self.max_bytes:
            raise self._too_large(name)
        return path.read_bytes()

    def _fetched(self, address: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            client = self._client(address)
            url = self.client.base_url.join(address)
            try:
                with client.stream("GET", url, follow_redirects=False) as response:
                    if response.is_redirect:
                        # Followed by hand, so that each step is held against the hosts that are named.
                        address = str(url.join(response.headers["location"]))
                        continue
                    if response.status_code != 200:
                        reason = f"answers {response.status_code} {response.reason_phrase}"
                        raise OSError(f"picture '{_short(address)}' cannot be fetched: the server {reason}.")
                    return self._limited(response, address)
            except httpx.HTTPError as error:
                reason = str(error) or type(error).__name__
                raise OSError(f"picture '{_short(address)}' cannot be fetched ({reason}); is the server up?") from error
        raise OSError(f"picture '{_short(address)}' cannot be fetched: it is sent on more than {MAX_REDIRECTS} times.")

    def _client(self, address: str) -> httpx.Client:
        if self._is_studio(address):
            return self.client
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https"):
            raise ValueError(
                f"picture '{_short(address)}' is not at an address of http or https; let Label Studio hand out signed "
                "addresses, or import the files."
            )
        if not self.hosts & {"*", parts.hostname, parts.netloc}:
            text = f"pictures of {parts.netloc} are not read; name the host with --picture-hosts, or import the files."
            raise ValueError(text)
        return self._others

    def _is_studio(self, address: str) -> bool:
        url, base = self.client.base_url.join(address), self.client.base_url
        # httpx leaves out a scheme's own port, so that :80 and none are one.
        return (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)

    def _limited(self, response: httpx.Response, address: str) -> bytes:
        content = bytearray()
        # Counted as it comes: a length that is promised may be missing, wrong, or of packed bytes.
        for piece in response.iter_bytes(2**16):
            content += piece
            if len(content) > self.max_bytes:
                raise self._too_large(address)
        return bytes(content)

    def _too_large(self, address: str) -> ValueError:
        limit = f"more than {self.max_bytes // 2**20} MB"
        return ValueError(f"picture '{_short(address)}' has {limit}; shrink it, or raise --max-picture-mb.")

    def _decoded(self, content: bytes, address: str) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(content))
            # Opening reads the header alone, so a small file of a huge image costs nothing before it is refused.
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                return to_rgb(image)
        except UNREADABLE as error:
            raise ValueError(f"picture '{_short(address)}' cannot be read as an image ({error}).") from error
        size = f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million"
        raise ValueError(f"picture '{_short(address)}' has {size}; shrink it.")


def _short(address: str) -> str:
    """An address for messages: without its query, which may hold a signature, and not as long as a page."""
    path = address if address.startswith(LOCAL_FILES) else address.split("?")[0]
    return path if len(path) <= 120 else f"{path[:117]}..."
