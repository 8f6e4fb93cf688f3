/** Elements of the page, and how they are used from a keyboard. */

const SVG = document.getElementById("svg").namespaceURI;

/** Return an element. An attribute `on...` is a listener, true is one without a value, and null or false is none. */
export function h(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** Return an element of a drawing. */
export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  const isThere = (child) => child !== null && child !== undefined && child !== false;
  element.append(...children.flat(Infinity).filter(isThere));
  return element;
}

/** Let the arrow keys move among buttons, so that Tab passes all of them in one step; `columns` of them are a row. */
export function rove(container, buttons, columns = buttons.length, first = 0) {
  buttons.forEach((button, i) => (button.tabIndex = i === first ? 0 : -1));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  container.addEventListener("keydown", (event) => {
    const here = buttons.indexOf(event.target);
    const ends = { Home: 0, End: buttons.length - 1 };
    const there = event.key in ends ? ends[event.key] : here + steps[event.key];
    if (here < 0 || !buttons[there]) return;
    event.preventDefault();
    buttons[here].tabIndex = -1;
    buttons[there].tabIndex = 0;
    buttons[there].focus();
  });
}

/** Return a group of buttons of which one is pressed: pairs of a value and a label. */
export function choice(label, options, chosen, choose) {
  const buttons = options.map(([value, text, attributes]) =>
    h("button", {
      type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value), ...attributes,
    }, text));
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** Return a slider with its name and its value: `values` are the numbers that it may have. */
export function slider(label, values, value, change) {
  const shown = h("output", {}, String(value));
  const place = Math.max(values.indexOf(value), 0);
  const input = h("input", {
    type: "range", min: 0, max: values.length - 1, step: 1, value: place, "aria-label": label,
    "aria-valuetext": String(value), disabled: values.length < 2,
    oninput: () => change(values[input.valueAsNumber]),
  });
  return h("label", { class: "slider" }, h("span", {}, label, " ", shown), input);
}

/** Return a text whose `_X` stand below the line, as in d_k. */
export function formula(text) {
  return text.split(/(_\w)/).map((part) => (/^_\w$/.test(part) ? h("sub", {}, part[1]) : part));
}

/** Return the legend of a scale of colours of style.css, and what they stand for, from left to right. */
export function scaleBar(names, labels) {
  const colours = names.map((name) => `var(--${name})`).join(", ");
  return h("div", { class: "scale-bar" }, h("i", { style: `background: linear-gradient(to right, ${colours})` }),
    h("span", {}, labels.map((label) => h("span", {}, label))));
}

/** Return a part of the page with its heading and a sentence that explains it. */
export function section(id, title, lead, ...children) {
  return h("section", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title), lead ? h("p", { class: "lead" }, formula(lead)) : null, children);
}

/** Return a box that may be scrolled sideways, also by keys. */
export function scroller(label, ...children) {
  return h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": label }, children);
}
