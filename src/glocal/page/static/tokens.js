/** The tokens of a text in a line, with arcs from one to those that it attends to. */

import { h, rove, scroller, svg } from "glocal/dom";
import { greatest } from "glocal/data";
import { change, query, state, watch } from "glocal/state";
import { percent, t } from "glocal/strings";

const ARCS = 12;
const LEAST = 0.02;
const HEIGHT = 96;

/** Return the line of tokens; the mouse, a finger or the keyboard chooses the one that attends. */
export function tokenLine(look) {
  const box = h("div", { class: "token-line" });
  let line = null;
  watch(["kind"], () => {
    const attention = look.attention[state.kind];
    line = buildLine(attention);
    box.replaceChildren(scroller(t("tokens"), line.inner), line.said);
    requestAnimationFrame(() => reveal(line.buttons[Math.min(state.token, line.buttons.length - 1)]));
  });
  watch(["kind", "layer", "head", "mode", "token", "peek"], () => update(look.attention[state.kind], line));
  new ResizeObserver(() => update(look.attention[state.kind], line)).observe(box);
  return box;
}

/** Return a button of a token that is the query while the mouse is on it, and stays it after a click. */
export function queryButton(name, number) {
  return h("button", {
    type: "button", class: "token", onclick: () => change({ token: number, peek: null }),
    onpointerenter: (event) => event.pointerType === "mouse" && change({ peek: number }),
    onpointerleave: () => change({ peek: null }), onfocus: () => change({ token: number, peek: null }),
  }, h("span", {}, name || "\u00a0"), h("i", { class: "bar" }));
}

function buildLine(attention) {
  const buttons = attention.queries.map(queryButton);
  const arcs = svg("svg", { class: "arcs", height: HEIGHT, "aria-hidden": "true" });
  const inner = h("div", { class: "line" }, arcs, h("div", { class: "tokens" }, buttons));
  rove(inner, buttons, buttons.length, Math.min(state.token, buttons.length - 1));
  return { buttons, arcs, inner, said: h("p", { class: "said", "aria-live": "polite" }) };
}

/** Scroll a line so that a token is in its middle; the page stays where it is. */
export function reveal(token) {
  const window = token.closest(".scroller");
  if (window) window.scrollLeft = token.offsetLeft - window.clientWidth / 2;
}

function update(attention, { buttons, arcs, inner, said }) {
  const from = query();
  const weights = attention.chosen(state, from);
  const middle = (button) => button.offsetLeft + button.offsetWidth / 2;
  buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === from));
    button.querySelector(".bar").style.setProperty("--share", weights[i]);
  });
  arcs.setAttribute("width", inner.scrollWidth);
  const strongest = greatest(weights, ARCS).filter((key) => weights[key] > LEAST && key !== from);
  arcs.replaceChildren(...strongest.map((key) => arc(middle(buttons[from]), middle(buttons[key]), weights[key])));
  said.replaceChildren(...sentence(attention, from, weights));
}

function arc(x0, x1, weight) {
  const top = HEIGHT - Math.min(HEIGHT - 6, 14 + Math.abs(x1 - x0) * 0.28);
  const path = `M ${x0} ${HEIGHT} C ${x0} ${top}, ${x1} ${top}, ${x1} ${HEIGHT}`;
  return svg("path", { d: path, "stroke-width": 1 + 6 * weight, opacity: 0.25 + 0.75 * weight });
}

/** Say in words what the arcs show. */
export function sentence(attention, from, weights) {
  const most = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, 3);
  const parts = most.flatMap((key, i) =>
    [i ? ", " : " ", h("b", {}, attention.keys[key] || "␣"), ` ${percent(weights[key])}`]);
  return [h("b", {}, attention.queries[from] || "␣"), ` ${t("attends-to")}`, ...parts];
}
