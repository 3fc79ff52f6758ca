"""What a person does in Label Studio, through its own SDK; runs in the Label Studio's environment, without fsdino.

Called as `python sdk_annotator.py URL TOKEN ACTION FOLDER [ARGUMENTS]`; prints JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import requests
from label_studio_sdk import LabelStudio
from label_studio_sdk.converter.brush import decode_rle, mask2rle

URL, TOKEN, ACTION, FOLDER = sys.argv[1:5]
client = LabelStudio(base_url=URL, api_key=TOKEN)
CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="tag" toName="image"><Label value="thing"/><Label value="other"/></BrushLabels>
<KeyPointLabels name="click" toName="image" smart="true"><Label value="thing"/></KeyPointLabels></View>"""


def region(mask: np.ndarray, label: str = "thing") -> dict[str, Any]:
    """A brush region as the SDK writes it."""
    height, width = mask.shape
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    value = {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [label]}
    return {"from_name": "tag", "to_name": "image", "type": "brushlabels", "value": value, **size}


def masks_of(results: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Label to mask, as the SDK reads regions."""
    found: dict[str, np.ndarray] = {}
    for one in results:
        size = (one["original_height"], one["original_width"], 4)
        mask = decode_rle(one["value"]["rle"]).reshape(size)[..., 3] > 0
        label = one["value"]["brushlabels"][0]
        found[label] = mask | found.get(label, False)
    return found


def draw(task: int, name: str) -> int:
    """Annotate a task with the true mask of its picture."""
    mask = np.load(Path(FOLDER) / f"{name}.npy")
    return client.annotations.create(id=task, result=[region(mask)]).id


def call(path: str, **body: Any) -> Any:
    """What the SDK has no method for."""
    headers = {"Authorization": f"Token {TOKEN}"}
    answer = requests.post(f"{URL}{path}", headers=headers, json=body, timeout=120)
    answer.raise_for_status()
    return answer.json()


def create(drawn: str) -> dict[str, Any]:
    """A project of all pictures of the folder, the first of them drawn."""
    project = client.projects.create(title="world", label_config=CONFIG)
    for path in sorted(Path(FOLDER).glob("*.png")):
        with path.open("rb") as file:
            headers = {"Authorization": f"Token {TOKEN}"}
            files = {"file": (path.name, file, "image/png")}
            requests.post(f"{URL}/api/projects/{project.id}/import", headers=headers, files=files, timeout=60)
    tasks = {}
    for task in client.tasks.list(project=project.id, fields="all"):
        tasks[Path(task.data["image"]).stem.split("-")[-1]] = task.id
    for name in sorted(tasks)[: int(drawn)]:
        draw(tasks[name], name)
    return {"project": project.id, "tasks": tasks}


def connect(project: str, backend: str) -> dict[str, Any]:
    """Connect the backend, and ask it for predictions of all tasks as the button in the Data Manager does."""
    made = client.ml.create(url=backend, project=int(project), title="fsdino", is_interactive=True)
    return {"id": made.id, "state": str(made.state)}


def retrieve(project: str) -> Any:
    """The action "Retrieve predictions" on all tasks."""
    return call(f"/api/dm/actions/?id=retrieve_tasks_predictions&project={project}", selectedItems={"all": True})


def predictions(project: str) -> dict[str, Any]:
    """Task to the versions of its predictions; masks of the latest are saved beside the pictures."""
    found = {}
    for task in client.tasks.list(project=int(project), fields="all"):
        latest = max(task.predictions or [], key=lambda one: dict(one)["id"], default=None)
        found[task.id] = [dict(one)["model_version"] for one in task.predictions or []]
        for label, mask in masks_of(dict(latest)["result"] if latest else []).items():
            np.save(Path(FOLDER) / f"found-{task.id}-{label}.npy", mask)
    return found


def accept(project: str) -> dict[str, Any]:
    """Take predictions over as annotations, and export: task to labels; masks are saved beside the pictures."""
    call(f"/api/dm/actions/?id=predictions_to_annotations&project={project}", selectedItems={"all": True})
    headers = {"Authorization": f"Token {TOKEN}"}
    path = f"{URL}/api/projects/{project}/export?exportType=JSON"
    labels = {}
    for task in requests.get(path, headers=headers, timeout=60).json():
        masks = masks_of(task["annotations"][0]["result"])
        labels[task["id"]] = sorted(masks)
        for label, mask in masks.items():
            np.save(Path(FOLDER) / f"exported-{task['id']}-{label}.npy", mask)
    return labels


def click(backend: str, task: str, x: str, y: str) -> Any:
    """Click on an object with the smart key point, as the editor does; positions are percentages."""
    value = {"x": float(x), "y": float(y), "width": 0.5, "keypointlabels": ["thing"]}
    one = {"type": "keypointlabels", "value": value, "from_name": "click", "to_name": "image", "is_positive": True}
    size = {"original_width": 1, "original_height": 1} | json.loads((Path(FOLDER) / "size.json").read_text())
    answer = call(f"/api/ml/{backend}/interactive-annotating", task=int(task), context={"result": [one | size]})
    if answer.get("data"):
        for label, mask in masks_of(answer["data"]["result"]).items():
            np.save(Path(FOLDER) / f"clicked-{task}-{label}.npy", mask)
    return answer.get("errors", [])


if __name__ == "__main__":
    actions = {"draw": lambda task, name: draw(int(task), name), "create": create, "connect": connect}
    actions |= {"retrieve": retrieve, "predictions": predictions, "accept": accept, "click": click}
    print(json.dumps(actions[ACTION](*sys.argv[5:])))
