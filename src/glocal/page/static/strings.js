/** The texts of the page in English, and the choice of its language. */

import { VIETNAMESE } from "glocal/vietnamese";

const ENGLISH = {
  "task-image-classification": "Image classification",
  "task-multi-label-image-classification": "Several classes of an image",
  "task-image-regression": "A number for an image",
  "task-text-classification": "Text classification",
  "task-multi-label-text-classification": "Several classes of a text",
  "task-text-regression": "A number for a text",
  "task-token-classification": "Entities in a text",
  "task-question-answering": "Question answering",
  "task-masked-lm": "Masked words",
  "task-causal-lm": "Text generation",
  "task-completion": "Text generation",
  "task-translation": "Translation",
  "family-vit": "ViT", "family-glit": "GLiT", "family-bert": "BERT", "family-gpt": "GPT",
  "family-transformer": "Transformer", "family-lstm": "LSTM with attention", "family-baseline": "network of timm",
  parameters: "{count} parameters",
  depth: "{layers} layers of {heads} heads",
  settings: "Settings", language: "Language", theme: "Colours", model: "Model",
  "theme-auto": "Auto", "theme-light": "Light", "theme-dark": "Dark",

  "input-text": "Text", "input-pair": "Second text, if it is a pair", "input-question": "Question",
  "input-context": "Text that answers it", look: "Explain",
  drop: "Choose an image", "drop-hint": "or drop it here, or paste it",
  busy: "The model computes …", "server-token": "This server requires a token", unlock: "Open",

  result: "Prediction", "no-entity": "The model finds no entity in this text.",
  "each-by-itself": "Each class has a probability of its own; they do not sum to one.",
  "no-answer": "no answer", answer: "answer",
  "mask-hint": "Click a word to mask it, and see what the model predicts in its place. Click a predicted word to put it there.",
  writing: "Generated text",
  "writing-lead": "The darker a token is underlined, the more probable it was. Click one to see the most probable alternatives.",
  instead: "Alternatives for this token", "instead-hint": "Click another token to continue the text from it.",
  "instead-hint-file": "Click another token to continue the text from it. Grey ones were not continued in this file.",
  "write-on": "Continue the text",
  translations: "Results of beam search", translation: "Translation", "beam-score": "log P / length penalty", "beam-tree": "Hypotheses of beam search", dropped: "dropped",
  "beam-tree-means": "Translations that begin alike share their beginning. The best one is coloured; a number is the rank of a finished one.",

  where: "Attention weights", "where-image": "Move over the image: the brighter a patch, the more attention the patch under the pointer gives to it. A click holds that patch; arrow keys move it.",
  "where-text": "Move over a token: arcs lead to the tokens that it attends to. A click holds it; arrow keys move on.",
  from: "From", "token-[CLS]": "Class token", "token-[DIST]": "Distillation token", "a-patch": "A patch",
  patch: "row {row}, column {column}", patches: "Patches of the image; arrow keys choose one", "image-seen": "The image as the model receives it",
  "attends-to": "attends to", "attends-most": "{from} → {to}: {share}, the most of all patches", tokens: "Tokens", token: "Token",
  kind: "Which attention", "kind-blocks": "Text", "kind-cross": "Translation → source", "kind-encoder": "Source", "kind-decoder": "Translation",
  mode: "What is shown", "mode-head": "One head", "mode-mean": "Mean of heads", "mode-rollout": "Rollout",
  layer: "Layer", head: "Head", "layer-head": "Layer {layer}, head {head}",
  "rollout-means": "Rollout multiplies the attention of all layers, residual connections included: what of each patch reaches the last layer.",
  "local-means": "This head is local: a convolution. Shown is each token's share in its output.",
  "pattern-is": "On average {share} of its attention goes to the {pattern}.",
  "pattern-none": "It follows none of the patterns below: its attention depends on the text, or is spread.",
  "layers-left-out": "Of {depth} layers this file has layers {kept}; the others were left out to keep it small.",
  "heads-left-out": "{kept} of {all} heads are here; the others were left out.",
  matrix: "The matrix of this head", "matrix-means": "A row is a token that attends, a column one that it attends to.",
  "matrix-of": "Attention of {queries} tokens to {keys}",
  "all-heads": "All heads", "all-heads-image": "Attention of each head from the same patch. Click one to open it.",
  global: "global", local: "local", blocks: "Blocks", block: "Block {layer}",
  "pattern-previous": "previous token", "pattern-next": "next token", "pattern-same": "token itself",
  "pattern-separator": "separator", "pattern-first": "first token", "pattern-broad": "none of these",

  steps: "Attention step by step",
  "steps-lead": "softmax(QKᵀ/√d_k) V for one token and one head, with this model's own numbers, in the order of Vaswani et al. 2017, section 3.2.",
  "step-1": "1. Query, key and value", "step-1-says": "The head projects each token to three vectors of {d} numbers: the query q = x W_Q, the key k = x W_K and the value v = x W_V. This is q of “{token}”.",
  "step-2": "2. Scores and weights", "step-2-says": "q is multiplied with each k, and divided by √d_k = √{d}, so that the scores do not grow with d_k. The softmax makes them weights that sum to one.",
  "step-mask": "A token does not attend to those after it: their score is −∞, and their weight 0.",
  "step-patches": "The tokens are patches, named by row and column.",
  "step-3": "3. One weight, written out", "step-3-says": "From “{query}” to “{key}”, with the three largest of the products. Choose another token in the table.",
  "step-4": "4. The weighted sum", "step-4-says": "The values, each times its weight, are added up. The outputs of all heads are joined, and W_O projects them.",
  softmax: "weight", rows: "Rows", "rows-some": "Largest", "rows-all": "All", others: "{count} others",
  vector: "{name}: {count} numbers, {ends}",
  "no-vectors": "The vectors of this layer were left out to keep the file small. It has those of layers {kept}.",
  "no-vectors-local": "This head is a convolution: it has a kernel, and no queries and keys. Choose a global head.",

  positions: "Positions", position: "Position",
  "positions-lead-sinusoidal": "Each position is a vector of sines and cosines, from fast ones to slow ones, as the digits of a binary number change from often to seldom.",
  "positions-lead-learned": "Each position is a vector that was learned. Sinusoids would count as binary numbers do, from fast digits to slow ones; learned vectors are free.",
  "positions-sinusoidal": "Sinusoidal positions: a row a position ({positions}), a column a channel ({channels})",
  "positions-learned": "Learned positions: a row a position ({positions}), a column a channel ({channels})",
  "positions-compare": "Sinusoidal ones of the same size, for comparison (Vaswani et al. 2017, section 3.5)",
  "positions-binary": "The same positions, counted in binary", "positions-similar": "How alike two positions are (cosine)",
  "positions-map": "How alike the chosen position is to each patch",
  "position-is": "Position {row} is {binary} in binary.", "position-near": "Most alike is position {other} (cosine {cosine}).",
  "made-by": "This file holds all its numbers, and fetches nothing. `glocal serve RUN` shows the same page for any input.",
};

const TABLES = { en: ENGLISH, vi: VIETNAMESE };
export const LANGUAGES = [["en", "English"], ["vi", "Tiếng Việt"]];
const KEPT = "glocal-language";

let chosen = localStorage.getItem(KEPT) ?? (navigator.language.startsWith("vi") ? "vi" : "en");

/** The language of the page. */
export function language() {
  return chosen;
}

/** Choose the language, also for the next time. */
export function setLanguage(code) {
  chosen = code;
  localStorage.setItem(KEPT, code);
}

/** Return a text of the page, with values in place of the names in braces; in English where there is no other. */
export function t(key, values = {}) {
  const text = TABLES[chosen][key] ?? ENGLISH[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Return a share in percent. */
export function percent(share) {
  const value = 100 * share;
  return `${value >= 9.95 || value < 0.05 ? number(Math.round(value)) : decimal(value, 1)} %`;
}

/** Return a number with so many digits behind the point. */
export function decimal(value, digits = 2) {
  return value.toLocaleString(chosen, { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
}

/** Return a whole number. */
export function number(value) {
  return value.toLocaleString(chosen);
}
