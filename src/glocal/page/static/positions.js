/** Position embeddings as pictures, beside binary counting. */

import { Matrix } from "glocal/data";
import { h, scaleBar, slider } from "glocal/dom";
import { SIGNED, paint, usual } from "glocal/paint";
import { decimal, t } from "glocal/strings";

/** Return the pictures, and a slider over the positions. */
export function positions(look) {
  const { similarity, prefix } = look.positions;
  const similar = new Matrix(similarity);
  const count = similarity.shape[0];
  const figures = pictures(look.positions, similar);
  const map = hasAllPatches(look, count) ? patchMap(look.input.grid) : null;
  const said = h("p", { class: "said", "aria-live": "polite" });
  const control = h("div", { class: "controls" });
  const choose = (row) => {
    control.querySelector("output").textContent = row;
    control.querySelector("input").setAttribute("aria-valuetext", row);
    figures.forEach((each) => each.style.setProperty("--row", row));
    said.textContent = sentence(row, similar.row(row));
    map?.draw(similar.row(row).subarray(prefix));
  };
  const first = Math.min(prefix + 5, count - 1);
  control.append(slider(t("position"), [...Array(count).keys()], first, choose));
  choose(first);
  return [control, said, h("div", { class: "figures" }, figures, map?.figure), scaleBar(SIGNED, ["−", "0", "+"])];
}

/** Whether the positions of all patches of an image are here. */
function hasAllPatches({ input: { grid, prefix } }, count) {
  return grid && prefix + grid[0] * grid[1] === count;
}

/** Return a picture of the vectors, of sinusoids for comparison, of binary counting, and of similarities. */
function pictures({ kind, values, total }, similar) {
  const [count, channels] = values.shape;
  const matrix = new Matrix(values);
  const vectors = [...Array(count).keys()].map((row) => matrix.row(row));
  const likeness = vectors.map((_, row) => similar.row(row));
  const most = usual(...vectors);
  const bits = bitsOf(count);
  const all = total[1];
  const named = t(`positions-${kind}`, { positions: total[0], channels: all });
  return [
    figure(named, count, channels, (row, channel) => vectors[row][channel] / most),
    kind === "learned" &&
      figure(t("positions-compare"), count, channels, (row, channel) => sinusoid(row, channel, all)),
    figure(t("positions-binary"), count, bits, (row, bit) => (row >> (bits - 1 - bit)) & 1, "bits"),
    figure(t("positions-similar"), count, count, (row, column) => likeness[row][column]),
  ].filter(Boolean);
}

/** The digits of the last position in binary. */
function bitsOf(count) {
  return (count - 1).toString(2).length;
}

/** sin(p / 10000^(c/d)) for an even channel c, the cosine of the same angle for the odd one behind it. */
function sinusoid(position, channel, dim) {
  const angle = position / 10000 ** ((channel - (channel % 2)) / dim);
  return channel % 2 ? Math.cos(angle) : Math.sin(angle);
}

/** Return a picture of values from −1 to 1, with a mark on the row that is chosen. */
function figure(caption, rows, columns, value, name = "") {
  const canvas = h("canvas", { role: "img", "aria-label": caption });
  const mark = h("div", { class: "row-mark", "aria-hidden": "true" });
  paint(canvas, rows, columns, value, { least: -1, names: SIGNED });
  return h("figure", { class: `position ${name}`, style: `--rows: ${rows}` },
    h("div", { class: "box" }, canvas, mark), h("figcaption", {}, caption));
}

/** Return a map of an image: near patches have similar positions (Dosovitskiy et al. 2020, figure 7). */
function patchMap([rows, columns]) {
  const canvas = h("canvas", { role: "img", "aria-label": t("positions-map") });
  const caption = h("figcaption", {}, t("positions-map"));
  const draw = (similar) =>
    paint(canvas, rows, columns, (row, column) => similar[row * columns + column], { least: -1, names: SIGNED });
  return { figure: h("figure", { class: "position" }, h("div", { class: "box" }, canvas), caption), draw };
}

/** Name a position in binary, and the one that is most like it. */
function sentence(row, similar) {
  const order = [...similar.keys()].filter((other) => other !== row).sort((a, b) => similar[b] - similar[a]);
  const binary = row.toString(2).padStart(bitsOf(similar.length), "0");
  const near = order.length ? t("position-near", { other: order[0], cosine: decimal(similar[order[0]]) }) : "";
  return `${t("position-is", { row, binary })} ${near}`;
}
