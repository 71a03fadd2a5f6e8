// The interactive part: what is shown follows from `state` alone, and update() draws all of it.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SIDE = 384; // width of every map in units of the drawing
const MARGIN = 54; // for the rulers above and left of it
const HUES = [0, 1, 2, 3].map((number) => `var(--bin${number})`);
const STAGES = { region: "Region", rows: "Rows", columns: "Columns", maxima: "Maxima", gradient: "Gradient" };
const MANY_BINS = 16; // more are drawn as thin lines

const maps = {
  article: { ...data.article, values: decode(data.article.values), stride: 1, imageHW: null },
  photograph: { ...data.photograph, channels: data.photograph.channels.map(decode), imageHW: data.photograph.image_hw },
};
maps.photograph.values = maps.photograph.channels[0];
for (const map of Object.values(maps)) map.unit = SIDE / map.width;

const state = {
  map: "article", rule: "overlapping", view: "both", position: 0, playing: null, selected: null, hovered: null,
  feedback: null, solved: new Set(),
  article: { roi: [...data.article.roi], output: [...data.article.output] },
  photograph: { roi: [...data.photograph.regions[0].box], output: [7, 7] },
};
let result; // of roiPool for the state

function decode(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
}

const theMap = () => maps[state.map];
const own = () => state[state.map]; // region and output size, which each map keeps
const isArticle = () => state.map === "article";

// ---- steps

function positions() {
  const bins = own().output[0] * own().output[1];
  const each = Array.from({ length: bins }, (_, bin) => ({ stage: "maxima", bin }));
  return [{ stage: "region" }, { stage: "rows" }, { stage: "columns" }, ...each, { stage: "maxima" }, { stage: "gradient" }];
}

const now = () => positions()[state.position];
const lastOf = (stage) => positions().findLastIndex((position) => position.stage === stage);
const activeBin = () => now().bin ?? state.hovered ?? state.selected;

function isRevealed(bin) {
  const { stage, bin: reached } = now();
  if (stage === "gradient" || state.solved.has(bin)) return true;
  return stage === "maxima" && (reached === undefined || bin <= reached);
}

function goTo(position) {
  state.position = Math.min(Math.max(position, 0), positions().length - 1);
  state.selected = state.hovered = state.feedback = null;
  update();
}

function play(on) {
  clearTimeout(state.playing);
  state.playing = null;
  if (on) {
    if (state.position === positions().length - 1) goTo(0);
    tick();
  }
  update();
}

function tick() {
  const bins = result.bins.length;
  const milliseconds = { region: 2200, rows: 3800, columns: 3800, maxima: bins > 4 ? Math.max(8000 / bins, 130) : 2400 };
  state.playing = setTimeout(() => {
    goTo(state.position + 1);
    if (state.position < positions().length - 1) tick();
    else play(false);
  }, milliseconds[now().stage]);
}

// After a change by the reader: the result is shown at once, unless one of the first stages is being studied.
function change(act) {
  play(false);
  const { stage } = now();
  act();
  state.solved.clear();
  goTo(lastOf(stage === "region" ? "maxima" : stage));
}

// ---- geometry

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(byId("map").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}

// A rectangle of cells in units of the drawing, smaller by `inset` on each side.
function box(row, column, inset = 0) {
  const { unit } = theMap();
  const width = Math.max((column.to - column.from) * unit - 2 * inset, 0);
  const height = Math.max((row.to - row.from) * unit - 2 * inset, 0);
  return { x: column.from * unit + inset, y: row.from * unit + inset, width, height };
}

// The region as drawn: whole cells in the example, pixels on a network's map.
function regionBox() {
  const { unit, stride } = theMap();
  const [x1, y1, x2, y2] = own().roi;
  const end = isArticle() ? 1 : 0;
  const scale = unit / stride;
  return { x: x1 * scale, y: y1 * scale, width: (x2 + end - x1) * scale, height: (y2 + end - y1) * scale };
}

function clampedCells() {
  const [x1, y1, x2, y2] = result.cells;
  const { width, height } = theMap();
  const inside = (value, limit) => Math.min(Math.max(value, 0), limit);
  return [
    { from: inside(y1, height), to: inside(Math.max(y2, y1) + 1, height) },
    { from: inside(x1, width), to: inside(Math.max(x2, x1) + 1, width) },
  ];
}

const hueOf = (bin) => HUES[(Math.floor(bin / own().output[1]) % 2) * 2 + ((bin % own().output[1]) % 2)];
const binOf = (bin) => ({ row: result.rows[Math.floor(bin / own().output[1])], column: result.columns[bin % own().output[1]] });
const cellOf = (index) => ({ y: Math.floor(index / theMap().width), x: index % theMap().width });

function show(value) {
  if (isArticle()) return value.toFixed(2).replace(/^0/, "");
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
}

const span = ({ from, to }) => (to <= from ? "none" : to - from === 1 ? `${from}` : `${from}-${to - 1}`);
const named = (axis, bin) => `${axis}${bin.to - bin.from === 1 ? "" : "s"} ${span(bin)}`;

// ---- the map

function drawCells() {
  const map = theMap();
  const layer = byId("layer-cells");
  layer.replaceChildren();
  byId("map").setAttribute("viewBox", `${-MARGIN} ${-MARGIN} ${SIDE + MARGIN + 3} ${map.height * map.unit + MARGIN + 3}`);
  const defs = svg("defs", {}, layer);
  const hatch = svg("pattern", { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, defs);
  svg("rect", { width: 2.5, height: 8, fill: "var(--ink)", "fill-opacity": 0.28 }, hatch);
  const pictured = map.imageHW !== null && state.view !== "map";
  byId("map").classList.toggle("pictured", pictured);
  if (pictured) {
    const scale = map.unit / map.stride;
    const size = { width: map.imageHW[1] * scale, height: map.imageHW[0] * scale };
    svg("image", { href: map.jpeg, ...size, preserveAspectRatio: "none", class: state.view }, layer);
  }
  const largest = Math.max(...map.values) || 1;
  map.values.forEach((value, index) => {
    const { x, y } = cellOf(index);
    const share = Math.max(value / largest, 0);
    let fill = `rgba(var(--heat), ${(share * (isArticle() ? 0.42 : 0.9)).toFixed(3)})`;
    if (pictured) fill = state.view === "photo" ? "transparent" : `rgba(255, 214, 64, ${(share * 0.85).toFixed(3)})`;
    const place = { x: x * map.unit, y: y * map.unit, width: map.unit, height: map.unit };
    const rect = svg("rect", { class: "cell", ...place, fill }, layer);
    if (!isArticle()) {
      rect.setAttribute("stroke-opacity", pictured ? 0.25 : 1);
      svg("title", {}, rect, `row ${y}, column ${x}: ${show(value)}`);
    } else svg("text", { class: "value", x: (x + 0.5) * map.unit, y: (y + 0.5) * map.unit }, layer, show(value));
  });
  const every = map.unit < 30 ? 4 : 1;
  for (let x = 0; x < map.width; x += every) svg("text", { class: "index", x: (x + 0.5) * map.unit, y: -9 }, layer, x);
  for (let y = 0; y < map.height; y += every) svg("text", { class: "index", x: -10, y: (y + 0.5) * map.unit }, layer, y);
}

function drawOverlay() {
  const map = theMap();
  const layer = byId("layer-bins");
  const marks = byId("layer-marks");
  layer.replaceChildren();
  marks.replaceChildren();
  const [rows, columns] = clampedCells();
  const whole = box(rows, columns);
  const outer = `M0 0H${SIDE}V${map.height * map.unit}H0Z`;
  const inner = `M${whole.x} ${whole.y}h${whole.width}v${whole.height}h${-whole.width}Z`;
  const pictured = map.imageHW && state.view !== "map";
  const veil = pictured ? { fill: "#000", "fill-opacity": 0.3 } : { fill: "var(--page)", "fill-opacity": 0.6 };
  svg("path", { d: outer + inner, "fill-rule": "evenodd", "pointer-events": "none", ...veil }, layer);

  const { stage } = now();
  const order = Object.keys(STAGES).indexOf(stage);
  if (stage === "rows") drawBands(layer, result.rows.map((row) => [row, columns]));
  if (stage === "columns") drawBands(layer, result.columns.map((column) => [rows, column]));
  if (stage === "region") {
    drawRuler(layer, [rows], "row", sized("row", rows));
    drawRuler(layer, [columns], "column", sized("column", columns));
  }
  if (order >= 1) drawRuler(layer, result.rows, "row");
  if (order >= 2) drawRuler(layer, result.columns, "column");
  if (order >= 3 || state.feedback || state.hovered !== null || state.selected !== null) drawBins(layer, marks);
  if (stage === "gradient") drawGradient(marks);
  drawRegion(whole);
}

function drawBands(layer, bands) {
  bands.forEach(([row, column], i) => {
    const hue = HUES[i % 2];
    svg("rect", { class: "bin", ...box(row, column, theMap().unit * (0.06 + 0.07 * (i % 2))), stroke: hue, fill: hue }, layer);
  });
  for (let i = 1; i < bands.length; i++) {
    const [row, column] = bands[i].map((edges, axis) => overlap(edges, bands[i - 1][axis]));
    svg("rect", { class: "shared", ...box(row, column) }, layer);
  }
}

const overlap = (one, other) => ({ from: Math.max(one.from, other.from), to: Math.min(one.to, other.to) });

const sized = (axis, { from, to }) => `${to - from} ${axis}${to - from === 1 ? "" : "s"}`;

function drawRuler(layer, edges, axis, text) {
  const { unit } = theMap();
  const active = activeBin();
  const current = text || active === null || active === undefined ? null : binOf(active)[axis];
  edges.forEach((bin, i) => {
    if (bin.to <= bin.from) return;
    const lane = i % 2 || text ? -35 : -53;
    const length = (bin.to - bin.from) * unit;
    const labels = edges.length > 4 && unit < 30 ? [] : [text, named(axis, bin), span(bin)];
    const label = labels.find((each) => each && 7 * each.length + 4 < length) ?? "";
    const fill = ["rows", "columns"].includes(now().stage) && now().stage === `${axis}s` ? HUES[i % 2] : "var(--soft)";
    const opacity = current && current !== bin ? 0.25 : 1;
    const along = bin.from * unit;
    const place = axis === "row" ? { x: lane, y: along + 1, width: 16, height: length - 2 } : { x: along + 1, y: lane, width: length - 2, height: 16 };
    svg("rect", { ...place, rx: 4, fill, opacity }, layer);
    const centre = [place.x + place.width / 2, place.y + place.height / 2];
    const turn = axis === "row" ? { transform: `rotate(-90 ${centre[0]} ${centre[1]})` } : {};
    const style = "fill: var(--page)";
    svg("text", { class: "ruler", x: centre[0], y: centre[1] + 0.5, style, opacity, ...turn }, layer, label);
  });
}

function drawBins(layer, marks) {
  const { unit } = theMap();
  const active = activeBin() ?? null;
  const many = result.bins.length > MANY_BINS;
  const won = new Map();
  result.bins.forEach((bin, k) => {
    const { row, column } = binOf(k);
    const isActive = k === active;
    if (row.to > row.from && column.to > column.from && (now().stage !== "gradient" || isActive)) {
      const inset = many && !isActive ? 0 : unit * (0.05 + 0.05 * (HUES.indexOf(hueOf(k))));
      const kind = isActive ? "active" : active !== null ? "dim" : "";
      const rect = svg("rect", { class: `bin ${kind}`, ...box(row, column, inset), stroke: hueOf(k), fill: hueOf(k) }, layer);
      if (many && !isActive) rect.setAttribute("style", "stroke-width: 1; fill-opacity: 0.05");
      if (isActive) layer.append(rect);
    }
    if (!isRevealed(k) || bin.cell < 0) return;
    const rings = won.get(bin.cell) ?? 0;
    won.set(bin.cell, rings + 1);
    const { x, y } = cellOf(bin.cell);
    if (many && !isActive) {
      if (!rings) svg("circle", { class: "dot", cx: (x + 0.5) * unit, cy: (y + 0.5) * unit, r: 0.2 * unit }, marks);
      return;
    }
    const inset = unit * (0.05 + 0.1 * Math.min(rings, 2));
    const place = box({ from: y, to: y + 1 }, { from: x, to: x + 1 }, inset);
    const kind = active !== null && !isActive ? "dim" : "";
    const width = Math.min(3.5, unit / 6);
    svg("rect", { class: `winner ${kind}`, ...place, rx: unit / 3, stroke: hueOf(k), style: `stroke-width: ${width}` }, marks);
  });
}

function drawGradient(marks) {
  const { unit } = theMap();
  const chosen = activeBin() ?? null;
  const ones = result.bins.map((_, k) => (chosen === null || k === chosen ? 1 : 0));
  roiPoolBackward(theMap(), result.bins, ones).forEach((gradient, index) => {
    if (!gradient) return;
    const { x, y } = cellOf(index);
    const labelled = unit > 30;
    const centre = { cx: (x + (labelled ? 0.84 : 0.5)) * unit, cy: (y + (labelled ? 0.16 : 0.5)) * unit };
    const r = labelled ? 11 : Math.min(0.3 * Math.sqrt(gradient), 0.75) * unit;
    svg("circle", { class: "gradient", ...centre, r, "fill-opacity": labelled ? 1 : 0.85 }, marks);
    if (labelled) svg("text", { class: "gradient-label", x: centre.cx, y: centre.cy }, marks, `+${gradient}`);
  });
}

function drawRegion(whole) {
  const exact = regionBox();
  for (const [key, value] of Object.entries(whole)) byId("region-box").setAttribute(key, value);
  const around = { x: whole.x - 5, y: whole.y - 5, width: whole.width + 10, height: whole.height + 10, rx: 6 };
  for (const [key, value] of Object.entries(around)) byId("region-focus").setAttribute(key, value);
  if (!isArticle()) svg("rect", { class: "pixels", ...exact }, byId("layer-marks"));
  const [rows, columns] = clampedCells();
  byId("region").setAttribute("aria-label", `Region: columns ${span(columns)}, rows ${span(rows)}. Arrow keys move it, Shift and arrow keys resize it.`);
  document.querySelectorAll("#handles g").forEach((handle, corner) => {
    const x = exact.x + (corner % 2) * exact.width;
    const y = exact.y + Math.floor(corner / 2) * exact.height;
    handle.setAttribute("transform", `translate(${x} ${y})`);
  });
}

// ---- the output

function drawOutput() {
  const [rows, columns] = own().output;
  const output = byId("output");
  const size = Math.min(84, Math.floor((Math.min(window.innerWidth, 420) - 44) / columns) - 4);
  output.style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${size}px))`;
  output.style.fontSize = `${Math.max(Math.min(size / (isArticle() ? 2.9 : 3.7), 22), 10)}px`;
  byId("output-figure").classList.toggle("wide", columns > 4);
  const focused = [...output.children].findIndex((cell) => cell.contains(document.activeElement));
  output.replaceChildren(...result.bins.map((bin, k) => outputCell(bin, k, size)));
  if (focused >= 0) output.children[focused]?.firstElementChild?.focus({ preventScroll: true });
  const [regionRows, regionColumns] = clampedCells();
  const from = `${regionRows.to - regionRows.from} × ${regionColumns.to - regionColumns.from}`;
  byId("output-note").textContent = `${rows} × ${columns}, from a region of ${from} cells`;
}

function outputCell(bin, k, size) {
  const cell = document.createElement("div");
  cell.className = "cell" + (state.solved.has(k) ? " right" : "");
  cell.style.setProperty("--hue", hueOf(k));
  cell.style.height = `${size}px`;
  const [row, column] = [Math.floor(k / own().output[1]), k % own().output[1]];
  const name = `Output row ${row}, column ${column}`;
  if (!isRevealed(k) && canPredict()) {
    const input = document.createElement("input");
    Object.assign(input, { placeholder: "?", inputMode: "decimal", autocomplete: "off", maxLength: 6 });
    input.setAttribute("aria-label", `${name}: your prediction`);
    if (state.feedback?.bin === k) Object.assign(input, { value: state.feedback.text, className: "wrong" });
    input.addEventListener("change", () => predict(k, input.value));
    cell.append(input);
    return cell;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = isRevealed(k) ? show(bin.value) : "?";
  button.className = isRevealed(k) ? "" : "hidden-value";
  button.setAttribute("aria-label", `${name}: ${isRevealed(k) ? show(bin.value) : "not computed yet"}`);
  button.setAttribute("aria-pressed", k === activeBin());
  button.tabIndex = k === (state.selected ?? 0) ? 0 : -1;
  button.addEventListener("click", () => select(state.selected === k ? null : k));
  button.addEventListener("keydown", (event) => moveSelection(event, k));
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hover(k));
  button.addEventListener("pointerleave", () => state.hovered !== null && hover(null));
  cell.append(button);
  return cell;
}

const canPredict = () => isArticle() && result.bins.length <= MANY_BINS && state.playing === null;

function select(k) {
  play(false);
  if (now().bin !== undefined) state.position = lastOf("maxima");
  state.selected = k;
  state.hovered = null;
  update();
}

function hover(k) {
  if (state.playing !== null || now().bin !== undefined) return;
  state.hovered = k;
  // The buttons stay as they are: replacing the one under the pointer would end the hover.
  document.querySelectorAll("#output button").forEach((button, at) => button.setAttribute("aria-pressed", at === activeBin()));
  drawOverlay();
  drawCaption();
}

function moveSelection(event, k) {
  const columns = own().output[1];
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const to = k + (moves[event.key] ?? NaN);
  if (!(to >= 0 && to < result.bins.length)) return;
  event.preventDefault();
  select(to);
  byId("output").children[to].firstElementChild.focus();
}

function predict(k, text) {
  if (!text.trim()) return;
  const guess = Number(text.replace(",", "."));
  const { row, column } = binOf(k);
  const where = `${named("row", row)}, ${named("column", column)}`;
  const isNear = (value) => Math.abs(guess - value) < 0.005;
  state.selected = k;
  if (isNear(result.bins[k].value)) {
    state.solved.add(k);
    state.feedback = { right: true, message: `Right: ${show(result.bins[k].value)} is the largest value in ${where}.` };
    if (state.solved.size === result.bins.length) state.feedback.message += " You predicted the whole output.";
    update();
    document.querySelector("#output input")?.focus();
    return;
  }
  const other = roiPool(theMap(), own().roi, own().output, 1, state.rule === "disjoint" ? "overlapping" : "disjoint");
  let message = `Not yet. This bin covers ${where}: find the largest value there.`;
  if (Number.isNaN(guess)) message = `“${text}” is not a number.`;
  else if (isNear(other.bins[k].value) && state.rule === "overlapping")
    message = `That is the answer for disjoint bins. Here neighbours share a cell where the cut falls inside it: this bin covers ${where}.`;
  state.feedback = { right: false, bin: k, text, message };
  update();
}

// ---- captions

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const paragraph = (...children) => element("p", {}, ...children);
const bold = (text) => element("b", {}, String(text));

function table(head, rows) {
  const line = (kind, cells) => element("tr", {}, ...cells.map((cell) => element(kind, {}, cell)));
  return element("table", {}, element("thead", {}, line("th", head)), element("tbody", {}, ...rows.map((cells) => line("td", cells))));
}

function drawCaption() {
  const { stage, bin } = now();
  const parts = [];
  if (state.feedback) parts.push(element("p", { class: state.feedback.right ? "feedback-good" : "feedback-bad" }, state.feedback.message));
  const active = bin ?? state.hovered ?? state.selected;
  if (stage === "gradient") parts.push(...gradientCaption(active ?? null));
  else if ((active ?? null) !== null && !state.feedback && isRevealed(active)) parts.push(...binCaption(active));
  else if (stage === "region") parts.push(...regionCaption());
  else if (stage === "rows" || stage === "columns") parts.push(...axisCaption(stage));
  else if (stage === "maxima") parts.push(...maximaCaption());
  byId("caption").replaceChildren(...parts);
}

function regionCaption() {
  const [x1, y1, x2, y2] = result.cells;
  const size = [`${x2} − ${x1} + 1 = ${Math.max(x2 - x1 + 1, 1)}`, `${y2} − ${y1} + 1 = ${Math.max(y2 - y1 + 1, 1)}`];
  const sizes = paragraph("Both corner cells belong to it: it is ", bold(`${size[0]} wide`), " and ", bold(`${size[1]} high`), ".");
  const [rows, columns] = own().output;
  const wish = paragraph(`Whatever its size, the output has ${rows} × ${columns} cells: the region is cut into ${rows} bins of rows and ${columns} of columns, and every bin gives its largest value.`);
  wish.append(state.rule === "overlapping" ? " Where a cut falls inside a row or a column, both bins take it." : " Cuts are rounded down to a whole row or column, as in an article of 2017 (see the end of this page).");
  if (isArticle()) {
    const start = paragraph("The region covers columns ", bold(`${x1} to ${x2}`), " and rows ", bold(`${y1} to ${y2}`), " of the map.");
    const ask = result.bins.length > MANY_BINS ? "" : paragraph(bold("Your turn:"), " type the numbers that you expect into the output. Steps 2 and 3 show the bins; Play shows everything. To predict a region of your own, drag it at step 2 or 3: at step 1 a drag shows the result at once.");
    return [start, sizes, wish, ask];
  }
  const { stride } = theMap();
  const row = (name, value, cell) => [name, `${value} / ${stride} = ${Number((value / stride).toFixed(3))}`, String(cell)];
  const corners = ["x1", "y1", "x2", "y2"].map((name, at) => row(name, own().roi[at], result.cells[at]));
  const explained = paragraph(`One cell of this map stands for ${stride} × ${stride} pixels of the image. The corners of the region (dashed) are divided by ${stride} and rounded to cells, halves away from zero. Each of the ${theMap().depth} channels is pooled in the same way.`);
  return [explained, table(["corner", "pixels / stride", "cell"], corners), sizes];
}

function axisCaption(stage) {
  const isRows = stage === "rows";
  const [first, last] = isRows ? [result.cells[1], result.cells[3]] : [result.cells[0], result.cells[2]];
  const edges = isRows ? result.rows : result.columns;
  const cells = Math.max(last - first + 1, 1);
  const size = cells / edges.length;
  const shown = Number(size.toFixed(2));
  const equals = shown === size ? "=" : "≈";
  const close = state.rule === "disjoint" ? ["⌊", "⌋"] : ["⌈", "⌉"];
  const upper = state.rule === "disjoint" ? Math.floor : Math.ceil;
  const lines = edges.map((bin, i) => [
    `${i}`,
    `⌊${i}·${cells}/${edges.length}⌋ = ${Math.floor((i * cells) / edges.length)}`,
    `${close[0]}${i + 1}·${cells}/${edges.length}${close[1]} = ${upper(((i + 1) * cells) / edges.length)}`,
    span(bin),
  ]);
  const shared = edges.slice(1).map((bin, i) => overlap(bin, edges[i])).filter(({ from, to }) => to > from);
  const one = isRows ? "row" : "column";
  let note = `${edges.length} divides ${cells}: no ${one} is in two bins.`;
  if (cells % edges.length) note = `The article rounds every cut down: no ${one} is in two bins, but the sizes of the bins differ.`;
  if (shared.length) note = `Hatched: where a cut falls inside a ${one}, both bins take that ${one} (${shared.map(span).join(", ")}).`;
  return [
    paragraph(`${sized(one, { from: 0, to: cells })} for ${edges.length} ${edges.length === 1 ? "bin" : "bins"}: `, bold(`${cells} / ${edges.length} ${equals} ${shown}`), ` ${size === 1 ? one : `${one}s`} each. A bin starts at the cut before it, rounded down, and ends at the cut after it, rounded ${state.rule === "disjoint" ? "down" : "up"}. Both are counted from ${one} ${first}.`),
    table(["bin", "from", "up to, not including", `${one}s`], lines),
    paragraph(note),
  ];
}

function binCaption(k) {
  const { row, column } = binOf(k);
  const { value, cell } = result.bins[k];
  const key = element("span", { class: "key", style: `background: ${hueOf(k)}` });
  const name = `Output row ${Math.floor(k / own().output[1])}, column ${k % own().output[1]}: `;
  if (cell < 0) return [paragraph(key, bold(name), "no cell of the map lies in this bin, so it gives 0.")];
  const count = (row.to - row.from) * (column.to - column.from);
  const { x, y } = cellOf(cell);
  const values = [];
  for (let at = row.from; at < row.to; at++) {
    values.push(Array.from({ length: column.to - column.from }, (_, i) => show(theMap().values[at * theMap().width + column.from + i])));
  }
  const lines = count <= 30 && column.to - column.from <= 7 ? [table([], values)] : [];
  lines[0]?.querySelectorAll("td").forEach((td, i) => {
    if (values.flat()[i] === show(value)) td.style.fontWeight = "800";
  });
  return [
    paragraph(key, bold(name), `${named("row", row)}, ${named("column", column)}: ${count} ${count === 1 ? "cell" : "cells"}.`),
    ...lines,
    paragraph("The largest is ", bold(show(value)), `, at row ${y}, column ${x}.`),
  ];
}

function maximaCaption() {
  const parts = [paragraph("Each bin has given its largest value, and the map marks the cells that these come from. Point at an output cell, or choose it, to see its bin.")];
  const other = roiPool(theMap(), own().roi, own().output, 1 / theMap().stride, state.rule === "disjoint" ? "overlapping" : "disjoint");
  const differing = result.bins.flatMap((bin, k) => (bin.value !== other.bins[k].value ? [k] : []));
  if (isArticle() && differing.length) {
    const listed = differing.slice(0, 4).map((k) => `${show(result.bins[k].value)} would be ${show(other.bins[k].value)}`).join(", ");
    const rule = state.rule === "disjoint" ? "with the overlapping bins of Fast R-CNN" : "with the disjoint bins of the article";
    parts.push(paragraph(`The rule matters: ${rule}, ${listed}${differing.length > 4 ? ", …" : ""}.`));
  }
  parts.push(paragraph("Drag the region or its corners: whatever the size of the region, the output keeps its own."));
  return parts;
}

function gradientCaption(active) {
  const gradient = roiPoolBackward(theMap(), result.bins, result.bins.map(() => 1));
  if (active !== null) {
    const { cell, value } = result.bins[active];
    if (cell < 0) return [paragraph("This bin has no cell: its gradient goes nowhere.")];
    const { x, y } = cellOf(cell);
    const { row, column } = binOf(active);
    const others = (row.to - row.from) * (column.to - column.from) - 1;
    const parts = [paragraph("The ", bold(show(value)), ` came from row ${y}, column ${x}. That cell alone gets the gradient of this output; the other ${others} ${others === 1 ? "cell" : "cells"} of the bin get 0.`)];
    if (gradient[cell] > 1) parts.push(paragraph(`${gradient[cell]} outputs came from this cell: their gradients add up.`));
    return parts;
  }
  const winners = gradient.filter((value) => value > 0).length;
  const most = Math.max(...gradient);
  const parts = [
    paragraph("Training goes the other way. Give every output a gradient of 1: it flows back to the ", bold("one cell that was the maximum"), ", and nowhere else."),
    paragraph(`${result.bins.length} outputs, ${winners} ${winners === 1 ? "cell" : "cells"} with a gradient.` + (most > 1 ? ` A cell that is the maximum of several bins gets their sum, here up to ${most}.` : "")),
    paragraph("Choose an output cell to see the cell that its gradient reaches."),
  ];
  return parts;
}

// ---- everything

function update() {
  const { output, roi } = own();
  result = roiPool(theMap(), roi, output, 1 / theMap().stride, state.rule);
  drawOverlay();
  drawOutput();
  drawCaption();
  const { stage } = now();
  for (const button of document.querySelectorAll("#stages button")) {
    if (button.dataset.stage === stage) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  }
  byId("play").textContent = state.playing === null ? "▶ Play" : "❚❚ Pause";
  byId("back").disabled = state.position === 0;
  byId("next").disabled = state.position === positions().length - 1;
  byId("output-rows").value = output[0];
  byId("output-columns").value = output[1];
  document.querySelectorAll(".corner-inputs input").forEach((input, at) => {
    if (input !== document.activeElement) input.value = roi[at];
  });
  byId("predict").hidden = !isArticle();
  byId("output-hint").textContent = outputHint(stage);
  announce();
}

function outputHint(stage) {
  if (stage === "gradient") return "Choose a cell: where does its gradient go?";
  if (result.bins.every((_, k) => isRevealed(k))) return "Choose a cell to see its bin.";
  return canPredict() ? "Your prediction: type a number." : "Not computed yet.";
}

let announcement;
function announce() {
  clearTimeout(announcement);
  announcement = setTimeout(() => {
    const [rows, columns] = clampedCells();
    const values = result.bins.map((bin, k) => (isRevealed(k) ? show(bin.value) : "hidden")).slice(0, MANY_BINS);
    byId("status").textContent = `${STAGES[now().stage]}. Columns ${span(columns)}, rows ${span(rows)}. Output ${values.join(", ")}.`;
  }, 500);
}

function chooseMap(name) {
  change(() => (state.map = name));
  byId("photo-settings").hidden = isArticle();
  byId("map-title").textContent = isArticle() ? "Feature map" : "Feature map and image";
  const { height, width, stride } = theMap();
  byId("map-note").textContent = isArticle() ? `${height} × ${width} cells` : `${height} × ${width} cells of ${stride} px, 1 of ${data.photograph.depth} channels`;
  const keys = element("span", { class: "keys" }, " Keys: arrows move, Shift + arrows resize.");
  byId("map-hint").replaceChildren(`Drag the region or its corners${isArticle() ? "" : "; dashed: before rounding to cells; gray bars: the rows and columns of each bin"}.`, keys);
  const limits = isArticle() ? [width - 1, height - 1] : [theMap().imageHW[1], theMap().imageHW[0]];
  document.querySelectorAll(".corner-inputs input").forEach((input, at) => Object.assign(input, { min: 0, max: limits[at % 2], step: 1 }));
  drawCells();
  goTo(isArticle() ? 0 : lastOf("maxima"));
}

function clampRoi(roi) {
  const { width, height, imageHW } = theMap();
  const limits = imageHW ? [imageHW[1], imageHW[0]] : [width - 1, height - 1];
  return roi.map((value, at) => Math.min(Math.max(Math.round(value) || 0, 0), limits[at % 2]));
}

function moveRoi(from, dx, dy) {
  const moved = clampRoi([from[0] + dx, from[1] + dy, from[2] + dx, from[3] + dy]);
  const [width, height] = [from[2] - from[0], from[3] - from[1]];
  const [x, y] = [dx < 0 ? moved[0] : moved[2] - width, dy < 0 ? moved[1] : moved[3] - height];
  return [x, y, x + width, y + height];
}

// Where the pointer is, in the frame of the region: the cell in the example, else the pixel.
function pointed(event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(byId("map").getScreenCTM().inverse());
  const { unit, stride } = theMap();
  return isArticle() ? [Math.floor(point.x / unit), Math.floor(point.y / unit)] : [(point.x / unit) * stride, (point.y / unit) * stride];
}

function startDrag(event, toRoi) {
  if (event.button) return;
  event.preventDefault();
  const target = byId("map");
  target.setPointerCapture(event.pointerId);
  const move = (moved) => {
    const roi = clampRoi(toRoi(pointed(moved)));
    if (String(roi) !== String(own().roi)) change(() => (own().roi = roi));
  };
  const stop = () => {
    target.removeEventListener("pointermove", move);
    target.removeEventListener("pointerup", stop);
    target.removeEventListener("pointercancel", stop);
  };
  target.addEventListener("pointermove", move);
  target.addEventListener("pointerup", stop);
  target.addEventListener("pointercancel", stop);
}

const between = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];

function listenToMap() {
  const region = byId("region");
  region.addEventListener("pointerdown", (event) => {
    const [from, [x, y]] = [own().roi, pointed(event)];
    startDrag(event, ([toX, toY]) => moveRoi(from, Math.round(toX - x), Math.round(toY - y)));
    region.focus({ preventScroll: true });
  });
  // A finger on the region or on a corner drags it; elsewhere it scrolls. touch-action is not enough inside SVG.
  for (const part of [region, byId("handles")]) {
    part.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
  }
  byId("layer-cells").addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") return; // scrolls the page
    const anchor = pointed(event);
    startDrag(event, (to) => between(anchor, to));
  });
  region.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = isArticle() ? 1 : theMap().stride / 4;
    const [dx, dy] = (moves[event.key] ?? []).map((value) => value * step);
    if (dx === undefined) return;
    event.preventDefault();
    const [x1, y1, x2, y2] = own().roi;
    const roi = event.shiftKey ? clampRoi([x1, y1, Math.max(x2 + dx, x1), Math.max(y2 + dy, y1)]) : moveRoi(own().roi, dx, dy);
    if (String(roi) !== String(own().roi)) change(() => (own().roi = roi));
  });
  for (let corner = 0; corner < 4; corner++) {
    const handle = svg("g", { style: `cursor: ${corner % 3 ? "nesw" : "nwse"}-resize` }, byId("handles"));
    svg("circle", { class: "dot", r: 6.5 }, handle);
    svg("circle", { class: "grip", r: 17 }, handle).addEventListener("pointerdown", (event) => {
      const [x1, y1, x2, y2] = own().roi;
      const anchor = [corner % 2 ? x1 : x2, corner < 2 ? y2 : y1];
      startDrag(event, (to) => between(anchor, to));
    });
  }
}

// A region of the example whose sizes do not divide, at the first step with the output hidden.
function predictAnother() {
  play(false);
  const { width, height } = theMap();
  const pick = (least, most) => least + Math.floor(Math.random() * (most - least + 1));
  let roi;
  do {
    const [w, h] = [pick(3, width), pick(3, height)];
    const [x, y] = [pick(0, width - w), pick(0, height - h)];
    roi = [x, y, x + w - 1, y + h - 1];
  } while (String(roi) === String(own().roi));
  if (own().output[0] * own().output[1] > MANY_BINS) own().output = [2, 2];
  own().roi = roi;
  state.solved.clear();
  goTo(0);
  document.querySelector("#output input")?.focus({ preventScroll: true });
}

function listenToSettings() {
  for (const input of document.querySelectorAll("input[name=map]")) input.addEventListener("change", () => chooseMap(input.value));
  for (const input of document.querySelectorAll("input[name=rule]")) input.addEventListener("change", () => change(() => (state.rule = input.value)));
  for (const input of document.querySelectorAll("input[name=view]")) {
    input.addEventListener("change", () => {
      state.view = input.value;
      drawCells();
      drawOverlay();
    });
  }
  ["output-rows", "output-columns"].forEach((id, axis) => {
    for (let size = 1; size <= 7; size++) byId(id).append(new Option(size, size));
    byId(id).addEventListener("change", () => {
      const output = own().output.with(axis, Number(byId(id).value));
      change(() => (own().output = output));
    });
  });
  byId("back").addEventListener("click", () => (play(false), goTo(state.position - 1)));
  byId("next").addEventListener("click", () => (play(false), goTo(state.position + 1)));
  byId("play").addEventListener("click", () => play(state.playing === null));
  byId("predict").addEventListener("click", predictAnother);
  Object.entries(STAGES).forEach(([stage, name], number) => {
    const button = element("button", { type: "button", "data-stage": stage }, element("small", {}, String(number + 1)), name);
    button.addEventListener("click", () => (play(false), goTo(lastOf(stage))));
    byId("stages").append(element("li", {}, button));
  });
  ["x1 (left)", "y1 (top)", "x2 (right)", "y2 (bottom)"].forEach((name, at) => {
    const input = element("input", { type: "number" });
    input.addEventListener("change", () => {
      const roi = clampRoi(own().roi.with(at, Number(input.value)));
      change(() => (own().roi = roi));
      input.value = own().roi[at];
    });
    document.querySelector(".corner-inputs").append(element("label", {}, name, input));
  });
  window.addEventListener("resize", drawOutput);
}

function listPhotographSettings() {
  maps.photograph.channels.forEach((values, channel) => {
    const input = element("input", { type: "radio", name: "channel", value: channel, "aria-label": `channel ${data.photograph.channel_numbers[channel]}` });
    input.checked = channel === 0;
    const canvas = element("canvas", { "aria-hidden": "true" });
    drawThumbnail(canvas, values, maps.photograph.width, maps.photograph.height);
    input.addEventListener("change", () => change(() => {
      maps.photograph.values = values;
      drawCells();
    }));
    byId("channels").append(element("label", { title: `channel ${data.photograph.channel_numbers[channel]}` }, input, element("span", {}, canvas)));
  });
  for (const region of data.photograph.regions) {
    const button = element("button", { type: "button" }, `${region.name} ${region.score.toFixed(2)}`);
    button.addEventListener("click", () => change(() => (own().roi = [...region.box])));
    byId("presets").append(button);
  }
}

function drawThumbnail(canvas, values, width, height) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const largest = Math.max(...values) || 1;
  values.forEach((value, index) => {
    const share = Math.max(value / largest, 0);
    const colour = [24 + 231 * share, 34 + 180 * share, 66 - 10 * share, 255];
    pixels.data.set(colour, 4 * index);
  });
  context.putImageData(pixels, 0, 0);
}

async function drawPipeline() {
  const { photograph } = maps;
  const [region] = data.photograph.regions;
  const pooled = roiPool(photograph, region.box, [7, 7], 1 / photograph.stride, "overlapping").bins.map((bin) => bin.value);
  drawThumbnail(byId("thumb-map"), photograph.values, photograph.width, photograph.height);
  drawThumbnail(byId("thumb-pooled"), pooled, 7, 7);
  byId("thumb-class").replaceChildren(element("strong", {}, region.name), `score ${region.score.toFixed(2)}`);
  const image = new Image();
  image.src = photograph.jpeg;
  await image.decode();
  const canvas = byId("thumb-image");
  Object.assign(canvas, { width: image.width, height: image.height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const [x1, y1, x2, y2] = region.box;
  for (const [colour, width] of [["#000", 9], ["#fff", 5]]) {
    Object.assign(context, { strokeStyle: colour, lineWidth: width });
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

// ---- time

function time(seconds) {
  const [value, unit] = seconds >= 1 ? [seconds, "s"] : [seconds * 1000, "ms"];
  return `${value >= 100 ? Math.round(value) : value >= 10 ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
}

function drawTimes() {
  const { measured } = data.timing;
  const row = measured[byId("regions").value];
  const shared = row.backbone_s + row.pooling_s;
  const longest = Math.max(shared, row.separate_s);
  const bar = (label, seconds, backboneShare) => {
    const fill = element("div", { class: "fill", style: `width: ${(seconds / longest) * 78}%` });
    fill.append(element("div", { class: "backbone", style: `width: ${backboneShare * 100}%` }), element("div", { class: "pooling", style: `width: ${(1 - backboneShare) * 100}%` }));
    return element("div", { class: "row" }, element("div", {}, label), element("div", { class: "track" }, fill, element("span", { class: "time" }, time(seconds))));
  };
  const key = (hue, text) => [element("i", { style: `background: var(--${hue})` }), text];
  byId("bars").replaceChildren(
    bar("one pass, then RoI pooling", shared, row.backbone_s / shared),
    bar("one pass per region", row.separate_s, 1),
    element("div", { class: "legend" }, ...key("bin0", "backbone"), ...key("bin2", "RoI pooling")),
  );
  const factor = row.separate_s / shared;
  const times = factor >= 1 ? `${factor.toFixed(factor < 10 ? 1 : 0)} times as long` : "less, for so few regions";
  const sentence = `${row.regions} ${row.regions === 1 ? "region" : "regions"}: ${time(shared)} with a shared map, ${time(row.separate_s)} without: ${times}.`;
  byId("regions-value").textContent = row.regions;
  byId("regions").setAttribute("aria-valuetext", `${row.regions} regions`);
  byId("fast-sentence").textContent = sentence;
  byId("bars").setAttribute("aria-label", sentence);
}

function listTimes() {
  const { measured, machine, network, image_hw, crop_px } = data.timing;
  byId("regions").max = measured.length - 1;
  byId("regions").value = measured.length - 1;
  byId("regions").addEventListener("input", drawTimes);
  for (const row of measured) {
    const ratio = row.separate_s / (row.backbone_s + row.pooling_s);
    const cells = [row.regions, time(row.backbone_s), time(row.pooling_s), time(row.separate_s), ratio.toFixed(1)];
    document.querySelector("#timings tbody").append(element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell)))));
  }
  byId("timing-note").textContent =
    `Measured when this page was built, on ${machine}: ${network}, this image at ${image_hw[0]} × ${image_hw[1]} pixels. ` +
    `Without a shared map, each region is resized to ${crop_px} × ${crop_px} pixels, which gives the head the same 7 × 7 cells.`;
  byId("source").textContent = `The second map comes from ${network}, trained by this program; the regions are boxes that it found in this image.`;
  drawTimes();
}

listenToMap();
listenToSettings();
listPhotographSettings();
listTimes();
drawPipeline();
chooseMap("article");
