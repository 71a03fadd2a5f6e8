// RoI pooling, bit by bit as in detector/roi_pool/reference.py: coordinates are float32, so every product and quotient
// is rounded by Math.fround. tests/test_page.py compares these functions with the operator in a browser.

const CELL_LIMIT = 2 ** 29;

// C's round(): halves away from zero. Math.round rounds -0.5 up to 0.
function roundHalfAway(value) {
  const magnitude = Math.abs(value);
  const whole = Math.floor(magnitude);
  const cell = Math.min(whole + (magnitude - whole >= 0.5 ? 1 : 0), CELL_LIMIT);
  return value < 0 ? -cell : cell;
}

// [x1, y1, x2, y2] in the frame of the image -> inclusive cells of the map.
function toCells(roi, scale) {
  return roi.map((value) => roundHalfAway(Math.fround(Math.fround(value) * Math.fround(scale))));
}

// The bins of the cells first..last along one axis of a map with `limit` cells: [{from, to}], `to` not included.
// "overlapping" is the operator: floor to ceil, in float32. "disjoint" is the article: floor to the next floor.
function binEdges(first, last, bins, limit, rule) {
  const cells = Math.max(last - first + 1, 1);
  const size = Math.fround(Math.fround(cells) / Math.fround(bins));
  const inside = (cell) => Math.min(Math.max(cell, 0), limit);
  return Array.from({ length: bins }, (_, i) => {
    const from = rule === "disjoint" ? Math.floor((i * cells) / bins) : Math.floor(Math.fround(i * size));
    const to = rule === "disjoint" ? Math.floor(((i + 1) * cells) / bins) : Math.ceil(Math.fround((i + 1) * size));
    return { from: inside(from + first), to: inside(to + first) };
  });
}

// Pool one region of map {height, width, values} to outputHW = [rows, columns].
// Each bin has its value and the index of the cell that it came from, the first of equal ones; -1 for an empty bin.
function roiPool(map, roi, outputHW, scale, rule) {
  const [x1, y1, x2, y2] = toCells(roi, scale);
  const rows = binEdges(y1, y2, outputHW[0], map.height, rule);
  const columns = binEdges(x1, x2, outputHW[1], map.width, rule);
  const bins = rows.flatMap((row) => columns.map((column) => maximum(map, row, column)));
  return { cells: [x1, y1, x2, y2], rows, columns, bins };
}

function maximum(map, row, column) {
  let best = 0;
  let cell = -1;
  for (let y = row.from; y < row.to; y++) {
    for (let x = column.from; x < column.to; x++) {
      const value = map.values[y * map.width + x];
      const firstNaN = Number.isNaN(value) && !Number.isNaN(best);
      if (cell < 0 || value > best || firstNaN) {
        best = value;
        cell = y * map.width + x;
      }
    }
  }
  return { value: best, cell };
}

// The gradient of the map: each bin's gradient goes to the cell of its maximum, where those of several bins add up.
function roiPoolBackward(map, bins, outputGradients) {
  const gradient = new Float32Array(map.height * map.width);
  bins.forEach(({ cell }, k) => {
    if (cell >= 0) gradient[cell] += outputGradients[k];
  });
  return gradient;
}
