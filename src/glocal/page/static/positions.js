/** Position embeddings as pictures, beside binary counting. */

import { Matrix } from "glocal/data";
import { h, scaleBar, slider } from "glocal/dom";
import { SIGNED, paint, usual } from "glocal/paint";
import { decimal, t } from "glocal/strings";

/** Return the pictures, and a slider over the positions. */
export function positions(look) {
  const { kind, values, similarity, total, prefix } = look.positions;
  const [matrix, similar] = [new Matrix(values), new Matrix(similarity)];
  const count = values.shape[0];
  const rows = [...Array(count).keys()];
  const bits = (count - 1).toString(2).length;
  const figures = [
    figure(t(`positions-${kind}`, { positions: total[0], channels: total[1] }), (canvas) => {
      const vectors = rows.map((row) => matrix.row(row));
      const most = usual(...vectors);
      paint(canvas, count, values.shape[1], (row, column) => vectors[row][column], { least: -most, most, names: SIGNED });
    }, count),
    ...(kind === "learned" ? [figure(t("positions-compare"), (canvas) => {
      paint(canvas, count, values.shape[1], (row, channel) => sinusoid(row, channel, total[1]), { least: -1, names: SIGNED });
    }, count)] : []),
    figure(t("positions-binary"), (canvas) => paint(canvas, count, bits, (row, bit) => (row >> (bits - 1 - bit)) & 1), count, "bits"),
    figure(t("positions-similar"), (canvas) => {
      paint(canvas, count, count, (row, column) => similar.row(row)[column], { least: -1, names: SIGNED });
    }, count),
  ];
  const said = h("p", { class: "said", "aria-live": "polite" });
  const all = look.input.grid && prefix + look.input.grid[0] * look.input.grid[1] === count;
  const map = all ? patchMap(look.input.grid) : null;
  const control = h("div");
  const choose = (row) => {
    control.querySelector("output").textContent = row;
    control.querySelector("input").setAttribute("aria-valuetext", row);
    figures.forEach((each) => each.style.setProperty("--row", row));
    said.replaceChildren(...sentence(row, similar.row(row), bits));
    map?.draw(similar.row(row).subarray(prefix));
  };
  control.append(slider(t("position"), rows, Math.min(prefix + 5, count - 1), choose));
  choose(Math.min(prefix + 5, count - 1));
  return [h("div", { class: "controls" }, control), said, h("div", { class: "figures" }, figures, map?.figure), scaleBar(SIGNED, ["−", "0", "+"])];
}

/** Channel c of position p: sin(p / 10000^(c/d)) of an even one, the cosine of the same angle of the odd one behind it. */
function sinusoid(position, channel, dim) {
  const angle = position / 10000 ** ((channel - (channel % 2)) / dim);
  return channel % 2 ? Math.cos(angle) : Math.sin(angle);
}

function figure(caption, draw, count, name = "") {
  const canvas = h("canvas", { role: "img", "aria-label": caption });
  draw(canvas);
  return h("figure", { class: `position ${name}`, style: `--rows: ${count}` },
    h("div", { class: "box" }, canvas, h("div", { class: "row-mark", "aria-hidden": "true" })), h("figcaption", {}, caption));
}

/** The similarities of one position as a map of the image: near patches resemble each other (Dosovitskiy et al. 2020, figure 7). */
function patchMap([rows, columns]) {
  const canvas = h("canvas", { role: "img", "aria-label": t("positions-map") });
  const drawn = h("figure", { class: "position" }, h("div", { class: "box" }, canvas), h("figcaption", {}, t("positions-map")));
  return {
    figure: drawn,
    draw: (similar) => paint(canvas, rows, columns, (row, column) => similar[row * columns + column] ?? 0, { least: -1, names: SIGNED }),
  };
}

function sentence(row, similar, bits) {
  const order = [...similar.keys()].filter((other) => other !== row).sort((a, b) => similar[b] - similar[a]);
  return [
    t("position-is", { row, binary: row.toString(2).padStart(bits, "0") }), " ",
    order.length ? t("position-near", { other: order[0], cosine: decimal(similar[order[0]]) }) : "",
  ];
}
