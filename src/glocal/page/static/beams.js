/** What beam search followed, as a tree: translations that begin alike share their beginning. */

import { h, scroller } from "glocal/dom";
import { decimal, percent, t } from "glocal/strings";

/** Return the hypotheses with their scores, and the tree of all beginnings that were followed. */
export function beams(look) {
  const { tree, hypotheses } = look.result;
  const below = new Map();
  tree.forEach((node, number) => number && below.set(node.parent, [...(below.get(node.parent) ?? []), number]));
  const best = new Set(pathTo(tree, hypotheses[0].node));
  const ends = new Map(hypotheses.map((each, rank) => [each.node, rank]));
  const names = ["", t("translation"), t("beam-score")].map((name) => h("th", { scope: "col" }, name));
  const branches = (below.get(0) ?? []).map((node) => branch({ tree, below, best, ends }, node));
  const rows = hypotheses.map((each, rank) => h("tr", { class: rank === 0 ? "best" : null },
    h("td", { class: "number" }, rank + 1), h("td", {}, each.text), h("td", { class: "number" }, decimal(each.score))));
  return [
    scroller(t("translations"),
      h("table", { class: "hypotheses" }, h("thead", {}, h("tr", {}, names)), h("tbody", {}, rows))),
    h("details", { open: true }, h("summary", {}, t("beam-tree")), h("p", { class: "note" }, t("beam-tree-means")),
      scroller(t("beam-tree"), h("ul", { class: "beam-tree" }, branches))),
  ];
}

/** Return a run of tokens without a fork, and what follows it. */
function branch(search, node) {
  const { tree, below, best, ends } = search;
  const run = [node];
  while ((below.get(run.at(-1)) ?? []).length === 1 && !ends.has(run.at(-1))) run.push(below.get(run.at(-1))[0]);
  const tokens = run.map((number) => h("span", {
    class: best.has(number) ? "best" : null, title: percent(tree[number].probability),
  }, tree[number].token.replaceAll("▁", "\u00a0") || "␣"));
  const next = below.get(run.at(-1)) ?? [];
  const rank = ends.get(run.at(-1));
  const end = rank === undefined ? h("small", {}, t("dropped")) : h("small", { class: "rank" }, rank + 1);
  return h("li", {},
    h("span", { class: "run" }, tokens, rank === undefined && next.length ? null : end),
    next.length ? h("ul", {}, next.map((child) => branch(search, child))) : null);
}

function pathTo(tree, node) {
  const path = [];
  for (let here = node; here > 0; here = tree[here].parent) path.push(here);
  return path;
}
