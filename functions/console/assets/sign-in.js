// Signs in at the identity provider: authorization code with PKCE (RFC 7636), as a client without a secret. The token goes to this console
// once, which gives a session for it, and is kept nowhere.
"use strict";

const place = document.querySelector("[data-sign-in]");
const { client, authorize, token, scope } = place.dataset;
const said = place.querySelector("[data-said]");
const button = place.querySelector("[data-begin]");
const here = `${location.origin}/sign-in`;
const KEPT = "strongroom-sign-in";

const base64url = (bytes) => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));

// A page of this console, and nothing else, whatever the address says.
const local = (then) => {
  try {
    const wanted = new URL(then, location.origin);
    return wanted.origin === location.origin && wanted.pathname !== "/sign-in" ? wanted.pathname + wanted.search : "/";
  } catch {
    return "/";
  }
};

const begin = async (then) => {
  const kept = { state: random(), verifier: random(), nonce: random(), then: local(then) };
  sessionStorage.setItem(KEPT, JSON.stringify(kept));
  const challenge = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(kept.verifier)));
  const asked = new URL(authorize);
  const parameters = {
    response_type: "code", client_id: client, redirect_uri: here, scope, state: kept.state, nonce: kept.nonce,
    code_challenge: base64url(challenge), code_challenge_method: "S256",
  };
  for (const [name, value] of Object.entries(parameters)) {
    asked.searchParams.set(name, value);
  }
  location.assign(asked);
};

const payload = (jwt) => {
  const bytes = Uint8Array.from(atob(jwt.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes));
};

const finish = async (code, state) => {
  const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
  sessionStorage.removeItem(KEPT);
  if (!kept || kept.state !== state) {
    throw new Error("This answer of the identity provider belongs to no sign-in of this tab.");
  }
  const form = { grant_type: "authorization_code", code, redirect_uri: here, client_id: client, code_verifier: kept.verifier };
  const given = await fetch(token, { method: "POST", body: new URLSearchParams(form), credentials: "omit" });
  const answer = await given.json();
  if (!given.ok || !answer.id_token) {
    throw new Error(`The identity provider gave no token: ${answer.error_description ?? answer.error ?? given.status}.`);
  }
  if (payload(answer.id_token).nonce !== kept.nonce) {
    throw new Error("The identity provider's token is of another sign-in.");
  }
  const entered = await fetch("/sign-in", { method: "POST", headers: { authorization: `Bearer ${answer.id_token}` } });
  if (!entered.ok) {
    const problem = await entered.json().catch(() => ({}));
    throw new Error(problem.detail ?? `The console did not take the identity provider's token (${entered.status}): are issuer and audience set as the provider says them?`);
  }
  location.replace(kept.then);
};

const tell = (error) => {
  const { message } = error;
  said.textContent = `Signing in failed. ${message.charAt(0).toUpperCase()}${message.slice(1)}`;
  said.className = "problem";
  said.setAttribute("role", "alert");
  button.hidden = false;
};

const asked = new URLSearchParams(location.search);
// Neither a code nor what a provider said stays in the address.
history.replaceState(null, "", "/sign-in");
button.addEventListener("click", () => begin(asked.get("then") ?? "/").catch(tell));
if (asked.has("code")) {
  button.hidden = true;
  said.textContent = "Signing in…";
  finish(asked.get("code"), asked.get("state")).catch(tell);
} else if (asked.has("error")) {
  tell(new Error(asked.get("error_description") ?? asked.get("error")));
} else if (asked.has("then")) {
  button.hidden = true;
  said.textContent = "Asking your identity provider who you are…";
  begin(asked.get("then")).catch(tell);
} else {
  said.textContent = "Your identity provider says who you are, and its groups what you may do.";
}
