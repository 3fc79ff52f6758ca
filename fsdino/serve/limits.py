"""What one request, and the whole service, may use; every field is an option of `fsdino serve`."""

from __future__ import annotations

from dataclasses import dataclass, fields

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

    max_upload_mb: int = 64
    max_megapixels: int = 25
    max_references: int = 20
    max_images: int = 32
    max_classes: int = 32
    max_memories: int = 1000
    max_loaded: int = 64
    max_waiting: int = 64
    max_connections: int = 256
    max_seconds: int = 60

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name} {getattr(self, field.name)} is not positive; leave it out for {field.default}."
                )
