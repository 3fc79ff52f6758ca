// The examples so far, as thumbnails that can be taken away again.
const list = element.querySelector("ul");

function show() {
  list.replaceChildren(...(props.items ?? []).map((item) => {
    const entry = document.createElement("li");
    entry.dataset.negative = item.negative;
    const image = new Image();
    image.src = item.source;
    image.alt = item.label;
    const label = document.createElement("span");
    label.textContent = item.label;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.title = "Remove this example";
    remove.setAttribute("aria-label", remove.title);
    remove.addEventListener("click", () => trigger("removed", { key: item.key }));
    entry.append(image, label, remove);
    return entry;
  }));
}

watch("items", show);
show();
