/** Where the numbers come from: from inside the file, or from the server that sent the page. */

const TOKEN = "glocal-token";

/** The numbers inside the page; null where a server sent it. */
export function embedded() {
  return JSON.parse(document.getElementById("numbers").textContent);
}

/** Return the models of the server. */
export async function models() {
  const found = await request("v1/models");
  return found.data ?? found;
}

/** Return the numbers of an input. Throws an Error whose message is the server's. */
export async function ask(model, payload) {
  return request(`v1/${encodeURIComponent(model)}/look`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(payload),
  });
}

/** Keep the token that the server wants, until the window is closed. */
export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response.json();
  const error = new Error(reason(await response.text()) || response.statusText);
  error.status = response.status;
  throw error;
}

/** Return what an answer says is wrong. */
function reason(text) {
  try {
    const { detail, error } = JSON.parse(text);
    return String(detail ?? error?.message ?? error ?? text);
  } catch {
    return text;
  }
}
