"""The commands `fsdino data` and `fsdino episodes`. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from fsdino.base.ranges import Episodes, Number, Seed, Shots, within_ranges
from fsdino.data.catalog import data_set, open_data_set
from fsdino.data.check import check_data_set
from fsdino.data.download import download as download_data_set
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.episodes.protocols import protocol as protocol_named


@within_ranges
def data(
    name: str, root: str | None = None, samples: Number = 20, download: bool = False, accept_licence: bool = False
) -> int:
    """Say what of a data set is on disk, what is missing and which file to fetch; or fetch it.

    Args:
        name: the data set, for instance pascal5i, coco20i, fss1000, folder, synthetic.
        root: the folder it lies in.
        samples: images to open with their masks.
        download: fetch what is missing from the data set's home, where that takes no login; goes on after a break.
        accept_licence: its licence is accepted; asked for otherwise.
    """
    if download:
        entry = data_set(name)
        entry.insist_on_root(root)
        # `insist_on_root` lets only what comes with the package go without one, and that has nothing to fetch.
        for line in download_data_set(entry, Path(root or "."), accept_licence):
            print(f"  fetched  {line}")
    report = check_data_set(name, root, samples)
    print(report)
    return 0 if report.ok else 1


@within_ranges
def episodes(
    name: str,
    root: str | None = None,
    fold: Number = 0,
    shots: Shots = 1,
    protocol: str = "fsdino",
    number: Episodes | None = None,
    seed: Seed | None = None,
    out: str | None = None,
    verify: str | None = None,
    skip_rare: bool = False,
) -> int:
    """Draw a fixed list of test episodes, or verify one against the data on disk.

    Args:
        name: the data set.
        root: the folder it lies in.
        fold: which of its folds.
        shots: references per episode.
        protocol: fsdino, hsnet, pfenet, sansa or matcher-lvis.
        number: episodes, in place of the protocol's.
        seed: in place of the protocol's.
        out: JSON file to write; printed as a summary only where it is left out.
        verify: an existing list to check instead of drawing.
        skip_rare: leave out classes with too few images instead of refusing.
    """
    index = open_data_set(name, root, "test")
    if verify is not None:
        drawn = EpisodeList.load(Path(verify), index.name)
        drawn.verify(index)
    else:
        drawn = protocol_named(protocol).draw(index, fold, shots, number, seed=seed, skip_rare=skip_rare)
        if out is not None:
            drawn.save(Path(out))
    print(
        f"{drawn.dataset} fold {drawn.fold}, {drawn.shots} shot(s), seed {drawn.seed}: {len(drawn)} episodes of "
        f"{len(drawn.class_ids)} classes, {len(drawn.images)} images, sha256 {drawn.content_hash[:16]}"
        + (f", written to {out}" if out and verify is None else ", verified" if verify else "")
    )
    return 0
