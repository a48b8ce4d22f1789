"use strict";
const of = (name) => document.getElementById(name);
const large = of("large"), view = of("view");
let shown = null;
function show(button) {
  const picture = button.querySelector("img");
  shown = button;
  view.classList.remove("real");
  of("picture").src = picture.src;
  of("picture").alt = picture.alt;
  of("label").textContent = picture.alt;
  of("facts").textContent = picture.dataset.facts;
  if (!large.open) large.showModal();
}
function go(across, down) {
  const cell = shown.closest("td"), row = cell.parentElement;
  const rows = [...document.querySelectorAll("tbody tr")];
  const next = across ? row.cells[cell.cellIndex + across] : rows[rows.indexOf(row) + down]?.cells[cell.cellIndex];
  const button = next?.querySelector("button");
  if (button) show(button);
}
document.querySelector("main").addEventListener("click", (event) => {
  const button = event.target.closest("td button");
  if (button) show(button);
});
for (const [name, across, down] of [["left", -1, 0], ["right", 1, 0], ["up", 0, -1], ["down", 0, 1]])
  of(name).addEventListener("click", () => go(across, down));
large.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way) { event.preventDefault(); go(...way); }
});
large.addEventListener("close", () => shown?.focus());
of("close").addEventListener("click", () => large.close());
view.addEventListener("click", () => view.classList.toggle("real"));
of("size").addEventListener("input", (event) => document.body.style.setProperty("--cell", event.target.value + "px"));
