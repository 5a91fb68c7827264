// Runs in the browser's audio thread: hands on what the microphone hears, in parts.

const LENGTH = 2048; // samples of a part: some 40 ms

class Recorder extends AudioWorkletProcessor {
  #part = new Float32Array(LENGTH);
  #filled = 0;

  process([[channel]]) {
    if (!channel) return true; // nothing is connected yet
    for (const sample of channel) {
      this.#part[this.#filled++] = sample;
      if (this.#filled === LENGTH) {
        this.port.postMessage(this.#part.slice());
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
