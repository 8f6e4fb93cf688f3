/** Attention step by step, for one token and one head, in the order of the paper (Vaswani et al. 2017, section 3.2). */

import { Vectors, dot, greatest, softmax } from "glocal/data";
import { placeControls } from "glocal/controls";
import { choice, formula, h, scaleBar, scroller } from "glocal/dom";
import { SIGNED, magnitude, strip } from "glocal/paint";
import { change, state, watch } from "glocal/state";
import { decimal, percent, t } from "glocal/strings";

const SHOWN = 10;
const TERMS = 3;

/** Return the steps; `load` fetches the vectors of a layer from a server, and is missing in a file. */
export function steps(look, load) {
  const body = h("div");
  const box = h("div", { class: "steps" }, placeControls(look, look.open), body);
  const layers = new Map();
  let all = false;
  const redraw = async () => {
    const attention = look.attention[state.kind];
    const local = attention.isLocal(state.layer, state.head);
    const vectors = local ? null : await layerVectors(look, layers, load);
    if (!vectors) {
      body.replaceChildren(h("p", { class: "note" }, local ? t("no-vectors-local") : missing(look)));
      return;
    }
    const options = [[false, t("rows-some")], [true, t("rows-all")]];
    const toggle = choice(t("rows"), options, all, (value) => ((all = value), redraw()));
    body.replaceChildren(...draw(look, vectors, all, toggle));
  };
  watch(["kind", "layer", "head", "token", "key"], redraw);
  return box;
}

/** Return the vectors of the chosen layer, null where they are not to be had. */
async function layerVectors(look, layers, load) {
  const { kind, layer } = state;
  const name = `${kind} ${layer}`;
  if (!layers.has(name)) {
    const kept = look.vectors?.[kind]?.find((vectors) => vectors.layer === layer) ?? (await load?.(kind, layer));
    layers.set(name, kept ? new Vectors(kept) : null);
  }
  return layers.get(name);
}

function missing(look) {
  const kept = (look.vectors?.[state.kind] ?? []).map((vectors) => vectors.layer);
  return t("no-vectors", { kept: kept.join(", ") });
}

/** Compute the steps from q, k and v. */
function compute(attention, vectors) {
  const { head, token } = state;
  const q = vectors.vector("queries", head, token);
  const keys = attention.keys.map((_, key) => vectors.vector("keys", head, key));
  const values = attention.keys.map((_, key) => vectors.vector("values", head, key));
  const scores = keys.map((k) => dot(q, k) / Math.sqrt(q.length));
  const open = scores.map((score, key) => (attention.causal && key > token ? -Infinity : score));
  const weights = softmax(open);
  const output = new Float32Array(values[0].length);
  values.forEach((v, key) => v.forEach((value, i) => (output[i] += weights[key] * value)));
  return { q, keys, values, scores: open, weights, output };
}

function draw(look, vectors, all, toggle) {
  const attention = look.attention[state.kind];
  const found = compute(attention, vectors);
  const { q, weights, output } = found;
  const key = state.key ?? weights.indexOf(Math.max(...weights));
  const says = formula(t("step-1-says", { token: attention.queries[state.token], d: q.length }));
  return [
    step("step-1", h("p", {}, says), named("q", q, scaleBar(SIGNED, ["−", "0", "+"]))),
    step("step-2",
      h("p", {}, formula(t("step-2-says", { d: q.length }))),
      attention.causal && h("p", {}, t("step-mask")),
      look.input.grid && h("p", {}, t("step-patches")),
      attention.keys.length > SHOWN && toggle,
      scroller(t("step-2"), table(attention, found, key, all))),
    step("step-3", worked(attention, found, key)),
    step("step-4", h("p", {}, formula(t("step-4-says"))), named("Σ aⱼvⱼ", output)),
  ];
}

function step(name, ...parts) {
  return h("div", { class: "step" }, h("h3", {}, t(name)), parts);
}

/** Return a vector as a strip, with its name and its least and greatest number. */
function named(name, vector, legend = null) {
  const drawn = strip(vector, magnitude(vector), vectorLabel(name, vector));
  return h("div", { class: "formula" }, h("i", {}, name), drawn, h("span", {}, ends(vector)), legend);
}

/** Return the tokens with the largest weights, or all: their keys, scores, weights and values. */
function table(attention, found, key, all) {
  const { keys, values, weights } = found;
  const shown = greatest(weights, all ? weights.length : SHOWN);
  if (!shown.includes(key)) shown.push(key);
  const most = { k: magnitude(...keys), v: magnitude(...values) };
  const rest = attention.keys.length - shown.length;
  const share = Math.max(shown.reduce((sum, each) => sum - weights[each], 1), 0);
  const foot = h("tr", {}, h("th", { scope: "row", colspan: 3 }, t("others", { count: rest })),
    h("td", { class: "number" }, percent(share)), h("td"));
  return h("table", {}, head(), h("tbody", {}, shown.map((each) => row(attention, found, each, most))),
    rest ? h("tfoot", {}, foot) : null);
}

function head() {
  const names = [t("token"), "k", "q·k / √d_k", t("softmax"), "v"];
  return h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, formula(name)))));
}

function row(attention, { keys, values, scores, weights }, key, most) {
  const press = { type: "button", class: "plain", onclick: () => change({ key }) };
  const choose = h("button", press, attention.keys[key] || "␣");
  const meter = h("span", { class: "meter", style: `--share: ${weights[key]}` });
  return h("tr", { class: key === state.key ? "chosen" : null },
    h("th", { scope: "row" }, choose),
    h("td", {}, strip(keys[key], most.k, vectorLabel("k", keys[key]))),
    h("td", { class: "number" }, scores[key] === -Infinity ? "−∞" : decimal(scores[key])),
    h("td", { class: "number" }, meter, percent(weights[key])),
    h("td", {}, strip(values[key], most.v, vectorLabel("v", values[key]))));
}

/** Write out the calculation of one weight. */
function worked(attention, { q, keys, scores, weights }, key) {
  const k = keys[key];
  const order = greatest(q.map((value, i) => Math.abs(value * k[i])), TERMS);
  const terms = order.map((i) => `${decimal(q[i])} × ${decimal(k[i])}`).join(" + ");
  const sum = dot(q, k);
  const power = Math.exp(scores[key]).toPrecision(3);
  const powers = scores.reduce((total, score) => total + Math.exp(score), 0).toPrecision(3);
  const lines = scores[key] === -Infinity ? ["e^−∞ = 0"] : [
    `q·k = ${terms} + … = ${decimal(sum)}`,
    `q·k / √${q.length} = ${decimal(sum)} / ${decimal(Math.sqrt(q.length))} = ${decimal(scores[key])}`,
    `e^${decimal(scores[key])} / Σⱼ e^sⱼ = ${power} / ${powers} = ${percent(weights[key])}`,
  ];
  return [
    h("p", {}, t("step-3-says", { query: attention.queries[state.token], key: attention.keys[key] })),
    h("pre", { tabindex: 0, role: "region", "aria-label": t("step-3") }, lines.join("\n")),
  ];
}

function ends(vector) {
  return `${decimal(Math.min(...vector))} … ${decimal(Math.max(...vector))}`;
}

function vectorLabel(name, vector) {
  return t("vector", { name, count: vector.length, ends: ends(vector) });
}
