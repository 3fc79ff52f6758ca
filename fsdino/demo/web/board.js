// The drawing board: an image, and marks over it in the image's own pixels (pixel centres at whole numbers).
const find = (selector) => element.querySelector(selector);
const board = find(".board"), canvas = find("canvas"), ink = canvas.getContext("2d");
const chooser = find("input.file"), width = find("input[type=range]"), negative = find(".negative input");
const HINTS = {
  outline: "Draw around the object; the inside is filled.", brush: "Paint over the object.",
  erase: "Take away what was painted.", scribble: "One stroke along the object is enough.",
  box: "Drag a box around the object.", click: "Click on the object.", off: "Click where the object is not.",
};
const OBJECT = [86, 180, 233], STRANGER = [213, 94, 0];
const KEYS = "Arrows move the pen (with Shift by one pixel), Enter puts it down and lifts it, Escape drops the mark.";
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let tool = "outline", marks = [], current = null, pointer = null, image = null, size = null, pen = null;

const colour = (alpha = 1) => `rgba(${(negative.checked ? STRANGER : OBJECT).join(",")},${alpha})`;
const scale = () => canvas.width / size.width;
const say = (text) => { find(".hint").textContent = text; };

function tell() {
  props.value = JSON.stringify({ marks, negative: negative.checked });
}

function select(name) {
  tool = name;
  for (const button of element.querySelectorAll("[data-tool]"))
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  board.dataset.tool = name;
  if (image) say(HINTS[name]);
}

function path(to, points) {
  to.beginPath();
  points.forEach(([x, y], i) => to[i ? "lineTo" : "moveTo"]((x + 0.5) * scale(), (y + 0.5) * scale()));
  if (points.length === 1) to.lineTo((points[0][0] + 0.5) * scale() + 0.01, (points[0][1] + 0.5) * scale());
}

function paint(to, mark, live) {
  to.globalCompositeOperation = mark.tool === "erase" ? "destination-out" : "source-over";
  to.strokeStyle = to.fillStyle = colour();
  to.lineCap = to.lineJoin = "round";
  path(to, mark.points);
  if (mark.tool === "outline") {
    if (!live) to.fill();
    to.lineWidth = 2 * unit();
  } else to.lineWidth = Math.max(1, mark.width * scale());
  if (mark.tool !== "outline" || live) to.stroke();
}

// Lines as thick on the screen whatever the canvas's resolution.
const unit = () => canvas.width / Math.max(1, canvas.clientWidth);

function twoTone(draw, thickness) {
  for (const [style, extra] of [["#000", 4], ["#fff", 2.4], [colour(), 0]]) {
    ink.strokeStyle = style;
    ink.lineWidth = (thickness + extra) * unit();
    draw();
  }
}

function hint(mark) {
  ink.lineCap = ink.lineJoin = "round";
  if (mark.tool === "scribble") twoTone(() => { path(ink, mark.points); ink.stroke(); }, 3);
  if (mark.tool === "box") {
    const [[x0, y0], [x1, y1]] = [mark.points[0], mark.points[mark.points.length - 1]];
    const corner = [(x0 + 0.5) * scale(), (y0 + 0.5) * scale(), (x1 - x0) * scale(), (y1 - y0) * scale()];
    twoTone(() => ink.strokeRect(...corner), 1.5);
  }
  if (mark.tool === "click") dot(mark.points[0], mark.on);
}

function dot([x, y], on) {
  const [cx, cy, r] = [(x + 0.5) * scale(), (y + 0.5) * scale(), 8 * unit()];
  ink.beginPath();
  ink.arc(cx, cy, r, 0, 7);
  ink.fillStyle = on ? "#0072b2" : "#d55e00";
  ink.fill();
  ink.lineWidth = 2 * unit();
  ink.strokeStyle = "#fff";
  ink.stroke();
  ink.beginPath();
  ink.moveTo(cx - r / 2, cy);
  ink.lineTo(cx + r / 2, cy);
  if (on) { ink.moveTo(cx, cy - r / 2); ink.lineTo(cx, cy + r / 2); }
  ink.stroke();
}

function draw() {
  if (!image) return;
  const shown = current ? [...marks, current] : marks;
  const layer = document.createElement("canvas");
  layer.width = canvas.width;
  layer.height = canvas.height;
  const to = layer.getContext("2d");
  for (const mark of shown)
    if (["outline", "brush", "erase"].includes(mark.tool)) paint(to, mark, mark === current);
  ink.drawImage(image, 0, 0, canvas.width, canvas.height);
  ink.globalAlpha = 0.55;
  ink.drawImage(layer, 0, 0);
  ink.globalAlpha = 1;
  shown.forEach(hint);
  if (pen) twoTone(() => cross(pen), 1.5);
}

function cross([x, y]) {
  const [cx, cy, r] = [(x + 0.5) * scale(), (y + 0.5) * scale(), 10 * unit()];
  ink.beginPath();
  ink.moveTo(cx - r, cy);
  ink.lineTo(cx + r, cy);
  ink.moveTo(cx, cy - r);
  ink.lineTo(cx, cy + r);
  ink.stroke();
}

function begin(start) {
  if (tool === "click" || tool === "off") current = { tool: "click", points: [start], on: tool === "click" };
  else {
    current = { tool, points: [start] };
    if (tool === "brush" || tool === "erase")
      current.width = Math.max(1, (width.value / 100) ** 2 * 0.6 * Math.min(size.width, size.height));
  }
  draw();
}

function extend(points) {
  current.points.push(...points);
  if (current.tool === "box") current.points = [current.points[0], current.points[current.points.length - 1]];
  draw();
}

function finish(kept) {
  const done = current;
  pointer = current = null;
  const needed = { outline: 3, box: 2 }[done?.tool] ?? 1;
  if (done && kept && done.points.length >= needed) {
    if (done.tool === "box") marks = marks.filter((mark) => mark.tool !== "box");
    marks.push(done);
  }
  tell();
  draw();
}

// By keys: the pen is down while `pointer` is "keys".
function press(event) {
  const [dx, dy] = ARROWS[event.key] ?? [0, 0];
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { marks.pop(); tell(); draw(); }
  else if (!image || (pointer !== null && pointer !== "keys")) return;
  else if (dx || dy) {
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(size.width, size.height) / 50));
    const [x, y] = pen ?? [Math.floor(size.width / 2), Math.floor(size.height / 2)];
    pen = [Math.min(Math.max(x + dx * step, 0), size.width - 1), Math.min(Math.max(y + dy * step, 0), size.height - 1)];
    if (pointer && current.tool !== "click") extend([pen]);
    else draw();
  } else if (event.key === "Enter" || event.key === " ") {
    pen ??= [Math.floor(size.width / 2), Math.floor(size.height / 2)];
    if (pointer) finish(true);
    else {
      pointer = "keys";
      begin(pen);
      if (current.tool === "click") finish(true);
    }
  } else if (event.key === "Escape" && pointer) finish(false);
  else return;
  event.preventDefault();
}

function place(event) {
  const frame = canvas.getBoundingClientRect();
  const clamp = (value, end) => Math.min(Math.max(value, 0), end - 1);
  const at = (value, length, end) => Math.round(clamp((value / length) * end - 0.5, end) * 10) / 10;
  return [at(event.clientX - frame.left, frame.width, size.width), at(event.clientY - frame.top, frame.height, size.height)];
}

function show(shown) {
  marks = [];
  current = pen = null;
  if (pointer === "keys") pointer = null;
  negative.checked = false;
  board.dataset.empty = shown ? "no" : "yes";
  image = null;
  tell();
  if (!shown) { say(""); return; }
  size = { width: shown.width, height: shown.height };
  const loaded = new Image();
  loaded.onload = () => {
    image = loaded;
    const factor = Math.max(1, Math.floor(960 / Math.max(loaded.width, loaded.height)));
    canvas.width = loaded.width * factor;
    canvas.height = loaded.height * factor;
    ink.imageSmoothingEnabled = factor < 3;
    draw();
    say(HINTS[tool]);
  };
  loaded.src = shown.source;
}

async function open(file) {
  if (!file) return;
  find(".busy").hidden = false;
  say("Opening " + file.name + " …");
  try {
    const { path: where } = await upload(file);
    trigger("picked", { path: where, name: file.name });
  } catch (error) {
    say(`${file.name} could not be opened: it is not an image, or larger than ${props.limit} MB.`);
  }
  find(".busy").hidden = true;
}

canvas.addEventListener("pointerdown", (event) => {
  if (!image || event.button > 0 || pointer !== null) return;
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  pen = null;
  begin(place(event));
  event.preventDefault();
});
canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer || !current || current.tool === "click") return;
  extend((event.getCoalescedEvents?.() ?? [event]).map(place));
});
for (const name of ["pointerup", "pointercancel"])
  canvas.addEventListener(name, (event) => {
    if (event.pointerId === pointer) finish(name === "pointerup");
  });
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tool) select(button.dataset.tool);
  if (button.dataset.do === "choose") chooser.click();
  if (button.dataset.do === "undo") marks.pop();
  if (button.dataset.do === "clear") marks = [];
  if (["undo", "clear"].includes(button.dataset.do)) { tell(); draw(); }
});
canvas.addEventListener("keydown", press);
canvas.addEventListener("focus", () => { if (image && canvas.matches(":focus-visible")) say(KEYS); });
canvas.addEventListener("blur", () => {
  pen = null;
  if (pointer === "keys") finish(false);
  else draw();
});
negative.addEventListener("change", () => { board.dataset.negative = negative.checked; tell(); draw(); });
chooser.addEventListener("change", () => { open(chooser.files[0]); chooser.value = ""; });
board.addEventListener("dragover", (event) => { event.preventDefault(); board.dataset.over = "yes"; });
board.addEventListener("dragleave", () => { board.dataset.over = "no"; });
board.addEventListener("drop", (event) => {
  event.preventDefault();
  board.dataset.over = "no";
  open(event.dataTransfer.files[0]);
});
new ResizeObserver(draw).observe(canvas);
watch("image", () => show(props.image));
board.dataset.hints = props.hints ? "yes" : "no";
select("outline");
show(props.image);
