"""Fixed lists of test episodes: drawn once from (data set, fold, shots, seed), kept as JSON, the same everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fsdino.base.texts import plain_json
from fsdino.data.class_index import ClassIndex

FORMAT = "fsdino-episodes-1"
Order = Literal["random", "each", "first", "pairs"]


@dataclass(frozen=True)
class EpisodeSpec:
    """One test case by name: segment this class in `query`, shown in the `support` images."""

    class_id: int
    query: str
    support: tuple[str, ...]


class PortableRandom:
    """Whole random numbers, the same on every platform and in every NumPy version; equal keys give equal ones."""

    def __init__(self, *key: object) -> None:
        # NumPy promises the raw stream of its bit generators, not what `Generator` makes of it, so the reduction to a
        # range is done here.
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def below(self, bound: int) -> int:
        """A number in [0, bound), each equally likely (values above the last full multiple are drawn again)."""
        # A plain remainder would favour small numbers, as 2^64 is not a multiple of the bound.
        limit = (1 << 64) // bound * bound
        while True:
            value = int(self._bits.random_raw())
            if value < limit:
                return value % bound


@dataclass(frozen=True)
class EpisodeList:
    """A fixed list of test episodes.

    Attributes:
        fold: fold whose novel classes are tested.
        shots: references per episode (K).
        protocol: name of the published protocol it follows, or "".
    """

    dataset: str
    fold: int
    shots: int
    seed: int
    episodes: tuple[EpisodeSpec, ...]
    protocol: str = ""

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[EpisodeSpec]:
        return iter(self.episodes)

    @property
    def class_ids(self) -> list[int]:
        """Classes that are drawn at least once, sorted."""
        return sorted({episode.class_id for episode in self.episodes})

    @property
    def images(self) -> set[str]:
        """Every image that is a query or a support: what no training stage may see."""
        return {p for e in self.episodes for p in (e.query, *e.support)}

    @property
    def content_hash(self) -> str:
        """sha256 over everything in the list, in hexadecimal."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @classmethod
    def draw(
        cls,
        index: ClassIndex,
        fold: int,
        shots: int = 1,
        num_episodes: int = 1000,
        seed: int = 0,
        protocol: str = "",
        order: Order = "random",
        replacement: bool = False,
        skip_rare: bool = False,
    ) -> EpisodeList:
        """Draw a list from the novel classes of a fold; equal arguments give an equal list on every machine.

        Images whose mask is empty are passed over.

        Args:
            shots: references per episode, at least 1.
            protocol: name written into the list.
            order: "random" draws a class, then a query, then supports, each uniformly; "each" takes every image
                of every class once as query; "first" takes a class's first images as supports and each other one
                as query (videos, PerSeg); "pairs" walks `ClassIndex.pairs` as queries, and from the start
                again at its end.
            replacement: let supports repeat each other (HSNet's line does for K > 1); the query is never one.
            skip_rare: leave out classes with too few images instead of refusing.
        """
        if shots < 1:
            raise ValueError(f"episodes need at least 1 shot, got {shots}.")
        # With replacement one image is enough for all supports, beside the query.
        pools = _Pools(index, fold, shots, 2 if replacement else shots + 1, skip_rare)
        random = PortableRandom("episodes", index.name, fold, shots, seed)
        if order == "first":
            chosen = [
                EpisodeSpec(class_id, query, tuple(pools[class_id][:shots]))
                for class_id in pools.classes
                for query in pools[class_id][shots:]
            ]
            return cls(index.name, fold, shots, seed, tuple(chosen), protocol=protocol)
        if order == "each":
            # Over a copy: `usable` takes images without an object out of the pool.
            queries = [(c, q) for c in pools.classes for q in list(pools[c]) if pools.usable(c, q)]
        elif order == "pairs":
            listed = [(c, q) for q, c in index.pairs(fold) if c in pools.classes and pools.usable(c, q)]
            queries = [listed[i % len(listed)] for i in range(num_episodes)]
        else:
            queries = []
            for _ in range(num_episodes):
                class_id = pools.classes[random.below(len(pools.classes))]
                queries.append((class_id, pools.pick(class_id, random, ())))
        episodes = []
        for class_id, query in queries:
            support: list[str] = []
            while len(support) < shots:
                support.append(pools.pick(class_id, random, (query,) if replacement else (query, *support)))
            episodes.append(EpisodeSpec(class_id, query, tuple(support)))
        return cls(index.name, fold, shots, seed, tuple(episodes), protocol=protocol)

    def save(self, path: str | Path) -> None:
        """Write the list as JSON, one episode a line, with its content hash."""
        content = self._content()
        # One episode a line, so that two lists can be compared by eye and by diff.
        lines = ",\n".join(json.dumps(episode) for episode in content.pop("episodes"))
        head = json.dumps(content | {"sha256": self.content_hash})[:-1]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(f'{head}, "episodes": [\n{lines}\n]}}\n', encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, dataset: str = "") -> EpisodeList:
        """Read a list, also a plain one without format and hash (`category_id` in place of `class_id`).

        `dataset` names a list that does not say its own data set.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"episode list '{file}' does not exist: draw one with `fsdino episodes`, or correct its name."
            )
        try:
            raw: dict[str, Any] = plain_json(file.read_text(encoding="utf-8"))
            episodes = tuple(
                EpisodeSpec(int(e.get("class_id", e.get("category_id"))), str(e["query"]), tuple(e["support"]))
                for e in raw["episodes"]
            )
            name = raw.get("dataset", dataset)
            fold, shots, seed = (int(raw[key]) for key in ("fold", "shots", "seed"))
            found = cls(name, fold, shots, seed, episodes, protocol=raw.get("protocol", ""))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"'{file}' is no episode list ({type(error).__name__}: {error}): draw one with `fsdino episodes`."
            ) from error
        if raw.get("sha256", found.content_hash) != found.content_hash:
            raise ValueError(
                f"episode list '{file}' was changed: its content has sha256 {found.content_hash[:12]}..., "
                f"it says {raw['sha256'][:12]}...; restore the file or draw it again."
            )
        return found

    def verify(self, index: ClassIndex) -> None:
        """Check that every episode is possible on a data set as it lies on disk."""
        novel = set(index.novel_classes(self.fold))
        known = {class_id: set(index.images(class_id)) for class_id in novel}
        for number, episode in enumerate(self.episodes):
            problem = _problem(episode, self.shots, known)
            if problem:
                raise ValueError(
                    f"episode {number} of the list for '{self.dataset}' fold {self.fold} does not fit data set "
                    f"'{index.name}': {problem}; check the root, or draw the list again with `fsdino episodes`."
                )

    def _content(self) -> dict[str, Any]:
        head = {"format": FORMAT, "dataset": self.dataset, "fold": self.fold, "shots": self.shots, "seed": self.seed}
        episodes = [asdict(e) | {"support": list(e.support)} for e in self.episodes]
        return head | {"protocol": self.protocol, "episodes": episodes}


def _problem(episode: EpisodeSpec, shots: int, known: dict[int, set[str]]) -> str:
    if episode.class_id not in known:
        return f"class {episode.class_id} is not a novel class of the fold"
    if len(episode.support) != shots:
        return f"it has {len(episode.support)} supports, the list says {shots}"
    if episode.query in episode.support:
        return f"query '{episode.query}' is among its own supports"
    for image in (episode.query, *episode.support):
        if image not in known[episode.class_id]:
            return f"image '{image}' is missing or does not count for class {episode.class_id}"
    return ""


class _Pools:
    """Images of each novel class that are left to draw from: empty masks are found, and dropped, when drawn."""

    def __init__(self, index: ClassIndex, fold: int, shots: int, needed: int, skip_rare: bool) -> None:
        self._index, self._fold, self._shots, self._needed = index, fold, shots, needed
        self._usable: dict[tuple[int, str], bool] = {}
        self._images: dict[int, list[str]] = {}
        # Reading every mask of COCO to draw 1,000 episodes would take minutes, so masks are looked at when drawn. Only
        # a class with few images is read through at once: an empty mask there decides whether it can be drawn at all.
        for class_id in index.novel_classes(fold):
            images = sorted(index.images(class_id))
            if len(images) < 2 * needed:
                images = [image for image in images if index.object_pixels(image, class_id) > 0]
            if len(images) >= needed:
                self._images[class_id] = images
            elif not skip_rare:
                self._insist(class_id, len(images))
        self.classes = list(self._images)
        if not self.classes:
            raise ValueError(
                f"no class of '{index.name}' fold {fold} has the {needed} images that {shots}-shot episodes need; "
                "add images or take fewer shots."
            )

    def __getitem__(self, class_id: int) -> list[str]:
        return self._images[class_id]

    def usable(self, class_id: int, image: str) -> bool:
        """Whether the class has a pixel there; if not, the image is dropped."""
        key = (class_id, image)
        if key not in self._usable:
            self._usable[key] = self._index.object_pixels(image, class_id) > 0
            if not self._usable[key]:
                self._images[class_id].remove(image)
                self._insist(class_id, len(self._images[class_id]))
        return self._usable[key]

    def pick(self, class_id: int, random: PortableRandom, taken: tuple[str, ...]) -> str:
        while True:
            pool = self._images[class_id]
            image = pool[random.below(len(pool))]
            if image not in taken and self.usable(class_id, image):
                return image

    def _insist(self, class_id: int, count: int) -> None:
        if count < self._needed:
            raise ValueError(
                f"class '{self._index.class_names[class_id]}' of '{self._index.name}' fold {self._fold} has {count} "
                f"image(s) with a mask, {self._shots}-shot episodes need {self._needed}: add images, take fewer "
                "shots, or leave such classes out with skip_rare."
            )
