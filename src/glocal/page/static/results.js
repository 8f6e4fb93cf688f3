/** What the model predicts: classes, a number, entities, answers, words for masked ones. */

import { h, rove } from "glocal/dom";
import { decimal, percent, t } from "glocal/strings";

/** Return the parts that show a result. */
export function results(look) {
  const { labels, score, entities, answers } = look.result;
  return [
    labels ? bars(labels, look.result.exclusive ? null : t("each-by-itself")) : null,
    score !== undefined && !labels ? h("p", { class: "score" }, decimal(score)) : null,
    entities ? marked(look.input.text, entities, (entity) => entity.type) : null,
    entities && !entities.length ? h("p", { class: "note" }, t("no-entity")) : null,
    answers ? answered(look) : null,
    look.masks ? masks(look) : null,
  ].filter(Boolean);
}

/** Return labels with a bar each. */
export function bars(labels, note = null, press = null) {
  const rows = labels.map((each, i) => {
    const inside = [
      h("span", { class: "label" }, each.label),
      h("span", { class: "bar-box" }, h("i", { style: `--share: ${each.probability}` })),
      h("span", { class: "number" }, percent(each.probability)),
    ];
    const pressed = each.pressed && "true";
    const attributes = { type: "button", onclick: () => press(each), disabled: each.disabled, "aria-pressed": pressed };
    const button = press && h("button", attributes, inside);
    return h("li", { class: i === 0 ? "first" : null }, button || inside);
  });
  return [h("ol", { class: "bars" }, rows), ...(note ? [h("p", { class: "note" }, note)] : [])];
}

/** Return a text in which some parts are marked; `mark` names each. */
function marked(text, parts, mark) {
  const kinds = [...new Set(parts.map(mark))].sort();
  const signs = [...text]; // the parts count characters, as Python does, and not UTF-16's halves
  const pieces = [];
  let end = 0;
  for (const part of [...parts].sort((a, b) => a.start - b.start)) {
    pieces.push(signs.slice(end, part.start).join(""));
    pieces.push(h("mark", { class: `kind-${kinds.indexOf(mark(part)) % 5}`, title: percent(part.score) },
      signs.slice(part.start, part.end).join(""), h("small", {}, mark(part), " ", percent(part.score))));
    end = part.end;
  }
  return h("p", { class: "marked" }, pieces, signs.slice(end).join(""));
}

function answered(look) {
  const { question, context } = look.input;
  const found = look.result.answers.map((answer) => (
    { ...answer, label: answer.text || t("no-answer"), probability: answer.score }));
  const box = h("div");
  const show = (answer) => {
    const isShown = (each) => each.start === answer.start && each.end === answer.end;
    box.replaceChildren(
      h("p", { class: "question" }, question), marked(context, answer.text ? [answer] : [], () => t("answer")),
      ...bars(found.map((each) => ({ ...each, pressed: isShown(each) })), null, show));
  };
  if (found.length) show(found[0]);
  return box;
}

/** Return the text with a button a token: a click masks it, and shows what the model expects there. */
function masks(look) {
  const tokens = look.attention.blocks.keys;
  const box = h("div", { class: "masks" });
  const words = new Map(Object.entries(look.masks));
  const filled = new Map();
  const show = async (chosen, focus = true) => {
    const expected = words.get(String(chosen)) ?? (await look.mask?.(chosen));
    if (expected) words.set(String(chosen), expected);
    const buttons = tokens.map((name, i) => h("button", {
      type: "button", class: `word${filled.has(i) ? " filled" : ""}`, "aria-pressed": String(i === chosen),
      disabled: !look.mask && !words.has(String(i)), onclick: () => show(i),
    }, i === chosen ? (filled.get(i) ?? "[MASK]") : (filled.get(i) ?? name)));
    const options = expected?.map((each) => ({ ...each, pressed: filled.get(chosen) === each.label }));
    const list = options && bars(options, null, (each) => (filled.set(chosen, each.label), show(chosen)));
    const row = h("div", { class: "words" }, buttons);
    rove(row, buttons, buttons.length, chosen ?? 0);
    box.replaceChildren(h("p", { class: "note" }, t("mask-hint")), row, ...(list ?? []));
    if (focus) buttons[chosen]?.focus();
  };
  const masked = tokens.findIndex((name) => /^[[<]mask[\]>]$/i.test(name));
  show(masked >= 0 ? masked : undefined, false);
  return box;
}
