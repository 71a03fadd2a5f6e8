"use strict";

// --- tables: a click on a header sorts, a second click reverses; the rows of tfoot stay where they are

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = Number.parseFloat(text.replace(/^\+/, ""));
  return column === 0 ? text : Number.isNaN(number) ? -Infinity : number;
}

function sortTable(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const ascending = header.getAttribute("aria-sort") === "none" ? column === 0 : header.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows];
  const compare = (a, b) => (column === 0 ? a.localeCompare(b, undefined, {numeric: true}) : a === b ? 0 : a - b);
  rows.sort((a, b) => (ascending ? 1 : -1) * compare(valueOf(a, column), valueOf(b, column)));
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => sortTable(button.parentElement));
}

// --- pictures: each opens larger, with the proposal; arrow keys go to the next

const viewer = document.getElementById("viewer");
const pictures = [...document.querySelectorAll(".picture")];
let opened = 0;

function show(number) {
  opened = (number + pictures.length) % pictures.length;
  const stage = viewer.querySelector(".stage"), image = pictures[opened].querySelector("img");
  stage.replaceChildren(...[...pictures[opened].children].map((child) => child.cloneNode(true)));
  stage.style.width = `min(100%, ${Math.round((0.68 * innerHeight * image.width) / image.height) || 600}px)`;
  viewer.querySelector(".caption").textContent = pictures[opened].parentElement.querySelector("figcaption").textContent;
  for (const key of viewer.querySelectorAll(".key")) {
    key.hidden = !stage.querySelector(`rect.line.${key.classList[1]}`);
  }
  if (!viewer.open) viewer.showModal();
}

pictures.forEach((picture, number) => picture.addEventListener("click", () => show(number)));
viewer.addEventListener("click", (event) => {
  if (event.target === viewer || "close" in event.target.dataset) viewer.close();
  if (event.target.dataset.step) show(opened + Number(event.target.dataset.step));
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(opened - 1);
  if (event.key === "ArrowRight") show(opened + 1);
});
viewer.addEventListener("close", () => pictures[opened].focus());

// --- score threshold: counts of the embedded data, for each class and in total

const counts = JSON.parse(document.getElementById("data").textContent);
const slider = document.getElementById("slider");

function ratio(part, whole) {
  return whole ? (part / whole).toFixed(3) : "–";
}

function countsAt(step) {
  return counts.classes.map((name, index) => ({
    name, objects: counts.objects[index], hits: counts.hits[index][step], misses: counts.misses[index][step],
  }));
}

function cells({objects, hits, misses}) {
  return [objects, hits, objects - hits, misses, ratio(hits, hits + misses), ratio(hits, objects),
    ratio(2 * hits, objects + hits + misses)];
}

function moveThreshold() {
  const step = Number(slider.value), table = document.getElementById("counts"), all = countsAt(step);
  document.getElementById("score").textContent = (step / 100).toFixed(2);
  const total = {objects: 0, hits: 0, misses: 0};
  all.forEach((one, index) => {
    for (const key in total) total[key] += one[key];
    const row = rowsOfClasses[index];
    cells(one).forEach((text, column) => (row.cells[column + 1].textContent = text));
    const marker = document.querySelector(`.marker.m${index}`);
    if (!marker) return;
    const found = one.hits + one.misses;
    marker.toggleAttribute("hidden", !found);
    marker.setAttribute("cx", (counts.plot[0] * one.hits) / one.objects);
    marker.setAttribute("cy", counts.plot[1] * (1 - (found ? one.hits / found : 1)));
  });
  const last = cells(total);
  last.forEach((text, column) => (table.tFoot.rows[0].cells[column + 1].textContent = text));
  for (const [name, column] of [["hits", 1], ["missed", 2], ["false", 3]]) {
    document.getElementById(`total-${name}`).textContent = last[column];
  }
}

const rowsOfClasses = slider ? [...document.getElementById("counts").tBodies[0].rows] : [];
if (slider) {
  slider.addEventListener("input", moveThreshold);
  moveThreshold();
}

// --- the navigation bar shows where the reader is

const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, {rootMargin: "-20% 0px -75% 0px"});
for (const section of document.querySelectorAll("section")) observer.observe(section);
