"""Published evaluation protocols by name: seed, number of episodes, scoring resolution, training images, supports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fsdino.data.catalog import data_sets
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList, Order
from fsdino.data.episodes.filters import TrainFilter

_LVIS_AND_PARTS = {"lvis92i": 2300, "pascal-part": 2500, "paco-part": 2500}


@dataclass(frozen=True)
class Protocol:
    """How a published line of work measures.

    The seed is this package's: each line draws with its own random numbers, which cannot be had from the outside. So a
    list follows a protocol in number and manner, and in its queries where these are walked (`orders`), but not in its
    supports.

    Attributes:
        episodes: data set -> episodes a fold, where it differs from `default_episodes`.
        orders: data set -> order of `EpisodeList.draw`, where it differs from the data set's own.
        scoring: "network" scores at the network's square, "original" at the image's own size.
    """

    name: str
    source: str
    seed: int = 0
    episodes: dict[str, int] = field(default_factory=dict)
    default_episodes: int = 1000
    orders: dict[str, Order] = field(default_factory=dict)
    scoring: Literal["network", "original"] = "original"
    train_filter: TrainFilter = "none"
    replacement: bool = False

    def num_episodes(self, dataset: str) -> int:
        """Episodes a fold, for order "random"."""
        return self.episodes.get(dataset, self.default_episodes)

    def draw(
        self,
        index: ClassIndex,
        fold: int,
        shots: int = 1,
        num_episodes: int | None = None,
        seed: int | None = None,
        skip_rare: bool = False,
    ) -> EpisodeList:
        """Draw this protocol's list; number and seed replace the protocol's, the rest is as in `EpisodeList.draw`."""
        # An index of a name that the catalog does not know is a user's own.
        described = data_sets().get(index.name)
        order: Order = "random" if described is None else described.order
        return EpisodeList.draw(
            index,
            fold,
            shots,
            num_episodes=self.num_episodes(index.name) if num_episodes is None else num_episodes,
            seed=self.seed if seed is None else seed,
            protocol=self.name,
            order=self.orders.get(index.name, order),
            replacement=self.replacement,
            skip_rare=skip_rare,
        )


_LISTED = (
    Protocol("fsdino", "this package", episodes=_LVIS_AND_PARTS | {"coco386": 250}),
    Protocol(
        "hsnet",
        "HSNet, DCAMA, VRP-SAM",
        orders={"pascal5i": "pairs"},
        scoring="network",
        train_filter="hsnet",
        replacement=True,
    ),
    Protocol(
        "pfenet",
        "PFENet, BAM, FSSAM",
        seed=321,
        episodes={"coco20i": 4000},
        orders={"pascal5i": "pairs"},
        train_filter="pfenet",
    ),
    Protocol(
        "sansa",
        "SANSA",
        episodes=_LVIS_AND_PARTS,
        orders={"pascal5i": "pairs"},
        scoring="network",
        train_filter="hsnet",
        replacement=True,
    ),
    Protocol("matcher-lvis", "Matcher, GF-SAM", episodes=_LVIS_AND_PARTS, scoring="network"),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _LISTED}


def protocol(name: str) -> Protocol:
    """A preset by name."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol '{name}'; known: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
