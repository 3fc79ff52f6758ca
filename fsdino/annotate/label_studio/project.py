"""One project of Label Studio: what is drawn in it, kept as lessons that follow its annotations."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fsdino.annotate.drawn import reference
from fsdino.annotate.label_studio.canvas import Canvas, answer, clicked, drawn, labels_of, named, read_canvas
from fsdino.annotate.label_studio.pictures import Pictures
from fsdino.annotate.lessons import Lesson, Lessons
from fsdino.base.result import LabelMap

Task = Mapping[str, Any]
Region = Mapping[str, Any]


class Project:
    """The annotated tasks of a project and the memories made of them.

    Args:
        label_config: the project's labelling configuration.
        lessons: what is remembered; belongs to this project alone.
        split_instances: one brush region per connected part.
    """

    def __init__(self, label_config: str, lessons: Lessons, pictures: Pictures, split_instances: bool = False) -> None:
        self.lessons, self.pictures, self.split_instances = lessons, pictures, split_instances
        self.canvas: Canvas = read_canvas(label_config)
        self.label_config = label_config
        self._tasks: dict[int, tuple[Task, dict[int, Region]]] = {}
        # Tasks of which something was told, and annotations that were deleted, since the last reading began.
        self._changed: set[int] = set()
        self._gone: set[int] = set()
        self._lock = threading.RLock()

    def configure(self, label_config: str) -> None:
        """Follow a change of the labelling configuration."""
        with self._lock:
            if label_config != self.label_config:
                self.canvas, self.label_config = read_canvas(label_config), label_config
                for task in self._tasks:
                    self._teach(task)

    def learn(self, tasks: Iterable[Task]) -> None:
        """Know the annotations of these tasks and of no others; they may come slowly, and others change meanwhile."""
        with self._lock:
            self._changed, self._gone = set(), set()
        known = {int(task["id"]): (_bare(task), _by_id(task.get("annotations") or ())) for task in tasks}
        with self._lock:
            # What was told while they were read is newer than what was read.
            known |= {number: self._tasks.get(number, (known.get(number, ({},))[0], {})) for number in self._changed}
            self._tasks = {number: (task, self._left(given)) for number, (task, given) in known.items() if given}
            self.lessons.replace({})
            for number in self._tasks:
                self._teach(number)

    def annotated(self, task: Task, annotation: Mapping[str, Any]) -> None:
        """An annotation was made or changed."""
        with self._lock:
            number = int(task["id"])
            annotations = self._tasks[number][1] if number in self._tasks else {}
            self._tasks[number] = _bare(task), {**annotations, **_by_id([annotation])}
            self._changed.add(number)
            self._teach(number)

    def annotations_deleted(self, annotations: Iterable[int]) -> None:
        """Annotations are gone."""
        with self._lock:
            self._gone |= (gone := set(annotations))
            for number, (task, known) in list(self._tasks.items()):
                if gone & known.keys():
                    self._tasks[number] = task, self._left(known)
                    self._teach(number)

    def tasks_deleted(self, tasks: Iterable[int]) -> None:
        """Tasks are gone."""
        with self._lock:
            for number in tasks:
                self._tasks.pop(number, None)
                self._changed.add(number)
                self.lessons.drop(number)

    def _left(self, annotations: Mapping[int, Region]) -> dict[int, Region]:
        return {key: one for key, one in annotations.items() if key not in self._gone}

    def predict(self, task: Task) -> dict[str, Any]:
        """Search a task's picture: `result`, `score` and `model_version`.

        Raises:
            ValueError, OSError: if the picture cannot be read, or nothing of use is drawn yet.
        """
        version, image = self.lessons.version(), self._picture(task)
        found = self.lessons.find(image, self.canvas.labels)
        return {**answer(self.canvas, found, self.split_instances), "model_version": version}

    def draw(self, task: Task, regions: Sequence[Region]) -> dict[str, Any]:
        """Answer clicks or a box in the editor with the mask that they mark, as `predict` does.

        Raises:
            ValueError: if the model draws no masks from clicks, or the label has no mask to be drawn with.
        """
        if (drawer := self.lessons.drawer()) is None:
            raise ValueError("this model draws no masks from clicks; run one in torch that takes points, as FS-DINO.")
        image = self._picture(task)
        label = next((name for region in regions for name in named(region)), "")
        hint = clicked(regions[0])
        for region in regions[1:]:
            more = clicked(region)
            hint.boxes, hint.points = hint.boxes + more.boxes, hint.points + more.points
        one = reference(hint, image, f"task {task['id']}", drawer)
        mask = np.zeros(image.shape[:2], bool) if one is None else np.asarray(one.mask) > 0
        found = LabelMap(mask.astype(np.uint8), mask.astype(np.float32), {label: 1.0}, {label: None})
        if label not in self.canvas.labels:
            raise ValueError(f"{label!r} cannot be answered with a mask; add it to the BrushLabels of the project.")
        return {**answer(self.canvas, found), "model_version": self.lessons.version()}

    def _picture(self, task: Task) -> np.ndarray:
        data = task.get("data")
        return self.pictures.read(data.get(self.canvas.field, "") if isinstance(data, dict) else "")

    def _teach(self, number: int) -> None:
        """Make the lesson of a task anew."""
        task, annotations = self._tasks[number]
        chosen = _chosen(annotations.values())
        regions = chosen["result"] if chosen else ()
        labels = labels_of(self.canvas, regions)
        if chosen is None or not labels:
            self.lessons.drop(number)
            return
        stamp = f"{chosen.get('updated_at') or chosen.get('created_at')} {chosen['id']}"
        picture, draw = partial(self._picture, task), partial(drawn, self.canvas, regions)
        self.lessons.put(number, Lesson(stamp, labels, picture, draw, f"task {number}"))


def _chosen(annotations: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The annotation of a task that counts: what is marked as ground truth, and of these the latest."""
    given = [one for one in annotations if not one.get("was_cancelled")]
    return max(given, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at") or "")), default=None)


def _by_id(annotations: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    packed = ((one, [_packed(region) for region in one.get("result") or ()]) for one in annotations)
    return {int(one["id"]): {**one, "result": regions} for one, regions in packed}


def _packed(region: Region) -> Region:
    """A region whose run lengths are bytes: as a list of numbers they take eight times the memory."""
    value = region.get("value") if isinstance(region, dict) else None
    if not isinstance(value, dict) or not isinstance(value.get("rle"), list):
        return region if isinstance(region, dict) else {}
    try:
        return {**region, "value": {**value, "rle": bytes(value["rle"])}}
    # Numbers that are no bytes stay, and are refused where the region is drawn, with the task's name.
    except (ValueError, TypeError):
        return region


def _bare(task: Task) -> Task:
    return {"id": task["id"], "data": task.get("data")}
