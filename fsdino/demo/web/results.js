// The images that are searched, and below each what every method found; a click on the main answer corrects it.
const root = element.querySelector(".results"), cards = element.querySelector(".cards");
const drop = element.querySelector(".drop"), chooser = element.querySelector("input.file");
const note = element.querySelector(".note");

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function figure(answer, key) {
  const made = make("figure", "answer");
  made.dataset.method = answer.method;
  made.dataset.present = answer.present;
  const image = new Image();
  image.src = answer.source;
  image.alt = answer.alt;
  image.draggable = false;
  made.append(image);
  if (answer.clickable) {
    made.classList.add("clickable");
    image.title = "Click what was missed; Shift + click (or right click) what is too much";
    const correct = (event, on) => {
      const frame = image.getBoundingClientRect();
      const share = [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
      made.dataset.busy = "yes";
      trigger("corrected", { key, x: share[0], y: share[1], on });
      event.preventDefault();
    };
    image.addEventListener("click", (event) => correct(event, !event.shiftKey));
    image.addEventListener("contextmenu", (event) => correct(event, false));
  }
  const caption = make("figcaption");
  if (answer.method) caption.append(make("span", "method", answer.method));
  if (answer.verdict) caption.append(make("span", answer.present ? "verdict found" : "verdict absent", answer.verdict));
  if (answer.detail) caption.append(make("span", "detail", answer.detail));
  made.append(caption);
  return made;
}

function show() {
  const items = props.items ?? [];
  root.dataset.empty = items.length ? "no" : "yes";
  cards.replaceChildren(...items.map((item) => {
    const card = make("section", "card");
    const head = make("header");
    head.append(make("span", "name", item.name), make("span", "push"));
    if (item.clicks) {
      const undo = make("button", "plain", item.clicks === 1 ? "Undo correction" : `Undo ${item.clicks} corrections`);
      undo.type = "button";
      undo.addEventListener("click", () => trigger("restored", { key: item.key }));
      head.append(undo);
    }
    const remove = make("button", "plain", "×");
    remove.type = "button";
    remove.title = "Remove this image";
    remove.setAttribute("aria-label", remove.title);
    remove.addEventListener("click", () => trigger("removed", { key: item.key }));
    head.append(remove);
    const row = make("div", "row");
    row.append(...item.answers.map((answer) => figure(answer, item.key)));
    card.append(head, row);
    return card;
  }));
}

async function add(files) {
  const taken = [], refused = [];
  for (const file of files) {
    note.textContent = `Opening ${file.name} …`;
    try {
      const { path } = await upload(file);
      taken.push({ path, name: file.name });
    } catch (error) {
      refused.push(file.name);
    }
  }
  note.textContent = refused.length ? `Not opened (no image, or larger than ${props.limit} MB): ${refused.join(", ")}` : "";
  if (taken.length) trigger("added", { files: taken });
}

drop.addEventListener("click", () => chooser.click());
chooser.addEventListener("change", () => { add([...chooser.files]); chooser.value = ""; });
root.addEventListener("dragover", (event) => { event.preventDefault(); root.dataset.over = "yes"; });
root.addEventListener("dragleave", () => { root.dataset.over = "no"; });
root.addEventListener("drop", (event) => {
  event.preventDefault();
  root.dataset.over = "no";
  add([...event.dataTransfer.files]);
});
watch(["items", "turn"], show);
show();
