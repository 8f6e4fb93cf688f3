/** Which attention is shown: its kind, the layer and the head, or what they give together. */

import { choice, h, slider } from "glocal/dom";
import { change, state, watch } from "glocal/state";
import { percent, t } from "glocal/strings";

/** Return the controls of an input's attention; `load` is called with a layer that is not here yet. */
export function controls(look, load) {
  return redrawn(() => parts(look, load));
}

/** Return sliders for a layer and a head alone. */
export function placeControls(look, load) {
  return redrawn(() => Object.values(sliders(look, load)));
}

/** Return a box that is filled anew at each change, and keeps the focus. */
function redrawn(fill) {
  const box = h("div", { class: "controls" });
  watch(["kind", "layer", "head", "mode"], () => {
    const focused = box.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    box.replaceChildren(...fill());
    if (focused) box.querySelector(`[data-part="${focused}"]`)?.focus();
  });
  return box;
}

function sliders(look, load) {
  const attention = look.attention[state.kind];
  const layers = load ? [...Array(attention.depth).keys()] : attention.layers;
  const heads = [...Array(attention.heads).keys()];
  const layer = slider(t("layer"), layers, state.layer, load ?? ((value) => change({ layer: value })));
  const head = slider(t("head"), heads, state.head, (value) => change({ head: value, mode: "head" }));
  layer.querySelector("input").dataset.part = "layer";
  head.querySelector("input").dataset.part = "head";
  return { layer, head };
}

function parts(look, load) {
  const attention = look.attention[state.kind];
  const kinds = Object.keys(look.attention).map((kind) => [kind, t(`kind-${kind}`)]);
  const { layer, head } = sliders(look, load);
  return [
    kinds.length > 1 && choice(t("kind"), kinds, state.kind, (kind) => openKind(look, kind)),
    choice(t("mode"), modes(attention), state.mode, (mode) => change({ mode })),
    state.mode === "rollout" ? null : layer,
    state.mode === "head" ? head : null,
    h("p", { class: "note" }, describe(look, attention)),
  ].filter(Boolean);
}

function modes(attention) {
  const modes = ["head", "mean", ...(attention.rollout ? ["rollout"] : [])];
  return modes.map((mode) => [mode, t(`mode-${mode}`), { "data-part": mode }]);
}

/** Say what the chosen head is, and what the file leaves out. */
function describe(look, attention) {
  const said = [];
  if (state.mode === "rollout") said.push(t("rollout-means"));
  if (state.mode === "head" && attention.isLocal(state.layer, state.head)) said.push(t("local-means"));
  const patterns = state.mode === "head" ? attention.shares(state.layer, state.head) : null;
  if (patterns) said.push(describePattern(pattern(patterns)));
  if (attention.layers.length < attention.depth && !look.live) {
    said.push(t("layers-left-out", { kept: attention.layers.join(", "), depth: attention.depth }));
  }
  if (attention.heads < attention.all_heads) {
    said.push(t("heads-left-out", { kept: attention.heads, all: attention.all_heads }));
  }
  return said.join(" ");
}

function describePattern({ name, share }) {
  if (name === "broad") return t("pattern-none");
  return t("pattern-is", { pattern: t(`pattern-${name}`), share: percent(share) });
}

/** Show another kind of attention, from its first token. */
export function openKind(look, kind) {
  const attention = look.attention[kind];
  const head = Math.min(state.head, attention.heads - 1);
  change({ kind, layer: attention.layers.at(-1), head, token: 0, peek: null, key: null });
}

const OFTEN = 0.4;
const PLACES = ["previous", "next", "same", "separator", "first"];

/** Return the pattern that a head follows most, and how much of its attention that gets; "broad" below 40 %. */
export function pattern(shares) {
  const [name, share] = PLACES.map((place) => [place, shares[place] ?? 0]).reduce((a, b) => (b[1] > a[1] ? b : a));
  return share < OFTEN ? { name: "broad", share } : { name, share };
}
