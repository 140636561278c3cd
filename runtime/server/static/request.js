// Requests to the service, which sign in when the service requires a token.

import { byId, sleep } from "./dom.js";

let signingIn = null; // resolves when the token was accepted

// With `timeout` in ms, an answer that takes longer is an error; the time to sign in does not count.
export async function request(path, { timeout, ...options } = {}) {
  const signal = timeout ? AbortSignal.timeout(timeout) : undefined;
  const response = await fetch(path, { cache: "no-store", signal, ...options });
  if (response.status === 401 && path !== "/login") {
    await signIn();
    return request(path, { timeout, ...options });
  }
  return response;
}

// Repeats a request that found the queue full.
export async function requestWhenFree(path, options) {
  for (;;) {
    const response = await request(path, options);
    if (response.status !== 503) return response;
    await sleep(retryDelay(response));
  }
}

// Sends a request and returns the JSON of its answer, which has the field `error` when it failed.
export async function call(send) {
  try {
    const response = await send();
    return response.status === 204 ? {} : await response.json();
  } catch {
    return { error: "the service does not respond" };
  }
}

export const retryDelay = (response) => 1000 * (Number(response.headers.get("Retry-After")) || 1);

let linkToken = takeTokenOfLink();

// Returns the token of a sign-in link, and keeps it out of the address bar and the history.
function takeTokenOfLink() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname);
  return token;
}

addEventListener("hashchange", () => {
  linkToken = takeTokenOfLink();
  if (linkToken && !byId("login").hidden) {
    byId("token").value = linkToken;
    byId("login").requestSubmit();
  }
});

function signIn() {
  signingIn ??= (async () => {
    const token = linkToken;
    linkToken = null;
    const error = token && (await login(token));
    if (error !== "") await askForToken(error ?? "");
  })().finally(() => { signingIn = null; });
  return signingIn;
}

function askForToken(error) {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  byId("main").hidden = byId("footer").hidden = true;
  byId("login").hidden = false;
  byId("login-error").textContent = error;
  byId("token").focus();
  return new Promise((resolve) => {
    byId("login").onsubmit = async (event) => {
      event.preventDefault();
      const refusal = await login(byId("token").value);
      byId("login-error").textContent = refusal;
      if (refusal) return byId("token").select();
      byId("token").value = "";
      byId("login").hidden = true;
      resolve();
    };
  });
}

// Returns an error message, or "" if the token was accepted.
async function login(token) {
  try {
    const response = await fetch("/login", { method: "POST", body: JSON.stringify({ token }) });
    if (response.ok) return "";
    return response.status === 401 ? "Wrong token." : (await response.json()).error;
  } catch {
    return "The service does not respond.";
  }
}
