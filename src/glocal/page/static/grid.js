/** All heads of all layers, small: over an image where each looks, over a text what each does. */

import { pattern as patternOf } from "glocal/controls";
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
    const heads = [...Array(attention.heads).keys()];
    thumbs = maps
      ? heads.flatMap((head) => attention.layers.map((layer) => thumb(attention, layer, head)))
      : attention.layers.flatMap((layer) => heads.map((head) => thumb(attention, layer, head)));
    const drawn = table(attention, thumbs, maps);
    box.replaceChildren(scroller(t("all-heads"), drawn), legend(attention));
    rove(drawn, thumbs.map((each) => each.button), maps ? attention.layers.length : attention.heads);
    if (!maps) thumbs.forEach((each) => paintWhole(attention, each));
  });
  if (maps) watch(["token", "peek", "kind"], () => thumbs.forEach((each) => paintMap(look, each)));
  watch(["kind", "layer", "head", "mode"], () => thumbs.forEach(mark));
  return box;
}

function thumb(attention, layer, head) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const shares = attention.shares(layer, head);
  const does = shares && patternOf(shares);
  const local = attention.isLocal(layer, head);
  const pattern = does && `${t(`pattern-${does.name}`)} ${percent(does.share)}`;
  const label = [t("layer-head", { layer, head }), local && t("local"), pattern].filter(Boolean).join(", ");
  const button = h("button", {
    type: "button", class: `thumb${local ? " local" : ""}`, "aria-label": label, title: label,
    onclick: () => change({ layer, head, mode: "head" }),
  }, canvas);
  return { button, canvas, layer, head, names: does ? ["scale-0", `pattern-${does.name}`] : undefined };
}

function mark({ button, layer, head }) {
  const chosen = layer === state.layer && state.mode !== "rollout" && (state.mode === "mean" || head === state.head);
  button.setAttribute("aria-pressed", String(chosen));
}

/** Lay the heads out: a row a layer, or over an image a column a layer, below the blocks. */
function table({ layers, heads }, thumbs, maps) {
  const numbers = [...Array(heads).keys()];
  const [rows, columns] = maps ? [numbers, layers] : [layers, numbers];
  const names = [t(maps ? "layer" : "head"), t(maps ? "head" : "layer")];
  return h("div", { class: "thumbs", style: `--columns: ${columns.length}` },
    h("span", { class: "name" }, names[0]), columns.map((number) => h("span", { class: "name" }, number)),
    rows.map((number, i) => [h("span", { class: "name" }, `${names[1]} ${number}`),
      thumbs.slice(i * columns.length, (i + 1) * columns.length).map((each) => each.button)]));
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
