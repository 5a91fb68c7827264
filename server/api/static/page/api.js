// Calls of the server. Addresses are relative to the page, so that it works below any prefix.

const KEY = "tome-api-key";

/** Why there is no answer: the members of an RFC 9457 problem, or words of our own with status 0. */
export class Problem extends Error {
  constructor(status, title, detail, retryAfter = 0) {
    super(detail);
    Object.assign(this, { status, title, detail, retryAfter });
  }
}

/** From now on, and in this tab until it is closed, requests carry this API key. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Whether there is one, known to the server or not. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** All models that are served. */
export const models = async signal => (await (await call("models", {}, { signal })).json()).models;

/** The text that Prometheus scrapes. */
export const metrics = async () => (await call("metrics", {}, {})).text();

/** The answer of `classify` or `embed`, and in `round_trip` the milliseconds until it was here. */
export async function ask(path, upload, query, signal) {
  const start = performance.now();
  const answer = await (await call(path, query, { method: "POST", body: upload, signal })).json();
  return { ...answer, round_trip: performance.now() - start };
}

/** The results for `count` copies of the upload, sent at once. */
export async function many(path, upload, count, query, signal) {
  const body = new FormData();
  for (let copy = 0; copy < count; copy++) body.append("file", upload);
  return (await (await call(path, query, { method: "POST", body, signal })).json()).results;
}

/** The merged regions, as a blob. */
export async function visualize(upload, query, signal) {
  return (await call("visualize", query, { method: "POST", body: upload, signal })).blob();
}

/** A packaged example, as a blob. */
export async function example(name, signal) {
  return (await call(`static/examples/${name}`, {}, { signal })).blob();
}

/** Ends after `seconds`; as a request does, with an error if `signal` aborts it. */
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => reject(signal.reason));
  });
}

async function call(path, query, options) {
  const key = sessionStorage.getItem(KEY);
  const parameters = new URLSearchParams(query).toString();
  const address = parameters ? `${path}?${parameters}` : path;
  let response;
  try {
    response = await fetch(address, { ...options, headers: key ? { "X-API-Key": key } : {} });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server does not answer", "It has ended, or the connection was cut.");
  }
  if (response.ok) return response;
  // A proxy in between may say something else than a problem.
  const problem = await response.json().catch(() => ({}));
  throw new Problem(response.status, problem.title ?? `Status ${response.status}`, problem.detail ?? "",
    Number(response.headers.get("Retry-After")) || 0);
}
