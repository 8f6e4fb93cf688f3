/** The blocks of a model, from the first to the last, with their global and local heads; a click opens a head. */

import { formula, h, rove, scroller } from "glocal/dom";
import { change, state, watch } from "glocal/state";
import { t } from "glocal/strings";

/** Return the blocks drawn; null where all heads are global, since then all blocks look alike. */
export function blocks(look) {
  const drawn = look.model.blocks.filter((block) => block.stack === "blocks");
  if (!drawn.some((block) => block.local_heads)) return null;
  const heads = drawn.flatMap((block, layer) =>
    [...Array(block.global_heads + block.local_heads).keys()].map((head) => headOf(look, block, layer, head)));
  const cards = drawn.map((block, layer) => h("li", { class: "block" },
    h("span", { class: "name" }, t("block", { layer })),
    h("div", { class: "heads" }, heads.filter((each) => each.layer === layer).map((each) => each.button)),
    h("small", {}, sizes(block).map((line) => h("span", {}, formula(line))))));
  const list = h("ol", { class: "blocks" }, cards);
  rove(list, heads.map((each) => each.button));
  watch(["layer", "head", "mode"], () => heads.forEach(({ button, layer, head }) => {
    const open = state.mode === "head" && layer === state.layer && head === state.head;
    button.setAttribute("aria-pressed", String(open));
  }));
  return h("div", {}, scroller(t("blocks"), list));
}

function headOf(look, block, layer, head) {
  const local = head >= block.global_heads;
  const here = look.live || look.attention.blocks.layers.includes(layer);
  const label = `${t("layer-head", { layer, head })}, ${t(local ? "local" : "global")}`;
  const button = h("button", {
    type: "button", class: `head ${local ? "local" : "global"}`, "aria-label": label, title: label, disabled: !here,
    onclick: async () => {
      await look.open?.(layer);
      change({ layer, head, mode: "head" });
    },
  }, local ? "L" : "G");
  return { button, layer, head };
}

/** Say how large a block's parts are, in the paper's letters. */
function sizes(block) {
  return [
    block.global_heads ? `d_k × ${block.qkv_ratio}` : null,
    block.local_heads ? `K = ${block.kernel_size}, E = ${block.expand_ratio}` : null,
    `MLP × ${block.mlp_ratio}`,
  ].filter(Boolean);
}
