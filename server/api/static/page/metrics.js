// The text format of Prometheus, as far as the page needs it, and rates of its counters.

/** The sum of each metric over all its labels, by name. */
export function sums(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, value] = line.match(/^([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)/) ?? [];
    if (name) found.set(name, (found.get(name) ?? 0) + Number(value));
  }
  return found;
}

/** What happened between two scrapes. */
export class Rates {
  #earlier = null;

  /** Images a second, and how many times as long they would have taken at r=0; null where that is not known. */
  next(text, seconds) {
    const found = sums(text);
    const now = {
      seconds,
      images: found.get("tome_images_total") ?? 0,
      forward: found.get("tome_forward_seconds_total") ?? 0,
      plain: found.get("tome_r0_equivalent_seconds_total") ?? 0,
    };
    const before = this.#earlier;
    this.#earlier = now;
    // Counters that went back belong to a server that started anew.
    if (!before || now.images < before.images || now.forward < before.forward) return { throughput: null, saving: null };
    const forward = now.forward - before.forward;
    return {
      throughput: (now.images - before.images) / (now.seconds - before.seconds),
      saving: forward > 0 ? (now.plain - before.plain) / forward : null,
    };
  }
}
