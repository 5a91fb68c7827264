// The microphone, as a WAV file: 16 kHz, one channel. The browser resamples; no codec is needed.

import { encode } from "./wav.js";

const RATE = 16000;

/** Whether this browser records on this page: it lets only pages of HTTPS or of this machine do so. */
export function isSupported() {
  return Boolean(navigator.mediaDevices?.getUserMedia && globalThis.AudioWorkletNode);
}

export class Recorder {
  #parts = [];
  #stream;
  #context;

  /** Begin, with the user's permission; `heard(seconds, level)` is called as it goes on, its level from 0 to 1. */
  async start(heard) {
    // As the microphone hears it: what helps a call, a model was not trained on.
    const constraints = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.#stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    try {
      this.#context = new AudioContext();
      await this.#context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
      await this.#context.resume();
      this.#connect(heard);
    } catch (error) {
      await this.#close();
      throw error;
    }
  }

  #connect(heard) {
    const options = { channelCount: 1, channelCountMode: "explicit", numberOfOutputs: 0 };
    const node = new AudioWorkletNode(this.#context, "recorder", options);
    node.port.onmessage = ({ data }) => {
      this.#parts.push(data);
      heard(this.#length() / this.#context.sampleRate, loudest(data));
    };
    this.#context.createMediaStreamSource(this.#stream).connect(node);
  }

  /** End it; what was heard, `seconds` at most, as a file. */
  async stop(seconds) {
    const rate = this.#context.sampleRate;
    const length = Math.min(this.#length(), Math.floor(seconds * rate));
    await this.#close();
    return encode(await this.#resampled(length, rate), RATE);
  }

  async #resampled(length, rate) {
    const wanted = Math.floor((length * RATE) / rate);
    if (!wanted) return new Float32Array();
    const context = new OfflineAudioContext(1, wanted, RATE);
    const buffer = context.createBuffer(1, this.#length(), rate);
    let start = 0;
    for (const part of this.#parts) {
      buffer.copyToChannel(part, 0, start);
      start += part.length;
    }
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    source.start();
    return (await context.startRendering()).getChannelData(0);
  }

  #length() {
    return this.#parts.reduce((sum, part) => sum + part.length, 0);
  }

  async #close() {
    for (const track of this.#stream.getTracks()) track.stop();
    await this.#context?.close();
  }
}

function loudest(samples) {
  return samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0);
}
