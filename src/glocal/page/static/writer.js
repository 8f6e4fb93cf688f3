/** A text that is written token by token, each with its probability and the runners-up; a click goes on from one. */

import { h, rove } from "glocal/dom";
import { bars } from "glocal/results";
import { percent, t } from "glocal/strings";

const PACE = 70;

/** Return the text and what else might have followed; `go` asks a server to continue a path, and a file has none. */
export function writer(look, go) {
  const tree = new Tree(look.result.tree);
  let path = [...look.result.written];
  let chosen = null;
  const text = h("p", { class: "written" });
  const options = h("div", { class: "options" });
  const more = go ? h("button", { type: "button", class: "primary", onclick: () => extend() }, t("write-on")) : "";
  const box = h("div", {}, text, options, more);

  const show = (place, focus = false) => {
    chosen = Math.min(place, path.length - 1);
    const buttons = path.map((node, i) => tokenButton(tree.nodes[node], i === chosen, () => show(i, true)));
    const line = h("span", {}, buttons.map((button, i) => [button, breaks(tree.nodes[path[i]]) && h("br")]));
    text.replaceChildren(h("span", { class: "prompt" }, plain(look.result.prompt.join(""))), line);
    rove(line, buttons, buttons.length, Math.max(chosen, 0));
    if (focus) buttons[chosen]?.focus();
    options.replaceChildren(...(path.length ? runnersUp(tree, path[chosen], go, take) : []));
  };
  const take = async (node) => {
    path = [...path.slice(0, chosen), node];
    while (tree.children(path.at(-1)).length) path.push(tree.children(path.at(-1))[0]);
    if (path.length === chosen + 1 && go) await extend(chosen);
    else show(chosen, true);
  };
  const extend = async (place = path.length) => {
    const found = await go(path.map((node) => tree.nodes[node].id));
    if (!found) return;
    path.push(...tree.graft(path.at(-1) ?? 0, found.tree, found.written));
    show(place, true);
  };
  show(0);
  play(text);
  return box;
}

/** The tokens that may follow each other. */
class Tree {
  constructor(nodes) {
    this.nodes = nodes.map((node) => ({ ...node }));
    this.below = new Map();
    this.nodes.forEach((node, number) => number && this.link(node.parent, number));
  }

  link(parent, number) {
    if (!this.below.has(parent)) this.below.set(parent, []);
    this.below.get(parent).push(number);
  }

  /** The nodes that follow one, the most probable first. */
  children(node) {
    return this.below.get(node) ?? [];
  }

  /** Add a tree that continues a node; return the new numbers of the text that was written. */
  graft(node, nodes, written) {
    const shift = this.nodes.length - 1;
    nodes.slice(1).forEach((each) => {
      this.nodes.push({ ...each, parent: each.parent ? each.parent + shift : node });
      this.link(this.nodes.at(-1).parent, this.nodes.length - 1);
    });
    return written.map((number) => number + shift);
  }
}

/** A token as text: ▁ stands for a space, ⏎ for a new line. */
function plain(token) {
  return token.replaceAll("▁", " ").replaceAll("⏎", "\n");
}

/** Whether a line ends with a token. */
function breaks(node) {
  return node.token.includes("⏎");
}

function tokenButton(node, pressed, press) {
  return h("button", {
    type: "button", class: "piece", "aria-pressed": String(pressed), style: `--share: ${node.probability}`,
    title: percent(node.probability), onclick: press,
  }, breaks(node) ? node.token : plain(node.token));
}

function runnersUp(tree, node, go, take) {
  const { parent } = tree.nodes[node];
  const options = tree.children(parent).map((number) => {
    const { token, probability } = tree.nodes[number];
    const pressed = number === node;
    const goesOn = go || pressed || tree.children(number).length;
    return { label: token || "␣", probability, number, pressed, disabled: !goesOn };
  });
  const hint = t(go ? "instead-hint" : "instead-hint-file");
  return [h("h3", {}, t("instead")), ...bars(options, hint, (each) => each.pressed || take(each.number))];
}

/** Let the tokens appear one by one, unless the reader wants no motion. */
function play(text) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  text.querySelectorAll(".piece").forEach((piece, i) =>
    piece.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 180, delay: i * PACE, fill: "backwards" }));
}
