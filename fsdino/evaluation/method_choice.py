"""What `fsdino evaluate` opens: whatever `fsdino.load` opens, or a method by name with its options."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fsdino.base import registry
from fsdino.base.bundled import BUNDLED, bundled_file
from fsdino.base.method import FewShotMethod
from fsdino.base.ranges import Probability, check_fields
from fsdino.base.resize import Resize
from fsdino.base.storage import load
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.evaluation.baseline import choose_chain, choose_prototype
from fsdino.methods.chain import read_means
from fsdino.methods.prototype import Kind
from fsdino.models.config import preset
from fsdino.models.encoder import FeatureEncoder

Base = Callable[..., tuple[ClassIndex, EpisodeList]]
KINDS: tuple[Kind, ...] = ("fg_bg", "softmax")
# Weights that were asked to be random are the same at every start, so that an evaluation can go on.
RANDOM_SEED = 0


@dataclass(frozen=True)
class MethodChoice:
    """What is measured, before it is opened; prototype and chain choose their layers and cut anew in every fold.

    Args:
        method: what `fsdino.load` opens (a name of `fsdino models`, a folder, a run's folder, a checkpoint, a Hub id;
            {fold} is filled in), or prototype, chain, sansa, fssam, persam, refined, all_foreground.
        preset: of prototype and chain: whose encoder and size.
        encoder_weights: of prototype and chain: auto (bundled for tiny, else timm's), timm, random, bundled:NAME or a
            file; of an encoder that is named as the method: auto (on this disk, else fetched) or a file.
        tap: of the prototype: block that is compared; auto chooses it on base classes.
        score_threshold: of the prototype: score above which a position is object; auto chooses it on base classes.
        kind: of the prototype: fg_bg or softmax; auto chooses it on base classes.
        options: of the named methods: their arguments, for instance --options.weights FILE --options.size large. Of the
            chain, cut (and with --options.taps auto the blocks) is chosen on base classes where it is not given, and
            means are taken of training images.
        threshold: probability above which a pixel is object; the method's own when left out.
    """

    method: str
    preset: str = "tiny"
    encoder_weights: str = "auto"
    tap: int | Literal["auto"] = "auto"
    score_threshold: float | Literal["auto"] = "auto"
    kind: Kind | Literal["auto"] = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    threshold: Probability | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self, fold: int, base: Base) -> FewShotMethod:
        """The method for a fold, in evaluation mode.

        Args:
            base: gives training images and episodes of base classes, where something is to be chosen; called with
                True for episodes of all base classes instead of held-out ones.

        Raises:
            FileNotFoundError: nothing is there under that name.
            ValueError: what is there is not a model, or an option does not fit.
        """
        if self.method == "prototype":
            method = self._prototype(base)
        elif self.method == "chain":
            method = self._chain(base)
        elif self.method in registry.METHODS and self.method != "fsdino":
            with torch.random.fork_rng():
                torch.manual_seed(RANDOM_SEED)
                method = registry.build(self.method, **self.options)
            given = registry.FILE_ARGUMENTS & set(self.options)
            if not given and any(True for _ in method.parameters()):
                needs = "checkpoint" if self.method in ("persam", "refined") else "weights"
                print(f"{self.method}: its weights are random; give --options.{needs} FILE.", file=sys.stderr)
        else:
            if self.options:
                named = ", ".join(name for name in registry.METHODS if name != "fsdino")
                raise ValueError(
                    f"'{self.method}' is opened as it was saved, options {sorted(self.options)} do not fit; they "
                    f"go with {named}."
                )
            weights = None if self.encoder_weights == "auto" else self.encoder_weights
            name = self.method.format(fold=fold) if "{fold}" in self.method else self.method
            method = load(name, encoder_weights=weights)
        if self.threshold is not None:
            method.threshold = self.threshold
        return method.eval()

    def _prototype(self, base: Base) -> FewShotMethod:
        config = preset(self.preset)
        weights = encoder_weights(self.preset, self.encoder_weights)
        encoder: dict[str, Any] = {"model_kwargs": config.encoder_kwargs, "stride": config.encoder_stride}
        tap, threshold, kind = self.tap, self.score_threshold, self.kind
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            if "auto" in (tap, threshold, kind):
                taps = None if tap == "auto" else (int(tap),)
                reader = FeatureEncoder(config.encoder, config.img_size, (0,), weights=weights, **encoder).reading(taps)
                kinds = KINDS if kind == "auto" else (kind,)
                choice = choose_prototype(reader, Resize(config.img_size, config.resize_mode), *base(), kinds)
                tap, kind = choice.tap, choice.kind
                threshold = choice.threshold if threshold == "auto" else threshold
            # Random weights must be those that the choice was made with.
            torch.manual_seed(RANDOM_SEED)
            return registry.build(
                "prototype",
                encoder=config.encoder,
                img_size=config.img_size,
                encoder_kwargs=config.encoder_kwargs,
                encoder_stride=config.encoder_stride,
                encoder_weights=weights,
                resize_mode=config.resize_mode,
                tap=tap,
                score_threshold=threshold,
                kind=kind,
                **self.options,
            )

    def _chain(self, base: Base) -> FewShotMethod:
        config, options = preset(self.preset), dict(self.options)
        every = options.get("taps") == "auto"
        if every:
            del options["taps"]
        built: dict[str, Any] = {"img_size": config.img_size, "resize_mode": config.resize_mode}
        if "encoder" not in options:
            built |= {"encoder": config.encoder, "encoder_kwargs": config.encoder_kwargs}
            built |= {"encoder_stride": config.encoder_stride}
            built |= {"encoder_weights": encoder_weights(self.preset, self.encoder_weights)}
        elif options.get("encoder_weights") is None:
            print("chain: its encoder is random; give --options.encoder_weights FILE.", file=sys.stderr)
        built |= options
        with torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            method = registry.build("chain", **built)
            if {"cut", "means"} <= set(options) and not every:
                return method
            known = read_means(options["means"], method.encoder) if "means" in options else None
            held: dict[str, Any] = {name: getattr(method, name) for name in {"mirror", *method.silent_args} - {"cut"}}
            held |= {"debias": method.directions.shape[-1], "attention": method.encoder.attention}
            taps = None if every else [method.encoder.taps]
            index, episodes = base(True)
            choice = choose_chain(method.encoder, method.resize, index, episodes, taps, means=known, **held)
            # Random weights must be those that the choice was made with.
            torch.manual_seed(RANDOM_SEED)
            method = registry.build("chain", **{"cut": choice.cut, **built, "taps": choice.taps})
        method.means.copy_(choice.means)
        return method


def encoder_weights(preset_name: str, wanted: str) -> str | None:
    """Where the weights of a preset's encoder come from: a file, "timm", or None for random ones."""
    if wanted == "auto":
        wanted = f"bundled:{preset_name}_encoder" if preset_name in BUNDLED else "timm"
    if wanted == "random":
        return None
    return str(bundled_file(wanted.removeprefix("bundled:"))) if wanted.startswith("bundled:") else wanted


def identity(method: FewShotMethod) -> str:
    """Sixteen digits of everything that decides a method's answers: weights, configuration, options and threshold."""
    # Weights alone would not do: the same ones answer differently at another size or threshold.
    built = [method.img_size, method.resize.mode, method.threshold, method.arguments(), method.remark()]
    parts = [type(method).__name__, method.fingerprint(), *built]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
