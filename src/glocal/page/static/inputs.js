/** Where an input is given: an image that is chosen, dropped or pasted, or texts. */

import { h } from "glocal/dom";
import { t } from "glocal/strings";

const FIELDS = {
  "question-answering": ["question", "context"],
  "text-classification": ["text", "pair"],
  "multi-label-text-classification": ["text", "pair"],
  "text-regression": ["text", "pair"],
};
const OPTIONAL = "pair";

/** Return the form of a task; `given` is called with a payload. */
export function form(task, input, given) {
  return task.includes("image") ? imageForm(given) : textForm(FIELDS[task] ?? ["text"], input, given);
}

function textForm(names, input, given) {
  document.onpaste = null;
  const areas = names.map((name) => h("textarea", {
    name, rows: name === "context" ? 5 : 2, required: name !== OPTIONAL, id: `input-${name}`, spellcheck: "false",
  }, input[name] ?? ""));
  const fields = areas.map((area) =>
    h("div", { class: "field" }, h("label", { for: area.id }, t(`input-${area.name}`)), area));
  return h("form", {
    class: "input",
    onsubmit: (event) => {
      event.preventDefault();
      given(Object.fromEntries(areas.filter((area) => area.value).map((area) => [area.name, area.value])));
    },
  }, fields, h("button", { class: "primary" }, t("look")));
}

function imageForm(given) {
  const take = async (file) => file && given({ image: await dataUrl(file) });
  const input = h("input", {
    type: "file", accept: "image/*", id: "input-image", class: "file", onchange: () => take(input.files[0]),
  });
  const well = h("label", { class: "well", for: "input-image" }, h("b", {}, t("drop")), h("span", {}, t("drop-hint")));
  const box = h("div", { class: "input" }, input, well);
  for (const name of ["dragover", "drop"]) box.addEventListener(name, (event) => event.preventDefault());
  box.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
  document.onpaste = (event) => take([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
  return box;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
