"""What exporting costs in accuracy: `python -m benchmarks.accuracy.runtimes`.

One model in torch (float32 and bfloat16) and as exported graphs (onnxruntime float32 and 8 bit, OpenVINO where it is
installed) on the same episodes of novel classes, counted at the images' own size. How fast they are is measured by
`benchmarks.cost.speed --what [onnx]`.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.common import ONE_SHOT, RESULTS, Row, provenance, run_script, write_rows
from fsdino.base.method import FewShotMethod
from fsdino.base.storage import fingerprint, load
from fsdino.data.episodes.episode import EpisodeData, collate_episodes
from fsdino.data.episodes.episode_list import EpisodeList
from fsdino.data.world.index import SyntheticWorld
from fsdino.evaluation.measure import predict_episode
from fsdino.export.command import export_graphs
from fsdino.export.onnx_method import OnnxMethod
from fsdino.metrics.few_shot import FewShotIoU

BAR = 0.5  # mIoU that a cheaper form may lose


def forms(model: str, folder: Path) -> dict[str, FewShotMethod]:
    """The same weights in every form, torch in float32 first."""
    threads = torch.get_num_threads()
    with torch.enable_grad():  # the exporter's own checks switch it off
        export_graphs(load(model, method="fsdino"), folder, ("onnx", "int8"))
    found: dict[str, FewShotMethod] = {
        "torch float32": load(model, method="fsdino"),
        "torch bfloat16": load(model, method="fsdino").to(torch.bfloat16),
        "onnxruntime float32": OnnxMethod(folder, threads),
        "onnxruntime int8": OnnxMethod(folder / "int8", threads),
    }
    if find_spec("openvino") is not None:
        from fsdino.predict.engines.openvino import OpenvinoEngine

        found["OpenVINO float32"] = OnnxMethod(folder, threads, OpenvinoEngine)
    return found


@torch.no_grad()
def measure(methods: dict[str, FewShotMethod], number: int | None) -> list[Row]:
    """mIoU of every method on the first `number` episodes of the list, each episode painted once for all."""
    index, episodes = SyntheticWorld("novel"), EpisodeList.load(ONE_SHOT)
    data = EpisodeData(index, episodes, next(iter(methods.values())).resize)
    counted = {name: FewShotIoU(episodes.class_ids) for name in methods}
    total = min(len(episodes), number or len(episodes))
    for i in range(total):
        batch = collate_episodes([data[i]])
        for name, method in methods.items():
            truth = batch["query_mask_original"][0]
            logits = method.resize.invert(predict_episode(method, batch, 0)[0], (truth.shape[-2], truth.shape[-1]))
            counted[name].update([logits.sigmoid() > method.threshold], [truth], batch["class_id"])
        if (i + 1) % 50 == 0:
            print(f"{i + 1} of {total} episodes", flush=True)
    whole = 100 * float(counted["torch float32"].compute().miou)
    rows = []
    for name, metric in counted.items():
        miou = 100 * float(metric.compute().miou)
        lost = whole - miou
        rows.append({"form": name, "episodes": total, "novel mIoU": f"{miou:.2f}", "lost": f"{lost:+.2f}",
                     "bar": f"<= {BAR}", "met": "yes" if lost <= BAR else "no"})  # fmt: skip
    return rows


def main(model: str = "tiny", number: int | None = None, csv: Path = RESULTS / "runtimes.csv") -> None:
    """Export, measure (on the first episodes, to try the script) and write the CSV."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(forms(model, Path(folder)), number)
    name = fingerprint(load(model, method="fsdino"))
    about = provenance(precision="as said", seed=0, protocol=f"model {model} ({name}), {ONE_SHOT.name}")
    write_rows(csv, [row | about for row in rows])
    for row in rows:
        print("  ".join(str(value) for value in row.values()))


if __name__ == "__main__":
    run_script(main)
