/** Two lines, a translation above its source, with links from a token to those that it attends to. */

import { h, rove, scroller, svg } from "glocal/dom";
import { greatest } from "glocal/data";
import { query, state, watch } from "glocal/state";
import { t } from "glocal/strings";
import { queryButton, sentence } from "glocal/tokens";

const HEIGHT = 110;
const LINKS = 10;
const LEAST = 0.02;

/** Return the two lines of cross-attention. */
export function twoLines(look) {
  const attention = look.attention.cross;
  const queries = attention.queries.map(queryButton);
  const keys = attention.keys.map((name) =>
    h("span", { class: "token" }, h("span", {}, name || "\u00a0"), h("i", { class: "bar" })));
  const links = svg("svg", { class: "links", height: HEIGHT, "aria-hidden": "true" });
  const inner = h("div", { class: "line" },
    h("div", { class: "tokens" }, queries), links, h("div", { class: "tokens keys" }, keys));
  const said = h("p", { class: "said", "aria-live": "polite" });
  const box = h("div", { class: "token-line" }, scroller(t("tokens"), inner), said);
  rove(inner, queries, queries.length, Math.min(state.token, queries.length - 1));
  const draw = () => {
    if (state.kind === "cross") update(attention, { queries, keys, links, inner, said });
  };
  watch(["kind", "layer", "head", "mode", "token", "peek"], draw);
  new ResizeObserver(draw).observe(box);
  return box;
}

function update(attention, { queries, keys, links, inner, said }) {
  const from = query();
  const weights = attention.chosen(state, from);
  queries.forEach((button, i) => button.setAttribute("aria-pressed", String(i === from)));
  keys.forEach((token, i) => token.querySelector(".bar").style.setProperty("--share", weights[i]));
  const middle = (token) => token.offsetLeft + token.offsetWidth / 2;
  links.setAttribute("width", inner.scrollWidth);
  const strongest = greatest(weights, LINKS).filter((key) => weights[key] > LEAST);
  links.replaceChildren(...strongest.map((key) => link(middle(queries[from]), middle(keys[key]), weights[key])));
  said.replaceChildren(...sentence(attention, from, weights));
}

function link(x0, x1, weight) {
  const path = `M ${x0} 0 C ${x0} ${HEIGHT / 2}, ${x1} ${HEIGHT / 2}, ${x1} ${HEIGHT}`;
  return svg("path", { d: path, "stroke-width": 1 + 7 * weight, opacity: 0.25 + 0.75 * weight });
}
