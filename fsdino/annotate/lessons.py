"""Memories that follow what people draw: annotations come, change and go, and the next image is searched with them."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fsdino.annotate.drawn import Draw, Drawn, meant, reference
from fsdino.base.drawn import caution
from fsdino.base.ranges import Number, Probability, Share, check_fields
from fsdino.base.reference import Reference
from fsdino.base.result import LabelMap, resolve
from fsdino.predict.engines import Engine
from fsdino.predict.finish import Finish, finished
from fsdino.predict.memory_file import load_memory
from fsdino.predict.support import Support, read_support
from fsdino.predict.tiles import check_tile, segment_tiled

UNREADABLE = (ValueError, OSError)
USUAL = ("auto", False)


class NothingShown(ValueError):
    """Nothing of use is drawn, and no support was given."""


@dataclass(frozen=True)
class Lesson:
    """One annotated picture, read and drawn only when it is wanted.

    Args:
        stamp: differs for every state of the annotation; a later one sorts after an earlier one.
        labels: what is drawn in it; "not cat" shows what is no cat.
        picture: gives (H, W, 3) uint8; raises ValueError or OSError when it cannot.
        draw: gives what is drawn, by label.
        name: what messages call the picture.
    """

    stamp: str
    labels: frozenset[str]
    picture: Callable[[], np.ndarray]
    draw: Callable[[], Mapping[str, Drawn]]
    name: str


@dataclass(frozen=True)
class Teaching(Finish):
    """What is known before anything is drawn, and how what is drawn is used.

    Args:
        support: further references, in any form that predict takes; a saved memory counts until its class is drawn.
        support_images: folder of the images of a COCO JSON, when it is not beside it.
        max_references: pictures that a class is learnt from, the latest first; 0 takes all.
        min_score: classes whose score in an image is below, in [0, 1], count as absent.
        threshold: probability above which a pixel belongs to a class; the model's own when left out.
        tile: side in pixels of windows to cut large pictures into, for small objects; 0 takes pictures as a whole.
    """

    support: str | None = None
    support_images: str | None = None
    max_references: Number = 10
    min_score: Share = 0.0
    threshold: Probability | None = None
    tile: Number = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)
        check_tile(self.tile)

    def read(self) -> Support:
        """Read the support."""
        if self.support is None:
            return Support()
        return read_support(self.support, images=self.support_images, max_references=self.max_references)


AS_ASKED = Teaching()


class Lessons:
    """What an engine remembers of a project; safe to use from several threads.

    Args:
        engine: may be shared by several lessons, which then wait for each other.
        support: what `teaching` has read.

    Attributes:
        notes: sentences on what could not be used, by picture and class.
    """

    # One for all: an engine is shared, and none of them is made to be called by two threads at once.
    _lock: ClassVar[Any] = threading.RLock()

    def __init__(self, engine: Engine, support: Support, teaching: Teaching = AS_ASKED) -> None:
        self.engine, self.support, self.teaching = engine, support, teaching
        self.threshold = engine.threshold if teaching.threshold is None else teaching.threshold
        self.notes: dict[tuple[str, str], str] = {}
        self._lessons: dict[Hashable, Lesson] = {}
        # Class to what its memory was made of, and the memory; None where nothing could be made of it.
        self._memories: dict[str, tuple[tuple[str, ...], Any]] = {}
        self._joined: tuple[list[str], Sequence[Any]] = ([], [])
        self._cuts: dict[str, float | None] = {}  # of saved memories
        settings = (teaching.max_references, teaching.min_score, self.threshold, teaching.tile)
        self._fingerprint, self._sharp = engine.fingerprint(), teaching.refines(engine)
        # Named only then, so that what was predicted before there was this setting is still known.
        newer = (teaching.min_presence, self._sharp)
        self._fixed = f"{self._fingerprint} {support.digest()} {settings}{'' if newer == USUAL else f' {newer}'}"
        self._cautioned = False

    def put(self, key: Hashable, lesson: Lesson) -> None:
        """Add an annotated picture, or replace what was known of it."""
        with self._lock:
            self._lessons[key] = lesson

    def drop(self, key: Hashable) -> None:
        """Forget a picture, if it was known."""
        with self._lock:
            self._lessons.pop(key, None)

    def replace(self, lessons: Mapping[Hashable, Lesson]) -> None:
        """Know these pictures and no others."""
        with self._lock:
            self._lessons = dict(lessons)

    @property
    def count(self) -> int:
        """Annotated pictures."""
        return len(self._lessons)

    def version(self) -> str:
        """Names the model, its settings and everything that it has been shown."""
        with self._lock:
            stamps = sorted(f"{key} {lesson.stamp}" for key, lesson in self._lessons.items())
        digest = hashlib.sha256("\n".join([self._fixed, *stamps]).encode("utf-8", "surrogateescape"))
        return f"fsdino-{digest.hexdigest()[:12]}"

    def class_names(self) -> list[str]:
        """Everything that has been shown, sorted; classes of which nothing can be used are among them."""
        with self._lock:
            labels = {label for one in self._lessons.values() for label in one.labels}
        drawn = {name for name, negative in map(meant, labels) if not negative}
        return sorted({*self.support.class_names(), *drawn})

    def find(self, image: np.ndarray, only: Iterable[str] | None = None) -> LabelMap:
        """Search an image (H, W, 3) uint8 for all that has been shown, or for those classes of it.

        Raises:
            NothingShown: if nothing of use has been shown.
        """
        with self._lock:
            names, joined = self._join(None if only is None else frozenset(only))
            size, limits = (image.shape[0], image.shape[1]), (self.threshold, self.teaching.min_score)
            cuts = [self._cuts.get(name) for name in names] if self.teaching.threshold is None else []
            least = self.teaching.least(self.engine, self._fingerprint, names, [image])
            if not self._cautioned and (text := caution(self._fingerprint, [image])) is not None:
                self._cautioned = True
                print(f"careful: {text}", file=sys.stderr)
            if 0 < (tile := self.teaching.tile) < max(size):
                how: dict[str, Any] = {"least": least, "refine_edges": self._sharp, "cuts": cuts}
                how |= {"threshold": limits[0], "min_score": limits[1]}
                return segment_tiled(self.engine, joined, names, image, tile, **how)
            found = finished(self.engine.find(joined, image), image, limits[0], least, self._sharp, cuts=cuts)
            return resolve(zip(names, found), size, *limits)

    def drawer(self) -> Draw | None:
        """Gives the mask (H, W) bool that points or a box mark in an image; None where the model draws none."""
        # Exported graphs have neither attribute; they take masks of the object alone.
        drawer: Draw | None = getattr(self.engine, "draw_mask", None)
        if drawer is None or not getattr(self.engine, "takes_hints", False):
            return None

        def draw(hint: Reference) -> np.ndarray:
            with self._lock:
                return drawer(hint)

        return draw

    def _join(self, only: frozenset[str] | None) -> tuple[list[str], Sequence[Any]]:
        wanted = [name for name in self.class_names() if only is None or name in only]
        before = {name: self._memories.get(name) for name in wanted}
        usable = [name for name in wanted if self._memory(name) is not None]
        if not usable:
            reason = next(iter(self.notes.values()), "draw one of its labels in a picture, or give --support.")
            raise NothingShown(f"there is nothing to look for yet: {reason}")
        changed = any(self._memories[name] is not before[name] for name in usable)
        if changed or usable != self._joined[0]:
            self._joined = usable, self.engine.join([self._memories[name][1] for name in usable])
        return self._joined

    def _memory(self, name: str) -> Any:
        """The memory of a class, made again if what it is made of has changed."""
        chosen = sorted(self._of_class(name), key=lambda entry: entry[1].stamp, reverse=True)
        made_of = tuple(f"{key} {lesson.stamp}" for key, lesson in chosen)
        if (known := self._memories.get(name)) is None or known[0] != made_of:
            self.notes = {key: note for key, note in self.notes.items() if key[1] != name}
            self._memories[name] = made_of, self._remember(name, [lesson for _, lesson in chosen])
        return self._memories[name][1]

    def _of_class(self, name: str) -> list[tuple[Hashable, Lesson]]:
        shown = ((key, one) for key, one in self._lessons.items() if name in {meant(label)[0] for label in one.labels})
        return list(shown)

    def _remember(self, name: str, lessons: Sequence[Lesson]) -> Any:
        references = list(self.support.references.get(name, []))
        for lesson in lessons:
            if self.teaching.max_references and len(references) >= self.teaching.max_references:
                break
            # One picture that is gone must not take the class away, whose others are there.
            try:
                references += self._references(name, lesson)
            except UNREADABLE as error:
                self.notes[lesson.name, name] = str(error)
        self._cuts.pop(name, None)
        if any(not one.negative for one in references):
            return self.engine.remember(references)
        if name in self.support.memory_files:
            saved = load_memory(self.support.memory_files[name], self.engine.fingerprint())
            self._cuts[name] = saved.cut
            return self.engine.unpack(saved.arrays)
        return None

    def _references(self, name: str, lesson: Lesson) -> list[Reference]:
        image, found = lesson.picture(), []
        for label, drawn in lesson.draw().items():
            of_class, negative = meant(label)
            if of_class != name:
                continue
            if negative and not getattr(self.engine, "takes_negatives", False):
                self.notes[lesson.name, name] = f"the model has no use for what is not meant, so {label!r} is left out."
                continue
            one = reference(drawn, image, f"{lesson.name} ({label})", self.drawer(), negative)
            if one is None:
                self.notes[lesson.name, name] = (
                    f"{label!r} in {lesson.name} has no area that this model can learn from; draw a mask."
                )
            found += [one] if one is not None else []
        return found
