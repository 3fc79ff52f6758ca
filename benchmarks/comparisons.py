"""Which runs of a grid are compared with which."""

from __future__ import annotations

_METHODS = (
    ("reader", "FS-DINO full", "FS-DINO compact"),
    ("training", "FS-DINO full", "prototype"),
    ("training", "FS-DINO compact", "prototype"),
)
# Grid -> (what is added, the run with it, the run without it).
COMPARISONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "ablation": (
        ("distillation", "compact", "compact-undistilled"),
        ("sparse prompt", "compact", "compact-no-sparse"),
        ("trained decoder", "compact", "compact-frozen"),
        ("4D reader", "full-no-contrast", "compact"),
        ("contrastive enhancement", "full", "full-no-contrast"),
    ),
    "photos": _METHODS,
    "tiny_seeds": _METHODS,
}
