/** All heads of all layers, small: over an image where each looks, over a text what each does. */

import { pattern } from "glocal/controls";
import { h, rove, scroller } from "glocal/dom";
import { paint, shrink } from "glocal/paint";
import { change, query, state, watch } from "glocal/state";
import { percent, t } from "glocal/strings";

const CELLS = 40;

/** Return the heads as buttons, a row a layer; a click opens a head. */
export function grid(look, maps = false) {
  const box = h("div", { class: maps ? "grid maps" : "grid" });
  let thumbs = [];
  watch(["kind"], () => {
    const attention = look.attention[state.kind];
    thumbs = attention.layers.flatMap((layer) => [...Array(attention.heads).keys()].map((head) => thumb(attention, layer, head)));
    box.replaceChildren(scroller(t("all-heads"), table(attention, thumbs)), legend(attention));
    rove(box, thumbs.map((each) => each.button), attention.heads);
    if (!maps) thumbs.forEach((each) => paintWhole(attention, each));
  });
  if (maps) watch(["token", "peek", "kind"], () => thumbs.forEach((each) => paintMap(look, each)));
  watch(["kind", "layer", "head", "mode"], () => thumbs.forEach(mark));
  return box;
}

function thumb(attention, layer, head) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const shares = attention.shares(layer, head);
  const does = shares && pattern(shares);
  const local = attention.isLocal(layer, head);
  const label = [t("layer-head", { layer, head }), local && t("local"), does && `${t(`pattern-${does.name}`)} ${percent(does.share)}`];
  const button = h("button", {
    type: "button", class: `thumb${local ? " local" : ""}`, "aria-label": label.filter(Boolean).join(", "),
    title: label.filter(Boolean).join(", "), onclick: () => change({ layer, head, mode: "head" }),
  }, canvas);
  return { button, canvas, layer, head, names: does ? ["scale-0", `pattern-${does.name}`] : undefined };
}

function mark({ button, layer, head }) {
  const chosen = layer === state.layer && state.mode !== "rollout" && (state.mode === "mean" || head === state.head);
  button.setAttribute("aria-pressed", String(chosen));
}

function table(attention, thumbs) {
  const columns = h("div", { class: "thumbs", style: `--heads: ${attention.heads}` });
  columns.append(h("span", { class: "corner" }, t("layer")));
  for (let head = 0; head < attention.heads; head++) columns.append(h("span", { class: "name" }, head));
  attention.layers.forEach((layer, row) => {
    const buttons = thumbs.slice(row * attention.heads, (row + 1) * attention.heads).map((each) => each.button);
    columns.append(h("span", { class: "name" }, layer), ...buttons);
  });
  return columns;
}

/** Say what the colours mean. */
function legend(attention) {
  const shares = attention.shares(attention.layers[0], 0);
  if (shares) {
    const names = ["previous", "next", "same", "separator", "first"].filter((name) => name in shares);
    return h("ul", { class: "legend" }, [...names, "broad"].map((name) =>
      h("li", {}, h("i", { style: `background: var(--pattern-${name})` }), t(`pattern-${name}`))));
  }
  if (![...attention.localHeads.values()].some(Boolean)) return "";
  return h("ul", { class: "legend" }, ["global", "local"].map((kind) =>
    h("li", {}, h("i", { style: `background: var(--${kind})` }), t(kind))));
}

function paintWhole(attention, { canvas, layer, head, names }) {
  const { rows, columns, cells } = shrink(attention, layer, head, CELLS);
  paint(canvas, rows, columns, (row, column) => Math.sqrt(cells[row * columns + column]), names && { names });
}

function paintMap(look, { canvas, layer, head }) {
  const [rows, columns] = look.input.grid;
  const weights = look.attention[state.kind].row(layer, head, query()).subarray(look.input.prefix);
  paint(canvas, rows, columns, (row, column) => weights[row * columns + column], { most: Math.max(...weights) });
}
