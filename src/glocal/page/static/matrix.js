/** The matrix of a head: a row a query, a column a key. */

import { h, scaleBar } from "glocal/dom";
import { WEIGHT, paint } from "glocal/paint";
import { change, query, state, watch } from "glocal/state";
import { percent, t } from "glocal/strings";

const NAMED = 44;
const WIDEST = 440;
const MARGIN = 130;

/** Return the matrix of what is chosen; the mouse over a row shows that token's attention. */
export function matrix(look) {
  const cells = h("canvas", { class: "cells", role: "img" });
  const frame = h("div", { class: "row-mark", "aria-hidden": "true" });
  const rows = h("div", { class: "row-names", "aria-hidden": "true" });
  const columns = h("div", { class: "column-names", "aria-hidden": "true" });
  const said = h("figcaption", {});
  const figure = h("figure", { class: "matrix" }, columns, rows, h("div", { class: "box" }, cells, frame), said,
    scaleBar(WEIGHT, [0, 0.25, 1].map(percent)));
  const attention = () => look.attention[state.kind];
  const explain = () => (said.textContent = t("matrix-means"));

  watch(["kind"], () => layOut(attention(), figure, rows, columns));
  watch(["kind", "layer", "head", "mode"], () => {
    const { queries, keys } = attention();
    const values = queries.map((_, row) => attention().chosen(state, row));
    paint(cells, queries.length, keys.length, (row, column) => Math.sqrt(values[row][column]));
    cells.setAttribute("aria-label", t("matrix-of", { queries: queries.length, keys: keys.length }));
    explain();
  });
  watch(["kind", "token", "peek"], () => frame.style.setProperty("--row", query()));
  cells.addEventListener("pointermove", (event) => {
    const [row, column] = cellAt(cells, event, attention());
    change({ peek: row });
    const weight = attention().chosen(state, row)[column];
    said.textContent = `${attention().queries[row]} → ${attention().keys[column]}  ${percent(weight)}`;
  });
  cells.addEventListener("pointerleave", () => (change({ peek: null }), explain()));
  cells.addEventListener("click", (event) => change({ token: cellAt(cells, event, attention())[0], peek: null }));
  return figure;
}

function layOut({ queries, keys }, figure, rows, columns) {
  const available = Math.min(WIDEST, document.documentElement.clientWidth - MARGIN);
  const side = Math.max(4, Math.min(26, available / Math.max(queries.length, keys.length)));
  figure.style.setProperty("--side", `${side}px`);
  figure.style.setProperty("--rows", queries.length);
  figure.style.setProperty("--columns", keys.length);
  const named = Math.max(queries.length, keys.length) <= NAMED;
  figure.classList.toggle("named", named);
  rows.replaceChildren(...(named ? queries : []).map((name) => h("span", {}, name)));
  columns.replaceChildren(...(named ? keys : []).map((name) => h("span", {}, name)));
}

function cellAt(cells, event, { queries, keys }) {
  const place = (value, size, count) => Math.max(0, Math.min(count - 1, Math.floor((value / size) * count)));
  const box = cells.getBoundingClientRect();
  return [
    place(event.clientY - box.top, box.height, queries.length),
    place(event.clientX - box.left, box.width, keys.length),
  ];
}
