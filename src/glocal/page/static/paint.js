/** Numbers as colours. The scales are those of style.css, so that they follow the theme. */

const scales = new Map();

/** Forget the colours, when the theme changes. */
export function repaint() {
  scales.clear();
}

/** Return 256 colours between those that style.css names, as bytes of red, green, blue and opacity. */
function scale(names) {
  const key = names.join();
  if (!scales.has(key)) scales.set(key, new Uint32Array(blend(names.map(colour)).buffer));
  return scales.get(key);
}

/** Return a colour of style.css as the page shows it in its theme. */
function colour(name) {
  const probe = document.getElementById("svg");
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function blend(stops) {
  const pen = Object.assign(document.createElement("canvas"), { width: 256, height: 1 }).getContext("2d");
  const gradient = pen.createLinearGradient(0, 0, 256, 0);
  stops.forEach((stop, i) => gradient.addColorStop(i / (stops.length - 1), stop));
  pen.fillStyle = gradient;
  pen.fillRect(0, 0, 256, 1);
  return pen.getImageData(0, 0, 256, 1).data;
}

export const WEIGHT = ["scale-0", "scale-1", "scale-2"];
export const SIGNED = ["minus", "scale-0", "plus"];

/** Paint rows of numbers from `least` to `most`, a pixel each; style.css enlarges them. */
export function paint(canvas, rows, columns, value, { least = 0, most = 1, names = WEIGHT } = {}) {
  const colours = scale(names);
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const factor = 255 / (most - least || 1);
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) {
      pixels[i] = colours[Math.max(0, Math.min(255, Math.round((value(row, column) - least) * factor)))];
    }
  }
  pen.putImageData(image, 0, 0);
}

/** Paint a vector as a strip: below zero in one colour, above in another, the darker the larger. */
export function strip(vector, most, label) {
  const canvas = document.createElement("canvas");
  canvas.className = "strip-of-numbers";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  paint(canvas, 1, vector.length, (_, i) => vector[i], { least: -most, most, names: SIGNED });
  return canvas;
}

/** The greatest magnitude in vectors. */
export function magnitude(...vectors) {
  return Math.max(1e-9, ...vectors.map((vector) => vector.reduce((most, value) => Math.max(most, Math.abs(value)), 0)));
}

/** A magnitude that few values exceed: three times the root of their mean square. */
export function usual(...vectors) {
  const values = vectors.flatMap((vector) => [...vector]);
  return 3 * Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
}

/** Sum up a matrix in at most `size` × `size` cells, by the greatest weight of each. */
export function shrink(attention, layer, head, size) {
  const rows = Math.min(attention.queries.length, size), columns = Math.min(attention.keys.length, size);
  const cells = new Float32Array(rows * columns);
  const down = rows / attention.queries.length, right = columns / attention.keys.length;
  for (let query = 0; query < attention.queries.length; query++) {
    const begin = Math.floor(query * down) * columns;
    attention.row(layer, head, query).forEach((weight, key) => {
      const cell = begin + Math.floor(key * right);
      if (weight > cells[cell]) cells[cell] = weight;
    });
  }
  return { rows, columns, cells };
}
