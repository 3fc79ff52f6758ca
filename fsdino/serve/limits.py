"""What one request, and the whole service, may use; every field is an option of `fsdino serve`."""

from __future__ import annotations

from dataclasses import dataclass

from fsdino.base.ranges import Count, Megabytes, Seconds, check_fields

MAX_MEMORY_FILE = 2_000_000  # bytes of one .fsmem; those that fsdino writes have at most half of it


@dataclass(frozen=True)
class Limits:
    """What one request, and the whole service, may use.

    Args:
        max_upload_mb: largest body of a request, in megabytes.
        max_megapixels: most pixels of one image, in millions; the references of a request may have four times as many.
        max_references: most references of one request.
        max_images: most images that one request may have segmented.
        max_classes: most memories that one request may look for.
        max_memories: most memories in the folder; the next one is refused until one is deleted.
        max_loaded: memories of one model that are held ready; the one unused for longest makes room.
        max_waiting: requests that may wait for one model; the next one is told when to come again.
        max_connections: open connections; the next one is turned away.
        max_seconds: longest time that a request may take, its way through the queue included.
    """

    max_upload_mb: Megabytes = 64
    max_megapixels: Count = 25
    max_references: Count = 20
    max_images: Count = 32
    max_classes: Count = 32
    max_memories: Count = 1000
    max_loaded: Count = 64
    max_waiting: Count = 64
    max_connections: Count = 256
    max_seconds: Seconds = 60

    def __post_init__(self) -> None:
        check_fields(self)
