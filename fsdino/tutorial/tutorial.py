# %% [markdown]
# # FS-DINO in five minutes
#
# Masks of your objects, in your pictures, from a few examples: your own data, references, masks, adaptation, export.
# Everything below runs as it stands, on a CPU and without a network; the last step is left out where onnxruntime is not
# installed. The page, the notebook and the tests are made from one script, `fsdino/tutorial/tutorial.py`.
#
# The bundled model knows the embedded world of shapes and textures, so that world stands in for your photographs here.
# For photographs take a model that was trained on them (`recipes/`).
# %%
import json
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image

import fsdino
from fsdino import Reference
from fsdino.cli import main as fsdino_command
from fsdino.data.world.index import SyntheticWorld

torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
quick = bool(os.environ.get("FSDINO_TUTORIAL_QUICK"))  # the tests take fewer pictures and shorter training

# %% [markdown]
# ## Your own data
#
# A folder per class, picture and mask of one name side by side: `mine/<class>/a.png` with `a_mask.png`, or `a.jpg` with
# `a.png`. Here three classes that the model has never seen are written to disk.
# %%
world, classes = SyntheticWorld("novel"), {0: "first", 7: "second", 19: "third"}
count = 6 if quick else 12
for class_id, name in classes.items():
    Path("mine", name).mkdir(parents=True, exist_ok=True)
    for picture in world.pictures(class_id)[:count]:
        stem = picture.replace("/", "-")
        Image.fromarray(world.load_image(picture)).save(f"mine/{name}/{stem}.png")
        Image.fromarray(world.load_mask(picture, class_id) * 255).save(f"mine/{name}/{stem}_mask.png")

# %% [markdown]
# ## References
#
# One picture with a mask is enough. A click, a box or a scribble will do as well, and references of all kinds mix. What
# a reference with `negative=True` shows is not meant.
# %%
model = fsdino.load("tiny")
pictures = sorted(p for p in Path("mine/first").glob("*.png") if not p.stem.endswith("_mask"))
image, mask = Image.open(pictures[0]), Image.open(pictures[0].with_name(f"{pictures[0].stem}_mask.png"))
left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)

by_mask = model.remember([Reference(image, mask=mask)])
by_box = model.remember([Reference(image, box=(left, top, right - 1, bottom - 1))])
by_click = model.remember([Reference(image, points=[((left + right) // 2, (top + bottom) // 2)])])

# %% [markdown]
# ## Masks
#
# `remember` is paid once, `segment` per picture. The result is at the picture's own size, with the model's own estimate
# of the mask's quality and the probability that the object is there at all.
# %%
other = Image.open(pictures[1])
for name, memory in {"mask": by_mask, "box": by_box, "click": by_click}.items():
    found = model.segment(memory, other)
    print(f"from a {name}: {int(found.mask.sum())} pixels, score {found.score:.2f}, presence {found.presence:.2f}")

# %% [markdown]
# Several classes at once cost one pass of the encoder and give a label map. A click on what is wrong corrects a result.
# %%
memories = {"first": by_mask}
for name in ("second", "third"):
    shown = sorted(Path(f"mine/{name}").glob("*_mask.png"))[0]
    whole = shown.with_name(shown.name.replace("_mask", ""))
    memories[name] = model.remember([Reference(Image.open(whole), mask=Image.open(shown))])
scene = model.segment(memories, other)
for part in scene.instances(min_pixels=20):
    print(part.name, part.box, round(part.score, 2))

corrected = model.refine(by_mask, other, points=[(other.width // 2, other.height // 2)], labels=[0])
print(f"without what is in the middle: {int(corrected.mask.sum())} pixels")

# %% [markdown]
# ## The same from the shell
#
# `fsdino predict --support mine --images photos --out out` writes PNG label maps and overlays, and with `--formats`
# COCO JSON and YOLO polygons. In place of a mask, `a.json` beside `a.png` may hold `points` and `labels`, a `box` or a
# `scribble`. From Python the command is called like this:
# %%
Path("refs/first").mkdir(parents=True, exist_ok=True)
image.save("refs/first/a.png")
Path("refs/first/a.json").write_text(json.dumps({"box": [left, top, right - 1, bottom - 1]}))
Path("photos").mkdir(exist_ok=True)
other.save("photos/b.png")
code = fsdino_command(["predict", "--support", "refs", "--images", "photos", "--out", "out"])
print(code, sorted(str(path) for path in Path("out").rglob("*.png")))

# %% [markdown]
# ## Adapt to your own classes
#
# With six pictures of a class or more, the model can learn yours. No folds are needed: of every class a quarter of the
# pictures is kept for the test, a fifth of the rest chooses the checkpoint, and the others are trained on. A recipe
# says so; `recipes/own_folder.yaml` is the same. From the shell: `fsdino run --config mine.yaml`.
# %%
Path("mine.yaml").write_text("""\
data:
  train: [{name: own, root: mine}]
  test: {name: own, root: mine}
  in_domain: true
  val_by: pictures
train: {init_from: tiny, lr: 3.0e-4}
log: {wandb: "off"}
""")
effort = {"train.epochs": 3, "train.epoch_length": 96, "train.batch_size": 8, "presence.episodes": 200,
          "data.val_episodes": 30, "data.test_episodes": 60}  # fmt: skip
if quick:
    effort = {"train.epochs": 1, "train.epoch_length": 4, "train.batch_size": 2, "presence.episodes": 8,
              "data.val_episodes": 3, "data.test_episodes": 3}  # fmt: skip
code = fsdino_command(["run", "--config", "mine.yaml", *(f"--{key}={value}" for key, value in effort.items())])
(export,) = Path("runs/mine").glob("*/export")

# %% [markdown]
# ## Keep and export
#
# The run's `export` folder opens like any model. A remembered class is a small file.
# %%
adapted = fsdino.load(export)
found = adapted.segment(adapted.remember([Reference(image, mask=mask)]), other)
print(f"adapted: {int(found.mask.sum())} pixels, presence {found.presence:.2f}")
code = fsdino_command(["remember", "--support", "mine/first", "--model", str(export), "--out", "first.fsmem"])
print(code, Path("first.fsmem").stat().st_size, "bytes")

# %% [markdown]
# `fsdino export` writes ONNX graphs, and `fsdino predict --runtime onnx` runs them without torch; both need
# `pip install fsdino[onnx]`. What was remembered in torch serves there too.
# %%
if find_spec("onnxruntime") and find_spec("onnxscript"):
    code = fsdino_command(["export", "--model", str(export), "--formats", "onnx", "--out", "graphs"])
    options = ["--support", "first.fsmem", "--images", "photos", "--out", "out-onnx"]
    code = fsdino_command(["predict", "--runtime", "onnx", "--model", "graphs", *options])
    print(code, sorted(str(path) for path in Path("out-onnx").rglob("*.png")))
