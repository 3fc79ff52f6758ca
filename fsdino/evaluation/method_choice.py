"""What `fsdino evaluate` opens: whatever `fsdino.load` opens, or a method by name with its options."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fsdino.base.bundled import BUNDLED, bundled_file
from fsdino.base.method import FewShotMethod
from fsdino.base.registry import METHODS, build_method
from fsdino.base.resize import Resize
from fsdino.base.storage import fingerprint, load
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.evaluation.baseline import choose_prototype
from fsdino.methods.prototype import Kind
from fsdino.models.config import SegmenterConfig, preset
from fsdino.models.encoder import FeatureEncoder

Base = Callable[[], tuple[ClassIndex, EpisodeList]]
KINDS: tuple[Kind, ...] = ("fg_bg", "softmax")
RANDOM_SEED = 0  # of weights that were asked to be random


@dataclass(frozen=True)
class MethodChoice:
    """What is measured, before it is opened; a prototype chooses its layer and cut anew in every fold.

    Args:
        name: what `fsdino.load` opens (`{fold}` is filled in), or a key of `METHODS`.
        preset: encoder of the prototype, one of `fsdino.models.config.PRESETS`.
        encoder_weights: of the prototype: "auto" (bundled for tiny, else timm's), "timm", "random", "bundled:NAME" or a
            file.
        tap: block of the prototype, or "auto": chosen on base classes.
        cut: score above which the prototype says object, or "auto": chosen on base classes.
        kind: how the prototype compares, or "auto": chosen on base classes.
        options: further arguments of a named method's `build`.
        threshold: probability above which a pixel is object; None keeps the method's own.
    """

    name: str
    preset: str = "tiny"
    encoder_weights: str = "auto"
    tap: int | Literal["auto"] = "auto"
    cut: float | Literal["auto"] = "auto"
    kind: Kind | Literal["auto"] = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    threshold: float | None = None

    def open(self, fold: int, base: Base) -> FewShotMethod:
        """The method for a fold, in evaluation mode.

        Args:
            fold: the fold.
            base: gives training images and episodes of base classes, where something is to be chosen.

        Raises:
            FileNotFoundError: nothing is there under that name.
            ValueError: what is there is no model, or an option does not fit.
        """
        if self.name == "prototype":
            method = self._prototype(base)
        elif self.name in METHODS:
            with torch.random.fork_rng():
                torch.manual_seed(RANDOM_SEED)
                method = build_method(self.name, **self.options)
            if not {"weights", "checkpoint"} & set(self.options) and any(True for _ in method.parameters()):
                needs = "checkpoint" if self.name == "persam" else "weights"
                print(f"{self.name}: its weights are random; give --options.{needs} FILE.", file=sys.stderr)
        else:
            if self.options:
                raise ValueError(f"'{self.name}' is opened as it was saved, options {sorted(self.options)} do not fit; "
                                 f"they go with {', '.join(METHODS)}.")  # fmt: skip
            method = load(self.name.format(fold=fold) if "{fold}" in self.name else self.name)
        if self.threshold is not None:
            if not 0.0 < self.threshold < 1.0:
                raise ValueError(f"threshold {self.threshold} is no probability; use a value above 0 and below 1.")
            method.threshold = self.threshold
        return method.eval()

    def _prototype(self, base: Base) -> FewShotMethod:
        config = preset(self.preset)
        weights = encoder_weights(self.preset, self.encoder_weights)
        tap, cut, kind = self.tap, self.cut, self.kind
        if "auto" in (tap, cut, kind):
            encoder = _encoder(config, weights, None if tap == "auto" else int(tap))
            kinds = KINDS if kind == "auto" else (kind,)
            index, episodes = base()
            choice = choose_prototype(encoder, Resize(config.img_size, config.resize_mode), index, episodes, kinds)
            tap, kind, cut = choice.tap, choice.kind, choice.cut if cut == "auto" else cut
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            return build_method(
                "prototype", encoder=config.encoder, img_size=config.img_size, encoder_kwargs=config.encoder_kwargs,
                encoder_stride=config.encoder_stride, encoder_weights=weights, resize_mode=config.resize_mode,
                tap=tap, cut=cut, kind=kind, **self.options,
            )  # fmt: skip


def encoder_weights(preset_name: str, wanted: str) -> str | None:
    """Where an encoder's weights come from: a file, "timm", or None for random ones.

    Args:
        preset_name: whose encoder.
        wanted: as `MethodChoice.encoder_weights`.
    """
    if wanted == "auto":
        wanted = f"bundled:{preset_name}_encoder" if preset_name in BUNDLED else "timm"
    if wanted == "random":
        return None
    return str(bundled_file(wanted.removeprefix("bundled:"))) if wanted.startswith("bundled:") else wanted


def _encoder(config: SegmenterConfig, weights: str | None, tap: int | None) -> FeatureEncoder:
    """The encoder of a configuration with one tap, or with all."""
    arguments = (config.encoder_kwargs, weights, config.encoder_stride)
    taps: tuple[int, ...] = (tap,) if tap is not None else ()
    if not taps:
        with torch.device("meta"):
            taps = tuple(range(FeatureEncoder(config.encoder, config.img_size, (0,), config.encoder_kwargs).depth))
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM_SEED)
        return FeatureEncoder(config.encoder, config.img_size, taps, *arguments)


def identity(method: FewShotMethod) -> str:
    """Name everything that decides a method's answers: weights, configuration, options and cut.

    Args:
        method: any.

    Returns:
        16 hexadecimal digits.
    """
    built = getattr(method, "description", None)
    parts = [type(method).__name__, fingerprint(method), method.img_size, method.resize.mode, method.threshold, built]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def remark(method: FewShotMethod) -> str:
    """What was chosen for a fold, for tables: a prototype's layer and cut; empty for others."""
    if not all(hasattr(method, name) for name in ("taps", "cut", "kind")):
        return ""
    taps = "+".join(str(tap) for tap in method.taps)  # type: ignore[union-attr]
    return f"{method.kind} block {taps} cut {method.cut:.3f}"
