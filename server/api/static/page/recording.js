// The button that records a sound, its clock and its level.

import { isSupported, Recorder } from "./recorder.js";

const at = id => document.getElementById(id);
let recorder = null;
let starting = null; // a recorder that waits for the user's permission
let limit = 60; // seconds
let take; // is called with what was recorded

/** Let the button record; `taken` is called with each recording. */
export function listen(taken) {
  take = taken;
  at("record").addEventListener("click", () => (recorder ? stop() : start()));
  if (!isSupported()) {
    at("record").disabled = true;
    at("record-note").textContent = "A browser records only on pages of HTTPS, or of its own machine.";
  }
}

/** Recordings end after so many seconds, at most. */
export function limitTo(seconds) {
  limit = Math.floor(seconds) || seconds; // whole ones, which are easier to read
  if (!recorder) at("record-time").textContent = `up to ${limit} s`;
}

/** A recording that goes on is of no use any more. */
export async function abandon() {
  const abandoned = recorder;
  starting = null;
  ended();
  await abandoned?.stop(0);
}

async function start() {
  const started = new Recorder();
  starting = started;
  at("record").disabled = true; // until the user has allowed it
  at("record-note").textContent = "";
  try {
    await started.start((seconds, level) => recorder === started && heard(seconds, level));
  } catch (error) {
    at("record-note").textContent = reason(error);
    return;
  } finally {
    at("record").disabled = false;
    at("record").focus();
  }
  if (starting !== started) {
    await started.stop(0); // it was allowed too late
    return;
  }
  recorder = started;
  at("record").textContent = "Stop";
  at("record").classList.add("stops");
  at("level").hidden = false;
  at("spoken").textContent = `Recording, up to ${limit} seconds`;
}

function heard(seconds, level) {
  at("level").value = level;
  at("record-time").textContent = `${Math.min(seconds, limit).toFixed(1)} of ${limit} s`;
  if (seconds >= limit) stop();
}

async function stop() {
  const stopped = recorder;
  ended();
  take(await stopped.stop(limit));
}

function ended() {
  recorder = null;
  at("record").textContent = "Record";
  at("record").classList.remove("stops");
  at("level").hidden = true;
  limitTo(limit);
}

function reason(error) {
  if (error.name === "NotAllowedError") return "The browser did not allow the microphone.";
  if (error.name === "NotFoundError") return "There is no microphone.";
  return `The microphone cannot be used: ${error.message}`;
}
