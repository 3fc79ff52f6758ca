"""Renderers of the tables on prompts and on 'absent'."""

from __future__ import annotations

from pathlib import Path

from cells import ONE, Row, groups, interval, markdown_table

DRAWN = {"drawn, trained decoder": "trained decoder", "drawn, SAM's decoder": "SAM's decoder",
         "drawn": "with a second look", "drawn, teacher": "the teacher itself",
         "found": "then found elsewhere"}  # fmt: skip


def prompts(rows: list[Row], _: Path) -> str:
    """Kinds of references, then corrections and 'not this'."""
    by_kind = groups((row for row in rows if row["part"] in DRAWN), lambda row: row["prompt"])
    shown = []
    for kind, found in by_kind.items():
        cells = {row["part"]: ONE(row["iou"]) for row in found}
        cells["found"] += f" ({interval([row for row in found if row['part'] == 'found'])})"
        shown.append({"kind": kind} | cells)
    first = markdown_table(shown, {"kind": "reference"} | DRAWN, dict.fromkeys(DRAWN, str))
    names = {"corrected": "corrections", "not this": "a second class in the image: IoU",
             "mistaken": "share of it taken for the object"}  # fmt: skip
    rest = [row | {"what": names[row["part"]], "value": f"{ONE(row['iou'])} ({interval([row])})"}
            for row in rows if row["part"] in names]  # fmt: skip
    for row in rest:
        if row["part"] != "corrected":
            row["prompt"] += " a negative reference"
    columns = {"what": "", "prompt": "given", "value": "percent", "number": "episodes"}
    return first + "\n" + markdown_table(rest, columns, {"value": str, "number": str})


def presence(rows: list[Row], _: Path) -> str:
    """How well signals tell presence, and what the gate does to masks."""
    columns = {"signal": "signal", "auroc": "AUROC", "error": "error at one half", "missed": "present, missed",
               "false_alarms": "absent, seen", "ece": "calibration error", "miou_there": "mIoU, all present",
               "miou_there_gated": "gated", "miou_all": "mIoU, half absent",
               "miou_all_gated": "gated, half absent"}  # fmt: skip
    return markdown_table(rows, columns, dict.fromkeys([name for name in columns if name != "signal"], ONE))
