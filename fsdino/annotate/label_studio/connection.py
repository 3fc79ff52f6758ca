"""How a Label Studio is reached: the options that both of its commands take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fsdino.annotate.label_studio.client import Studio
from fsdino.annotate.label_studio.pictures import Pictures
from fsdino.base.ranges import Megabytes, check_fields
from fsdino.predict.formats import listed

URL_VARIABLE, KEY_VARIABLE = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"


@dataclass(frozen=True)
class Connection:
    """A Label Studio, before it is asked for anything.

    Args:
        url: address of the Label Studio; of the variable LABEL_STUDIO_URL, or http://localhost:8080, when left out.
        api_key: a token of one of its users; of the variable LABEL_STUDIO_API_KEY when left out, where other users of
            this machine cannot see it.
        files: the folder that Label Studio serves as local files (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT), to read
            pictures from it; they come through Label Studio when left out.
        picture_hosts: further hosts that pictures may come from, comma-separated; "*" is any.
        max_picture_mb: largest picture that is fetched, in megabytes.
    """

    url: str | None = None
    api_key: str | None = None
    files: str | None = None
    picture_hosts: Sequence[str] | str = ()
    max_picture_mb: Megabytes = 50

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self) -> tuple[Studio, Pictures]:
        """Make what calls Label Studio and what reads its pictures; nothing is sent yet."""
        url = self.url or os.environ.get(URL_VARIABLE) or "http://localhost:8080"
        studio = Studio(url, self.api_key or os.environ.get(KEY_VARIABLE) or "")
        return studio, Pictures(studio.client, self.files, listed(self.picture_hosts), self.max_picture_mb)
