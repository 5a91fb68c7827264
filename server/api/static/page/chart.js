// One line over time, as SVG. Its colours are the style sheet's.

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [100, 40];

export class Chart {
  #values = [];
  #svg;
  #options;

  /** `options`: how many values are kept, the least top of the scale, a line for reference, and the unit. */
  constructor(svg, options) {
    this.#svg = svg;
    this.#options = options;
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    this.#draw();
  }

  /** The newest value; null leaves a gap. */
  push(value) {
    this.#values.push(value);
    if (this.#values.length > this.#options.length) this.#values.shift();
    this.#draw();
  }

  #draw() {
    const { length, least, reference, unit } = this.#options;
    const top = roundUp(Math.max(least, ...this.#values));
    const x = index => (WIDTH * (length - this.#values.length + index)) / (length - 1);
    const y = value => HEIGHT * (1 - value / top);
    this.#svg.replaceChildren();
    for (const height of [0, top / 2, top]) this.#path("grid", `M0 ${y(height)}H${WIDTH}`);
    if (reference) this.#path("reference", `M0 ${y(reference)}H${WIDTH}`);
    for (const run of runs(this.#values)) {
      const points = run.map(index => `${x(index).toFixed(2)} ${y(this.#values[index]).toFixed(2)}`);
      this.#path("area", `M${x(run[0])} ${HEIGHT}L${points.join("L")}L${x(run.at(-1))} ${HEIGHT}Z`);
      // A point alone has no length: a round cap makes a dot of it.
      if (run.length === 1) this.#path("curve dot", `M${points[0]}h.01`);
      else this.#path("curve", `M${points.join("L")}`);
    }
    const scale = this.#svg.parentElement.dataset;
    [scale.top, scale.middle, scale.bottom] = [top, top / 2, 0].map(value => `${value}${unit}`);
  }

  #path(name, data) {
    const path = document.createElementNS(NAMESPACE, "path");
    path.setAttribute("class", name);
    path.setAttribute("d", data);
    this.#svg.append(path);
  }
}

// 1, 2, 4, 6 or 8 times a power of ten, so that its half is short too.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].find(step => step * power >= value) * power;
}

// Indices of values that follow one another without a gap.
function runs(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value === null) return;
    if (index > 0 && values[index - 1] !== null) found.at(-1).push(index);
    else found.push([index]);
  });
  return found;
}
