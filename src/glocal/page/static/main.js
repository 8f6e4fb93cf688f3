/** The page: its header, an input where a server is there to look at it, and a section for each part of the numbers. */

import { beams } from "glocal/beams";
import { blocks } from "glocal/blocks";
import { controls } from "glocal/controls";
import { Attention } from "glocal/data";
import { choice, h, section } from "glocal/dom";
import { grid } from "glocal/grid";
import { form } from "glocal/inputs";
import { twoLines } from "glocal/links";
import { matrix } from "glocal/matrix";
import { repaint } from "glocal/paint";
import { picture } from "glocal/picture";
import { positions } from "glocal/positions";
import { results } from "glocal/results";
import { ask, embedded, keepToken, models } from "glocal/source";
import { change, forget, state, watch } from "glocal/state";
import { steps } from "glocal/steps";
import { LANGUAGES, language, number, setLanguage, t } from "glocal/strings";
import { tokenLine } from "glocal/tokens";
import { writer } from "glocal/writer";

const page = {
  models: [], // those of the server
  model: null, // the one that is looked at
  given: {}, // its input
  look: null, // the numbers of the input, ready to be shown
  problem: "", // what went wrong
  locked: false, // whether the server wants a token
  busy: false,
};

/** Show the numbers of the file, or the form for an input of the server's first model. */
export async function start() {
  setTheme(localStorage.getItem("glocal-theme") ?? "");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const numbers = embedded();
  if (numbers) accept(numbers);
  else await connect();
  draw();
}

async function connect() {
  await attempt(async () => {
    page.models = await models();
    page.model = page.models[0];
  });
}

/** Do what may fail, and say what went wrong. */
async function attempt(what) {
  Object.assign(page, { problem: "", locked: false });
  try {
    return await what();
  } catch (error) {
    Object.assign(page, { problem: error.message, locked: error.status === 401 });
    return null;
  }
}

/** Make numbers ready to be shown; those of a server may be asked for more, by `payload`. */
function accept(numbers, payload = null) {
  const kinds = Object.entries(numbers.attention).map(([kind, each]) => [kind, new Attention(each)]);
  const look = { ...numbers, attention: Object.fromEntries(kinds) };
  if (payload) {
    look.live = true;
    look.more = (wanted) => more({ ...payload, path: writtenPath(look), ...wanted });
    look.open = (layer) => openLayer(look, layer);
    if (look.task === "masked-lm") {
      look.masks = {};
      look.mask = async (token) => (await look.more({ parts: ["masks"], token }))?.masks[token];
    }
  }
  page.look = look;
  firstView(look, look.attention.cross ? "cross" : kinds[0][0]);
}

/** Ask for more of the same input; null, and the page says why, where it is not to be had. */
async function more(payload) {
  const found = await attempt(() => ask(page.model.id, payload));
  if (!found) draw();
  return found;
}

function firstView(look, kind) {
  const attention = look.attention[kind];
  const last = look.result.prompt ? attention.queries.length - 1 : 0;
  Object.assign(state, {
    kind, layer: attention.layers.at(-1), head: 0, mode: attention.rollout ? "rollout" : "head",
    token: last, peek: null, key: null,
  });
}

/** The ids of the text that was written: other parts are asked for the same text. */
function writtenPath({ result }) {
  return result.written?.map((node) => result.tree[node].id);
}

/** Fetch a layer that was left out. */
async function openLayer(look, layer) {
  const attention = look.attention[state.kind];
  if (!attention.parts.has(layer)) {
    const found = await look.more({ parts: ["attention"], layer, kind: state.kind });
    if (!found) return;
    attention.add(found.attention[state.kind]);
  }
  change({ layer });
}

async function submit(payload) {
  Object.assign(page, { busy: true, given: payload });
  draw();
  const numbers = await attempt(() => ask(page.model.id, payload));
  if (numbers) accept(numbers, payload);
  page.busy = false;
  draw();
}

/** Draw all of it anew, in the chosen language. */
function draw() {
  forget();
  repaint();
  document.documentElement.lang = language();
  const task = page.look?.task ?? page.model?.task;
  document.title = task ? `${t(`task-${task}`)} · glocal` : "glocal";
  document.getElementById("header").replaceChildren(...header(task));
  const parts = [...intake(task), ...(page.look ? sections(page.look) : [])];
  document.getElementById("main").replaceChildren(...parts.filter(Boolean));
}

function header(task) {
  const title = h("div", { class: "title" },
    h("h1", {}, task ? t(`task-${task}`) : "glocal"), page.look ? h("p", {}, describe(page.look)) : null);
  const languages = LANGUAGES.map(([code, name]) => [code, name, { lang: code }]);
  const themes = ["", "light", "dark"].map((name) => [name, t(`theme-${name || "auto"}`)]);
  const theme = document.documentElement.dataset.theme ?? "";
  return [title, h("nav", { "aria-label": t("settings") }, modelChoice(),
    choice(t("language"), languages, language(), (code) => (setLanguage(code), draw())),
    choice(t("theme"), themes, theme, (name) => (setTheme(name), draw())))];
}

function describe({ model, attention }) {
  const { depth, all_heads: heads } = Object.values(attention)[0];
  return [
    t(`family-${model.family}`), t("parameters", { count: number(model.parameters) }),
    t("depth", { layers: model.blocks.length || depth, heads }),
  ].join(" · ");
}

function modelChoice() {
  if (page.models.length < 2) return null;
  const options = page.models.map(({ id }) => h("option", { value: id, selected: id === page.model.id }, id));
  const choose = (event) => {
    const model = page.models.find(({ id }) => id === event.target.value);
    Object.assign(page, { model, given: {}, look: null, problem: "" });
    draw();
  };
  return h("select", { "aria-label": t("model"), onchange: choose }, options);
}

function setTheme(name) {
  localStorage.setItem("glocal-theme", name);
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

/** Return the form for an input, where there is a server, and what went wrong. */
function intake(task) {
  return [
    page.model && form(task, page.given, submit),
    page.busy && h("p", { class: "note", role: "status" }, t("busy")),
    page.problem && h("p", { class: "problem", role: "alert" }, page.problem),
    page.locked && unlock(),
  ];
}

function unlock() {
  const field = h("input", { type: "password", id: "token", required: true, autocomplete: "off" });
  return h("form", {
    class: "input", onsubmit: async (event) => {
      event.preventDefault();
      keepToken(field.value);
      await connect();
      draw();
    },
  }, h("label", { for: "token" }, t("server-token")), field, h("button", { class: "primary" }, t("unlock")));
}

function sections(look) {
  const image = Boolean(look.input.image);
  const go = look.live && (async (path) => (await look.more({ parts: ["result"], path }))?.result);
  const fetchVectors = async (kind, layer) => (await look.more({ parts: ["vectors"], layer, kind }))?.vectors[kind][0];
  return [
    image ? null : resultSection(look, go),
    image ? imageSection(look) : textSection(look),
    section("steps", t("steps"), t("steps-lead"), steps(look, look.live ? fetchVectors : null)),
    look.positions ? positionSection(look) : null,
    look.live ? null : footer(),
  ];
}

function positionSection(look) {
  return section("positions", t("positions"), t(`positions-lead-${look.positions.kind}`), positions(look));
}

function footer() {
  const parts = t("made-by").split("`"); // every second one is a command
  return h("footer", {}, h("p", {}, parts.map((part, i) => (i % 2 ? h("code", {}, part) : part))));
}

function resultSection(look, go) {
  if (look.result.prompt) return section("result", t("writing"), t("writing-lead"), writer(look, go));
  if (look.result.hypotheses) return section("result", t("translations"), look.input.text, beams(look));
  const shown = results(look);
  const isShort = look.result.labels || look.result.score !== undefined; // other results show the text themselves
  const lead = isShort ? [look.input.text, look.input.pair].filter(Boolean).join(" · ") : null;
  return shown.length ? section("result", t("result"), lead, shown) : null;
}

function imageSection(look) {
  const shown = results(look);
  return section("attention", t("where"), t("where-image"),
    h("div", { class: "columns" }, picture(look), h("div", {}, shown, controls(look, look.open))),
    blocks(look), h("h3", {}, t("all-heads")), h("p", { class: "note" }, t("all-heads-image")), grid(look, true));
}

function textSection(look) {
  const line = h("div");
  const self = Object.keys(look.attention).some((kind) => kind !== "cross");
  const parts = { cross: look.attention.cross ? twoLines(look) : null, self: self ? tokenLine(look) : null };
  watch(["kind"], () => line.replaceChildren(state.kind === "cross" ? parts.cross : parts.self));
  return section("attention", t("where"), t("where-text"), controls(look, look.open), line, blocks(look),
    h("div", { class: "columns" }, h("div", {}, h("h3", {}, t("matrix")), matrix(look)),
      h("div", {}, h("h3", {}, t("all-heads")), grid(look))));
}
