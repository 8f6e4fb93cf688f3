/** An image and its patches: where the chosen head looks from one of them. */

import { choice, h, scaleBar } from "glocal/dom";
import { paint } from "glocal/paint";
import { change, query, state, watch } from "glocal/state";
import { percent, t } from "glocal/strings";

const VEIL = ["veil-0", "veil-1", "veil-2"];

/** Return the image; the mouse, a finger or the arrow keys choose the patch that attends. */
export function picture(look) {
  const { image, grid: [rows, columns], prefix } = look.input;
  const veil = h("canvas", { class: "veil", "aria-hidden": "true" });
  const mark = h("div", { class: "patch-mark", "aria-hidden": "true" });
  const legend = h("div");
  const said = h("p", { class: "said", "aria-live": "polite" });
  const patches = h("div", {
    class: "patches", tabindex: 0, role: "application", "aria-label": t("patches"),
    style: `--rows: ${rows}; --columns: ${columns}`,
  }, h("img", { src: image, alt: t("image-seen") }), veil, mark);
  listen(patches, rows, columns, prefix);
  watch(["layer", "head", "mode", "token", "peek"], () => {
    const weights = look.attention.blocks.chosen(state, query()).subarray(prefix);
    const most = Math.max(...weights);
    paint(veil, rows, columns, (row, column) => weights[row * columns + column] / most, { names: VEIL });
    legend.replaceChildren(scaleBar(VEIL, [percent(0), percent(most)]));
    const patch = query() - prefix;
    mark.hidden = patch < 0;
    mark.style.setProperty("--row", Math.floor(patch / columns));
    mark.style.setProperty("--column", patch % columns);
    said.textContent = sentence(look, patch, weights, columns);
  });
  return h("div", { class: "picture" }, patches, legend, special(look), said);
}

function sentence(look, patch, weights, columns) {
  const best = weights.indexOf(Math.max(...weights));
  const named = (number) => t("patch", { row: Math.floor(number / columns) + 1, column: (number % columns) + 1 });
  const from = patch < 0 ? t(`token-${look.attention.blocks.queries[query()]}`) : named(patch);
  return t("attends-most", { from, to: named(best), share: percent(weights[best]) });
}

/** Return buttons of the tokens that are no patches. */
function special(look) {
  if (!look.input.prefix) return null;
  const box = h("div");
  watch(["token"], () => {
    const tokens = look.attention.blocks.queries.slice(0, look.input.prefix);
    const options = [...tokens.map((name) => t(`token-${name}`)), t("a-patch")].map((name, i) => [i, name]);
    const chosen = Math.min(state.token, look.input.prefix); // the first patch stands for all of them
    box.replaceChildren(choice(t("from"), options, chosen, (token) => change({ token, peek: null })));
  });
  return box;
}

function listen(patches, rows, columns, prefix) {
  const at = (event) => {
    const box = patches.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return prefix + Math.max(0, Math.min(rows - 1, row)) * columns + Math.max(0, Math.min(columns - 1, column));
  };
  patches.addEventListener("pointermove", (event) => event.pointerType === "mouse" && change({ peek: at(event) }));
  patches.addEventListener("pointerleave", () => change({ peek: null }));
  patches.addEventListener("click", (event) => change({ token: at(event), peek: null }));
  patches.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (!step) return;
    event.preventDefault();
    const there = state.token < prefix ? prefix : state.token + step;
    if (there >= prefix && there < prefix + rows * columns) change({ token: there, peek: null });
  });
}
