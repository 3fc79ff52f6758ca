"""Does a SAM that redraws the training-free chain's masks help? `python -m benchmarks.accuracy.refined`.

The chain on the small real ViT, alone and behind the bundled small SAM, on the first episodes of a fixed list of
photographs. That SAM has seen drawn scenes alone, so the rows say whether redrawing does harm, not what an official
SAM would gain. `agreement` 0 believes SAM always.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import RESULTS, ROOT, Row, provenance, run_script, update_rows
from fsdino.base.bundled import bundled_file
from fsdino.base.method import FewShotMethod
from fsdino.data.catalog import open_data_set
from fsdino.data.class_index import ClassIndex
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.evaluation.measure import evaluate
from fsdino.methods.chain import ChainMethod
from fsdino.methods.refined import RefinedMethod
from fsdino.teachers.sam import SamTeacher

SHARED = ROOT.parent / "shared"
UNLABELLED = 48  # photographs that the chain's means are of


def subjects(chain: ChainMethod, sam: SamTeacher) -> list[tuple[str, float | str, FewShotMethod]]:
    """Name, agreement and method of every row; all share one chain."""
    found: list[tuple[str, float | str, FewShotMethod]] = [("chain", "", chain)]
    for agreement in (0.5, 0.0):
        found.append((f"chain, redrawn by {sam.name}", agreement, RefinedMethod(chain, sam, agreement=agreement)))
    return found


def measure(method: FewShotMethod, index: ClassIndex, episodes: EpisodeList) -> Row:
    """Scores in percent, with the 95 % interval of the mIoU."""
    with TemporaryDirectory() as folder:
        found = evaluate(method, index, episodes, folder)
    shares = {"miou": found.score.miou, "low": found.interval.low, "high": found.interval.high}
    shares |= {"fb_iou": found.score.fb_iou}
    return {name: round(100 * share, 3) for name, share in shares.items()}


def main(
    root: Path = SHARED / "data" / "coco386",
    weights: Path = SHARED / "weights" / "vit_tiny_patch16_224.safetensors",
    sam: str = "",
    fold: int = 0,
    episodes: int = 60,
    img_size: int = 448,
    csv: Path = RESULTS / "refined.csv",
) -> None:
    """Measure all three and write their rows.

    Args:
        root: of the photographs.
        weights: of the encoder, timm's vit_tiny_patch16_224.
        sam: a SAM's file or official name; the bundled one when left out.
        episodes: how many of the fixed list, from its start.
    """
    index = open_data_set("coco386", root)
    whole = EpisodeList.load(root / "episodes" / f"fold{fold}_1shot.json", "coco386")
    some = replace(whole, episodes=whole.episodes[:episodes])
    chain = ChainMethod.build("vit_tiny_patch16_224", img_size, encoder_weights=str(weights)).eval()
    chain.fit_means(index.load_image(name) for name in sorted(index.all_images())[:UNLABELLED])
    teacher = SamTeacher.from_checkpoint(sam or bundled_file("tiny_sam"))
    head = {"data": f"coco386 fold {fold}", "episodes": len(some)}
    about = provenance(protocol="fixed list, original size")
    for name, agreement, method in subjects(chain, teacher):
        row = {"method": name, "agreement": agreement, **head, **measure(method.eval(), index, some)}
        update_rows(csv, [row | about], ("method", "agreement", "data"))
        print(row, flush=True)


if __name__ == "__main__":
    run_script(main)
