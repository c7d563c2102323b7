// An OpenID Connect provider for trials on this machine: authorization code with PKCE for a public client, ID tokens with groups.
// usage: node identity-provider.mjs [PORT]
//
// Nobody proves anything here: whoever says to be somebody is. It listens on 127.0.0.1 only.
import { createHash, createSign, generateKeyPairSync, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

export const CLIENT = "strongroom-console";
const TOKEN_SECONDS = 600;
const CODE_SECONDS = 60;
const MAX_BODY_BYTES = 10_000;

/** Who there is, and their groups. */
export const PEOPLE = { vera: ["viewers"], otto: ["operators", "office"], nora: ["office"], nemo: [] };

const encoded = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");
const escaped = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const now = () => Math.floor(Date.now() / 1000);

/** Signs tokens in the name of an issuer. */
export class Issuer {
  constructor(issuer) {
    this.issuer = issuer;
    this.kid = randomUUID();
    const { publicKey, privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    this.privateKey = privateKey;
    this.jwks = { keys: [{ ...publicKey.export({ format: "jwk" }), kid: this.kid, use: "sig", alg: "RS256" }] };
  }

  /** A token for somebody; `claims` instead of the usual ones. */
  token(person, claims = {}) {
    const usual = { iss: this.issuer, sub: person, aud: CLIENT, iat: now(), exp: now() + TOKEN_SECONDS, name: person, groups: PEOPLE[person] };
    const signed = `${encoded({ alg: "RS256", typ: "JWT", kid: this.kid })}.${encoded({ ...usual, ...claims })}`;
    return `${signed}.${createSign("RSA-SHA256").update(signed).sign(this.privateKey, "base64url")}`;
  }
}

class Refused extends Error {}
const demand = (is, what) => {
  if (!is) {
    throw new Refused(what);
  }
};

/** Where a console of this machine waits for codes. */
const isRegistered = (redirect) => {
  const url = URL.canParse(redirect) ? new URL(redirect) : null;
  return url?.protocol === "http:" && /(^|\.)localhost$|^127\.0\.0\.1$/.test(url.hostname) && url.pathname === "/sign-in" && !url.search;
};

/** Serves a provider; `port` 0 is any. Ends with `close`. */
export const provide = async (port = 0) => {
  const codes = new Map();
  let issuer;

  const routes = {
    "GET /.well-known/openid-configuration": () => ({
      issuer: issuer.issuer,
      authorization_endpoint: `${issuer.issuer}/authorize`,
      token_endpoint: `${issuer.issuer}/token`,
      jwks_uri: `${issuer.issuer}/jwks`,
      response_types_supported: ["code"],
      subject_types_supported: ["public"],
      id_token_signing_alg_values_supported: ["RS256"],
      code_challenge_methods_supported: ["S256"],
      token_endpoint_auth_methods_supported: ["none"],
    }),
    "GET /jwks": () => issuer.jwks,
    // Browsers ask for one.
    "GET /favicon.ico": (_asked, response) => {
      response.writeHead(204);
      response.end();
      return undefined;
    },
    "GET /authorize": (asked, response) => {
      const { redirect_uri: redirect, state, nonce, code_challenge: challenge, login_hint: person } = asked;
      // Before these are known to be right, nobody is sent anywhere.
      demand(asked.client_id === CLIENT && isRegistered(redirect), "unknown client or redirect URI");
      demand(asked.response_type === "code" && asked.scope?.split(" ").includes("openid"), "a code for an ID token is all there is");
      demand(asked.code_challenge_method === "S256" && /^[\w-]{43}$/.test(challenge), "public clients prove by PKCE, S256");
      if (person === undefined) {
        const kept = Object.entries(asked).map(([name, value]) => `<input type="hidden" name="${escaped(name)}" value="${escaped(value)}">`);
        const people = Object.keys(PEOPLE).map((name) => `<button name="login_hint" value="${name}">${name}</button>`);
        response.writeHead(200, { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" });
        response.end(`<!doctype html><title>Who are you?</title><h1>Who are you?</h1><form>${kept.join("")}${people.join(" ")}</form>`);
        return undefined;
      }
      const back = new URL(redirect);
      if (person in PEOPLE) {
        const code = randomUUID();
        codes.set(code, { person, redirect, nonce, challenge, until: now() + CODE_SECONDS });
        back.searchParams.set("code", code);
      } else {
        back.searchParams.set("error", "access_denied");
      }
      if (state !== undefined) {
        back.searchParams.set("state", state);
      }
      response.writeHead(303, { location: back.href });
      response.end();
      return undefined;
    },
    "POST /token": (asked) => {
      const { code, redirect_uri: redirect, client_id: client, code_verifier: verifier, grant_type: grant } = asked;
      demand(grant === "authorization_code" && client === CLIENT, "unsupported_grant_type");
      const given = codes.get(code);
      // A code is good for one try.
      codes.delete(code);
      demand(given !== undefined && given.until >= now() && given.redirect === redirect, "invalid_grant");
      demand(createHash("sha256").update(verifier ?? "").digest("base64url") === given.challenge, "invalid_grant");
      const claims = given.nonce === undefined ? {} : { nonce: given.nonce };
      const [idToken, accessToken] = [issuer.token(given.person, claims), issuer.token(given.person, { aud: "userinfo" })];
      return { id_token: idToken, access_token: accessToken, token_type: "Bearer", expires_in: TOKEN_SECONDS };
    },
  };

  const server = createServer(async (request, response) => {
    const url = new URL(request.url, "http://here");
    // The browser asks for tokens from the page of the console.
    const cors = { "access-control-allow-origin": request.headers.origin ?? "*", "access-control-allow-headers": "content-type", vary: "origin" };
    const answer = (status, body) => {
      response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", ...cors });
      response.end(JSON.stringify(body));
    };
    try {
      if (request.method === "OPTIONS") {
        response.writeHead(204, cors);
        response.end();
        return;
      }
      let body = "";
      for await (const piece of request) {
        body += piece;
        demand(body.length <= MAX_BODY_BYTES, "too much");
      }
      const route = routes[`${request.method} ${url.pathname}`];
      if (route === undefined) {
        answer(404, { error: "not_found" });
        return;
      }
      const asked = Object.fromEntries(request.method === "POST" ? new URLSearchParams(body) : url.searchParams);
      const said = route(asked, response);
      if (said !== undefined) {
        answer(200, said);
      }
    } catch (error) {
      answer(error instanceof Refused ? 400 : 500, { error: error.message });
    }
  });
  await new Promise((done, failed) => server.once("error", failed).listen(port, "127.0.0.1", done));
  issuer = new Issuer(`http://127.0.0.1:${server.address().port}`);
  return {
    issuer,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
};

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { issuer } = await provide(Number(process.argv[2] ?? 0));
  console.log(issuer.issuer);
}
