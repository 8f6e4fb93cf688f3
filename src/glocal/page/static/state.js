/** What is chosen on the page, and who wants to know when it changes. */

/**
 * kind    which tokens attend to which: "blocks", or "encoder", "decoder", "cross"
 * mode    "head", "mean" of a layer's heads, or "rollout" through all layers
 * token   the token whose attention is shown; peek is one under the mouse, or null
 */
export const state = { kind: "blocks", layer: 0, head: 0, mode: "head", token: 0, peek: null, key: null };

let listeners = [];

/** Change some of it. */
export function change(changes) {
  const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
  if (!changed.length) return;
  Object.assign(state, changes);
  for (const listener of [...listeners]) listener(changed);
}

/** Call a function now and after each change of one of these names. */
export function watch(names, listener) {
  listeners.push((changed) => {
    if (changed.some((name) => names.includes(name))) listener();
  });
  listener();
}

/** Forget all who watched, before the page is drawn anew. */
export function forget() {
  listeners = [];
}

/** The token whose attention is shown. */
export function query() {
  return state.peek ?? state.token;
}
