"""Fixed lists of test episodes: drawn once from (data set, fold, shots, seed), kept as JSON, the same everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from fsdino.data.class_index import ClassIndex

FORMAT = "fsdino-episodes-1"
_T = TypeVar("_T")


@dataclass(frozen=True)
class EpisodeSpec:
    """One test case by name: segment this class in `query`, shown in the `support` pictures."""

    class_id: int
    query: str
    support: tuple[str, ...]


class PortableRandom:
    """Whole random numbers that are the same on every platform and in every numpy version.

    numpy promises the raw stream of its bit generators, not what `Generator` makes of it, so the reduction to a range
    is done here.

    Args:
        key: anything printable; equal keys give equal numbers.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(repr(key).encode()).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def below(self, bound: int) -> int:
        """A number in [0, bound), each equally likely (values above the last full multiple are drawn again)."""
        limit = (1 << 64) // bound * bound
        while True:
            value = int(self._bits.random_raw())
            if value < limit:
                return value % bound

    def sample(self, items: list[_T], count: int) -> list[_T]:
        """`count` different items in random order (the first steps of a Fisher-Yates shuffle)."""
        rest = list(items)
        for i in range(count):
            j = i + self.below(len(rest) - i)
            rest[i], rest[j] = rest[j], rest[i]
        return rest[:count]


@dataclass(frozen=True)
class EpisodeList:
    """A fixed list of test episodes.

    Attributes:
        dataset: name of the data set it was drawn from.
        fold: fold whose novel classes are tested.
        shots: references per episode (K).
        seed: seed of the draw.
        episodes: the episodes in order.
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
    def pictures(self) -> set[str]:
        """Every picture that is a query or a support: what no training stage may see."""
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
        order: Literal["random", "each"] = "random",
        replacement: bool = False,
        skip_rare: bool = False,
    ) -> EpisodeList:
        """Draw a list from the novel classes of a fold.

        Args:
            index: data set of test pictures.
            fold: which of its folds.
            shots: references per episode, at least 1.
            num_episodes: length of the list; not used by order "each".
            seed: seed of the draw.
            protocol: name written into the list.
            order: "random" draws a class, then a query, then supports, each uniformly; "each" takes every picture
                of every class once as query.
            replacement: let supports repeat each other (HSNet's line does for K > 1); the query is never one.
            skip_rare: leave out classes with too few pictures instead of refusing.

        Returns:
            The list; equal arguments give an equal list on every machine.

        Raises:
            ValueError: no such fold, fewer than one shot, or a class has too few pictures.
        """
        if shots < 1:
            raise ValueError(f"episodes need at least 1 shot, got {shots}.")
        needed = 2 if replacement else shots + 1
        pictures = _pictures_by_class(index, fold, needed, shots, skip_rare)
        random = PortableRandom("episodes", index.name, fold, shots, seed)
        classes = list(pictures)
        if order == "each":
            queries = [(c, q) for c in classes for q in pictures[c]]
        else:
            drawn = (classes[random.below(len(classes))] for _ in range(num_episodes))
            queries = [(c, pictures[c][random.below(len(pictures[c]))]) for c in drawn]
        episodes = []
        for class_id, query in queries:
            others = [picture for picture in pictures[class_id] if picture != query]
            if replacement:
                support = [others[random.below(len(others))] for _ in range(shots)]
            else:
                support = random.sample(others, shots)
            episodes.append(EpisodeSpec(class_id, query, tuple(support)))
        return cls(index.name, fold, shots, seed, tuple(episodes), protocol)

    def save(self, path: str | Path) -> None:
        """Write the list as JSON, one episode a line, with its content hash."""
        content = self._content()
        lines = ",\n".join(json.dumps(episode) for episode in content.pop("episodes"))
        head = json.dumps(content | {"sha256": self.content_hash})[:-1]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(f'{head}, "episodes": [\n{lines}\n]}}\n', encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, dataset: str = "") -> EpisodeList:
        """Read a list, also a plain one without format and hash (`category_id` in place of `class_id`).

        Args:
            path: the JSON file.
            dataset: name for a list that does not say its own.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no episode list, or its content does not match its hash.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"episode list '{file}' does not exist: draw one with `fsdino episodes`.")
        try:
            raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            episodes = tuple(
                EpisodeSpec(int(e.get("class_id", e.get("category_id"))), str(e["query"]), tuple(e["support"]))
                for e in raw["episodes"]
            )
            name = raw.get("dataset", dataset)
            found = cls(name, int(raw["fold"]), int(raw["shots"]), int(raw["seed"]), episodes, raw.get("protocol", ""))
        except (KeyError, TypeError, ValueError) as error:
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
        """Check that every episode is possible on a data set as it lies on disk.

        Args:
            index: data set of test pictures.

        Raises:
            ValueError: a class is not of this fold, a picture is missing or does not count for its class, the query is
                among the supports, or the number of supports is wrong; the message names the first such episode.
        """
        novel = set(index.novel_classes(self.fold))
        known = {class_id: set(index.pictures(class_id)) for class_id in novel}
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
    for picture in (episode.query, *episode.support):
        if picture not in known[episode.class_id]:
            return f"picture '{picture}' is missing or does not count for class {episode.class_id}"
    return ""


def _pictures_by_class(
    index: ClassIndex, fold: int, needed: int, shots: int, skip_rare: bool
) -> dict[int, list[str]]:
    pictures = {class_id: sorted(index.pictures(class_id)) for class_id in index.novel_classes(fold)}
    rare = [class_id for class_id, found in pictures.items() if len(found) < needed]
    if rare and not skip_rare:
        raise ValueError(
            f"class '{index.class_names[rare[0]]}' of '{index.name}' fold {fold} has {len(pictures[rare[0]])} "
            f"picture(s), {shots}-shot episodes need {needed}; add pictures, take fewer shots, or leave such classes "
            f"({len(rare)} here) out with skip_rare."
        )
    pictures = {class_id: found for class_id, found in pictures.items() if class_id not in rare}
    if not pictures:
        raise ValueError(f"no class of '{index.name}' fold {fold} has the {needed} pictures that {shots}-shot "
                         "episodes need; add pictures or take fewer shots.")
    return pictures
