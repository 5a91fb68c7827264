// Times of forward passes: one alone says little, so medians of the latest are shown.

const KEPT = 20;

export class Samples {
  #times = new Map();

  /** A forward pass took so many milliseconds an image. */
  add(model, r, time) {
    const times = this.#of(model, r);
    times.push(time);
    if (times.length > KEPT) times.shift();
  }

  /** Milliseconds; null where there are none. */
  median(model, r) {
    const sorted = [...this.#of(model, r)].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    if (!sorted.length) return null;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  count(model, r) {
    return this.#of(model, r).length;
  }

  #of(model, r) {
    const key = `${model} ${r}`;
    if (!this.#times.has(key)) this.#times.set(key, []);
    return this.#times.get(key);
  }
}
