// SPDX-License-Identifier: Apache-2.0
//
// Charts by dygraphs, with a legend of our own (dygraphs' writes style attributes, which the page's policy forbids), and
// groups of charts that share one x axis: zoom, and the place that is pointed at.

const Dygraph = window.Dygraph;
Dygraph.PLUGINS = Dygraph.PLUGINS.filter((plugin) => plugin.prototype.toString() !== "Legend Plugin");

/** Eight runs at a time: colours that the colour-blind can tell apart, and a dash each for those who see none. */
const COLOURS = {
  light: ["#0067a8", "#c2410c", "#00755c", "#a8327f", "#8a6100", "#5b4bb7", "#3a8fb7", "#4d5560"],
  dark: ["#56b4e9", "#ff9350", "#2fd0a0", "#f291cb", "#f0ca4d", "#a99cff", "#9fe0ff", "#c3ccd8"],
};
const DASHES = [null, [7, 3], [2, 2], [9, 3, 2, 3], [14, 4], [5, 2, 2, 2, 2, 2], [3, 5], [12, 2, 4, 2]];
export const MOST_RUNS = DASHES.length;

const SCHEMES = {
  light: { grid: "#e3e7ec", axis: "#9aa5b1", bar: "#0067a8" },
  dark: { grid: "#2b333d", axis: "#5d6875", bar: "#56b4e9" },
};

export function colour(slot, scheme) {
  return COLOURS[scheme][slot % MOST_RUNS];
}

export function dash(slot) {
  return DASHES[slot % MOST_RUNS];
}

/** A short piece of a run's line, as an SVG element. */
export function swatch(slot, scheme) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const attributes = { x1: 0, y1: 5, x2: 28, y2: 5, "stroke-width": 3, stroke: colour(slot, scheme) };
  for (const [name, value] of Object.entries(attributes)) {
    line.setAttribute(name, value);
  }
  if (dash(slot)) {
    line.setAttribute("stroke-dasharray", dash(slot).join(" "));
  }
  svg.setAttribute("viewBox", "0 0 28 10");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("swatch");
  svg.append(line);
  return svg;
}

/** Four significant digits, or as many as an integer has; what smoothing has left of a number is none. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) {
    return "–";
  }
  const size = Math.abs(value) < 1e-12 ? 0 : Math.abs(value);
  if (size === 0 || (Number.isInteger(value) && size < 1e7)) {
    return String(size && value);
  }
  return size < 1e-3 || size >= 1e6 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function axisNumber(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) {
      return Number((value / unit).toPrecision(4)) + letter;
    }
  }
  return size !== 0 && size < 1e-4 ? value.toExponential(0) : String(Number(value.toPrecision(4)));
}

/** Ticks of what is counted. */
function wholeTicks(...where) {
  return Dygraph.numericTicks(...where).filter(({ v }) => Math.abs(v - Math.round(v)) < 1e-6);
}

function clock(value) {
  return new Date(value).toLocaleTimeString([], { hour12: false });
}

/** An exponential moving average that starts at the first value; gaps stay gaps. */
export function smoothed(values, weight) {
  let sum = 0;
  let share = 0;
  return values.map((value) => {
    if (value === null || !Number.isFinite(value)) {
      return value;
    }
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}

/** Series of {x: [...], values: [...]} -> rows of one table, ascending in x. Null: no value there. */
export function table(series) {
  const places = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const at = series.map(() => 0);
  return places.map((x) => [x, ...series.map((s, i) => (s.x[at[i]] === x ? s.values[at[i]++] : null))]);
}

/** What all charts look like around their lines. */
function frame(scheme) {
  const { axis, grid } = SCHEMES[scheme];
  return { axisLineColor: axis, axisLineWidth: 1, gridLineColor: grid, gridLineWidth: 1, axisLabelFontSize: 12, rightGap: 10 };
}

/** Charts with one x axis. */
export class Group {
  charts = [];
  window = null; // null: everything
  pointed = null; // x

  /** `least`: how much of x is shown at least; `live`: what is there lies at its end, not in its middle. */
  constructor(least, live) {
    Object.assign(this, { least, live });
  }

  extent() {
    let [low, high] = [Infinity, -Infinity];
    for (const { rows } of this.charts) {
      if (rows.length > 0) {
        low = Math.min(low, rows[0][0]);
        high = Math.max(high, rows.at(-1)[0]);
      }
    }
    const missing = Math.max(0, this.least - (high - low));
    low -= this.live ? missing : missing / 2;
    high += this.live ? 0 : missing / 2;
    return [low, high + 0.006 * (high - low)]; // the last dot is whole
  }

  /** Every chart that has something gets its window again. */
  apply() {
    for (const chart of this.charts) {
      chart.show(this.window ?? this.extent());
    }
    this.point(this.pointed);
  }

  zoom(window) {
    const [low, high] = this.extent();
    const rounding = 1e-6 * (high - low);
    this.window = window && window[0] <= low + rounding && window[1] >= high - rounding ? null : window;
    this.apply();
  }

  /** Show half, or twice, of what is shown. */
  scale(factor) {
    const [low, high] = this.window ?? this.extent();
    const [centre, half] = [(low + high) / 2, ((high - low) / 2) * factor];
    this.zoom([centre - half, centre + half]);
  }

  reset() {
    this.window = null;
    for (const chart of this.charts) {
      chart.values = null;
    }
    this.apply();
  }

  /** All charts point at the row that is nearest to x; null: at none. */
  point(x) {
    this.pointed = x;
    for (const chart of this.charts) {
      chart.point(x);
    }
  }
}

/** Without touch: a finger scrolls the page; the buttons zoom. */
function withoutTouch() {
  const { touchstart, touchmove, touchend, ...rest } = Dygraph.defaultInteractionModel;
  return rest;
}

export class Chart {
  rows = [];
  graph = null;
  values = null; // of y that are shown; null: all
  #series = [];
  #key = "";
  #file = null; // rows that are still to be drawn

  /** `figure` holds .plot, .legend and .none; options: `unit` of x ("step", "time"), `zero`: y begins there. */
  constructor(figure, group, options = {}) {
    this.figure = figure;
    this.group = group;
    this.options = options;
    this.title = figure.querySelector("h3").firstChild.textContent.trim();
    this.plot = figure.querySelector(".plot");
    this.canvas = document.createElement("div");
    this.canvas.className = "canvas";
    this.canvas.setAttribute("aria-hidden", "true");
    this.plot.append(this.canvas);
    this.legend = figure.querySelector(".legend");
    this.none = figure.querySelector(".none");
    group.charts.push(this);
    this.plot.addEventListener("keydown", (event) => this.#key_down(event));
    this.plot.addEventListener("blur", () => group.point(null));
    new ResizeObserver(() => this.graph?.resize()).observe(this.canvas);
  }

  /**
   * series: [{name, slot, x, values, smooth}]; `smooth` (0: none) draws the recorded values faintly beneath.
   * `none`: what is said when there is nothing to draw.
   */
  draw({ series, scheme, log = false, none = "Nothing yet." }) {
    const columns = series.flatMap((s) => (s.smooth > 0
      ? [{ ...s, faint: true }, { ...s, values: smoothed(s.values, s.smooth) }] : [s]));
    const positive = (value) => (value === null || value > 0 ? value : NaN); // a logarithm's gap
    const drawn = log ? columns.map((c) => ({ ...c, values: c.values.map(positive) })) : columns;
    this.rows = table(drawn);
    this.#series = columns;
    this.log = log;
    const empty = !this.rows.some((row) => row.slice(1).some((value) => value !== null && !Number.isNaN(value)));
    this.figure.classList.toggle("is-empty", empty);
    this.none.textContent = empty ? none : "";
    if (empty) {
      this.rows = [];
      this.graph?.destroy();
      this.graph = null;
      this.#key = "";
    } else {
      this.#draw(scheme);
    }
    this.#describe();
    this.#legend(scheme);
  }

  #draw(scheme) {
    const file = this.options.unit === "time" ? this.rows.map(([x, ...rest]) => [new Date(x), ...rest]) : this.rows;
    const few = this.rows.length <= 40;
    const key = JSON.stringify([this.#series.map((s) => [s.name, s.slot, s.faint]), scheme, this.log, few]);
    if (this.graph && key === this.#key) {
      this.#file = file;
      return;
    }
    this.graph?.destroy();
    this.#file = null;
    this.values = null;
    this.#key = key;
    this.graph = new Dygraph(this.canvas, file, {
      labels: ["x", ...this.#series.map((s) => (s.faint ? "faint " : "line ") + s.name)],
      colors: this.#series.map((s) => colour(s.slot, scheme) + (s.faint ? "55" : "")),
      series: Object.fromEntries(this.#series.map((s) => [(s.faint ? "faint " : "line ") + s.name, s.faint
        ? { strokeWidth: 1, highlightCircleSize: 0, drawPoints: false }
        : { strokeWidth: 2, highlightCircleSize: 4, strokePattern: dash(s.slot), drawPoints: few }])),
      pointSize: 2,
      connectSeparatedPoints: true,
      logscale: this.log,
      includeZero: this.options.zero ?? false,
      dateWindow: this.group.window ?? this.group.extent(),
      yRangePad: 6,
      ...frame(scheme),
      axes: {
        x: {
          ...(this.options.unit === "time" ? { axisLabelFormatter: clock } : { axisLabelFormatter: axisNumber, ticker: wholeTicks }),
          axisLabelWidth: this.options.unit === "time" ? 64 : 50,
          pixelsPerLabel: this.options.unit === "time" ? 84 : 60,
        },
        y: { axisLabelFormatter: axisNumber, axisLabelWidth: 46, pixelsPerLabel: 34 },
      },
      interactionModel: withoutTouch(),
      zoomCallback: (low, high, [values]) => {
        this.values = this.graph.isZoomed("y") ? values : null;
        this.group.zoom(this.graph.isZoomed("x") ? [low, high] : null);
      },
      highlightCallback: (_, x) => this.group.point(x),
      unhighlightCallback: () => this.group.point(null),
    });
  }

  /** Draw what is new, in this window; done by the group. */
  show(dateWindow) {
    const zoom = { dateWindow, valueRange: this.values };
    this.graph?.updateOptions(this.#file ? { file: this.#file, ...zoom } : zoom);
    this.#file = null;
  }

  /** The row at x or nearest to it. */
  #nearest(x) {
    let [low, high] = [0, this.rows.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.rows[middle][0] < x) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low > 0 && x - this.rows[low - 1][0] < this.rows[low][0] - x ? low - 1 : low;
  }

  point(x) {
    if (!this.graph) {
      return;
    }
    if (x === null) {
      this.graph.clearSelection();
    } else {
      this.graph.setSelection(this.#nearest(x));
    }
    this.#values(x);
  }

  // -- the legend, and the words

  #legend(scheme) {
    this.legend.replaceChildren();
    this.items = [];
    this.#series.forEach((s, i) => {
      if (!s.faint) {
        const item = document.createElement("li");
        const value = document.createElement("span");
        value.className = "value";
        item.append(swatch(s.slot, scheme), `${s.name} `, value);
        this.legend.append(item);
        this.items.push({ column: i, name: s.name, value });
      }
    });
    this.#values(null);
  }

  /** What each line is at x, or at its end. */
  reading(x) {
    return (this.items ?? []).map(({ column, name }) => {
      const s = this.#series[column];
      const recorded = this.#series[column - 1]?.faint && this.#series[column - 1].name === name
        ? this.#series[column - 1] : null;
      let i = s.values.length - 1;
      if (x !== null && this.rows.length > 0) {
        i = s.x.indexOf(this.rows[this.#nearest(x)][0]);
      }
      return { name, value: s.values[i] ?? null, recorded: recorded ? recorded.values[i] ?? null : null };
    });
  }

  #values(x) {
    const unit = this.options.digits ?? short;
    this.reading(x).forEach(({ value, recorded }, i) => {
      this.items[i].value.textContent = unit(value) + (recorded === null ? "" : ` (${unit(recorded)})`);
    });
    this.figure.querySelector(".at").textContent = x === null ? "" : this.place(x);
  }

  place(x) {
    return this.options.unit === "time" ? clock(x) : `step ${x}`;
  }

  #describe() {
    const unit = this.options.digits ?? short;
    const lines = this.#series.filter((s) => !s.faint).map((s) => {
      const values = s.values.filter((value) => value !== null && Number.isFinite(value));
      return values.length === 0 ? `${s.name}: nothing`
        : `${s.name}: last ${unit(values.at(-1))}, lowest ${unit(least(values))}, highest ${unit(-least(values.map((v) => -v)))}`;
    });
    this.plot.setAttribute("aria-label", `${this.title}. ${lines.join("; ") || this.none.textContent}`);
  }

  // -- keys: arrows point, + - 0 zoom

  #key_down(event) {
    if (this.rows.length === 0 || event.ctrlKey || event.altKey || event.metaKey) {
      return;
    }
    const at = this.graph.getSelection();
    const last = this.rows.length - 1;
    const to = {
      ArrowLeft: at < 0 ? last : Math.max(0, at - 1),
      ArrowRight: at < 0 ? 0 : Math.min(last, at + 1),
      Home: 0,
      End: last,
    }[event.key];
    if (to !== undefined) {
      this.group.point(this.rows[to][0]);
      this.onread?.(this);
    } else if (event.key === "+" || event.key === "=") {
      this.group.scale(1 / 2);
    } else if (event.key === "-") {
      this.group.scale(2);
    } else if (event.key === "0") {
      this.group.reset();
    } else {
      return;
    }
    event.preventDefault();
  }
}

function least(values) {
  return values.reduce((a, b) => Math.min(a, b));
}

/** Ten bins of 0.1, as bars. */
export class Histogram {
  constructor(figure) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    this.canvas = document.createElement("div");
    this.canvas.className = "canvas";
    this.plot.append(this.canvas);
    this.none = figure.querySelector(".none");
    this.at = figure.querySelector(".at");
    new ResizeObserver(() => this.graph?.resize()).observe(this.canvas);
  }

  draw({ counts, scheme, none, about }) {
    const empty = !counts;
    this.figure.classList.toggle("is-empty", empty);
    this.none.textContent = empty ? none : "";
    this.graph?.destroy();
    this.graph = null;
    this.about = about;
    if (empty) {
      this.at.textContent = "";
      this.plot.setAttribute("aria-label", `Best IoU. ${none}`);
      return;
    }
    const bins = counts.map((n, i) => [`${(i / 10).toFixed(1)} to ${((i + 1) / 10).toFixed(1)}`, n]);
    this.plot.setAttribute("aria-label", `Best IoU of each object, ${about}. ` +
      bins.filter(([, n]) => n > 0).map(([bin, n]) => `${bin}: ${n}`).join("; "));
    this.at.textContent = about;
    this.graph = new Dygraph(this.canvas, counts.map((n, i) => [i / 10 + 0.05, n]), {
      labels: ["IoU", "objects"],
      colors: [SCHEMES[scheme].bar],
      plotter: bars,
      dateWindow: [-0.02, 1.02],
      valueRange: [0, Math.max(1, ...counts) * 1.08],
      highlightCircleSize: 0,
      ...frame(scheme),
      axes: {
        x: { ticker: () => [0, 0.2, 0.4, 0.6, 0.8, 1].map((v) => ({ v, label: v.toFixed(1) })), drawGrid: false },
        y: { axisLabelFormatter: axisNumber, ticker: wholeTicks, axisLabelWidth: 46, pixelsPerLabel: 34 },
      },
      interactionModel: {},
      highlightCallback: (_, x) => {
        const [bin, n] = bins[Math.floor(x * 10)];
        this.at.textContent = `IoU ${bin}: ${n} ${n === 1 ? "object" : "objects"}`;
      },
      unhighlightCallback: () => {
        this.at.textContent = this.about;
      },
    });
  }
}

function bars({ drawingContext: context, dygraph, points, color }) {
  const base = dygraph.toDomYCoord(0);
  const width = dygraph.toDomXCoord(0.1) - dygraph.toDomXCoord(0);
  context.fillStyle = color;
  for (const point of points) {
    context.fillRect(point.canvasx - 0.45 * width, point.canvasy, 0.9 * width, base - point.canvasy);
  }
}
