// SPDX-License-Identifier: Apache-2.0
//
// What the daemon says: its runs, their steps, its metrics. Nothing here knows the page.

const PATIENCE_MS = 10000;
const POINTS = 1000; // of a run when it is loaded
const MOST_ROWS = 3000; // of a run in memory; with more it is loaded again, downsampled by the daemon

/** The daemon did not answer, or not with what was asked for. */
export class Trouble extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// ---- the token: of this tab, until it is closed ------------------------------------------------------------------

const KEY = "lossd-token";
let held = null; // where the browser keeps nothing

function token() {
  try {
    return sessionStorage.getItem(KEY) ?? held;
  } catch {
    return held;
  }
}

/** What is sent from now on; null: nothing. */
export function useToken(text) {
  held = text;
  try {
    if (text === null) {
      sessionStorage.removeItem(KEY);
    } else {
      sessionStorage.setItem(KEY, text);
    }
  } catch {
    // it is held
  }
}

export const hasToken = () => token() !== null;

/** Why the daemon does not let us in. A token it does not know is not sent again. */
function refusal(answer) {
  const known = answer.headers.get("WWW-Authenticate")?.includes("invalid_token");
  switch (answer.status) {
    case 401:
      useToken(null);
      return new Trouble(known ? "lossd does not know this token" : "lossd asks for a token", 401);
    case 403:
      return new Trouble("This token may not read that", 403);
    case 429:
      return new Trouble("Too many wrong tokens came from this address", 429);
    default:
      return null;
  }
}

/** GET. With `tag` the answer may be 304: then `fresh` is false and there is no body. */
async function ask(path, tag, read) {
  const headers = tag ? { "If-None-Match": tag } : {};
  if (hasToken()) {
    headers.Authorization = `Bearer ${token()}`;
  }
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", headers, signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.status === 304) {
      return { fresh: false };
    }
    if (answer.ok) {
      return { fresh: true, body: await answer[read](), tag: answer.headers.get("ETag") };
    }
  } catch {
    throw new Trouble("lossd does not answer");
  }
  throw refusal(answer) ?? new Trouble(`lossd answers ${answer.status} to ${path.split("?")[0]}`, answer.status);
}

/** A path asked again and again: keeps the last body and its entity tag. */
class Watched {
  constructor(path) {
    this.path = path;
  }

  /** Whether the body is another than before. */
  async refresh() {
    const answer = await ask(this.path, this.tag, "json");
    if (answer.fresh) {
      ({ body: this.body, tag: this.tag } = answer);
    }
    return answer.fresh;
  }
}

/** The list of runs, page by page. */
export class RunList {
  #pages = [];
  rows = [];

  async refresh() {
    const pages = [];
    let changed = false;
    let path = "/v1/runs?limit=1000";
    while (path) {
      const page = this.#pages.find((p) => p.path === path) ?? new Watched(path);
      changed = (await page.refresh()) || changed;
      pages.push(page);
      path = page.body.next === null ? null : `/v1/runs?limit=1000&after=${page.body.next}`;
    }
    changed ||= pages.length !== this.#pages.length;
    this.#pages = pages;
    if (changed) {
      this.rows = pages.flatMap((page) => page.body.runs);
    }
    return changed;
  }
}

/** A run's newest step, with the histogram of its best IoUs. */
export class Latest extends Watched {
  constructor(name) {
    super(`/v1/runs/${name}`);
    this.name = name;
  }
}

/**
 * The steps of a run, as of one row of the list: nothing newer is kept, so that the number of steps that the list counts
 * is the number that is known here. Where they differ a step was replaced, deleted or came late, and all is read again.
 */
export class History {
  rows = [];
  #seen = null;

  constructor(name) {
    this.path = `/v1/runs/${name}/steps`;
  }

  /** Whether `rows` changed. */
  async follow(row) {
    if (this.#seen && JSON.stringify(row) === JSON.stringify(this.#seen)) {
      return false;
    }
    if (!this.#continues(row) || !(await this.#append(row))) {
      const answer = await ask(`${this.path}?points=${POINTS}`, null, "json");
      this.rows = answer.body.steps.filter((step) => step.step <= row.last_step);
    }
    this.#seen = row;
    return true;
  }

  #continues(row) {
    const seen = this.#seen;
    const same = seen && row.first_step === seen.first_step && row.first_time === seen.first_time;
    const trimmed = seen && row.first_step > seen.first_step;
    return (same || trimmed) && row.last_step > seen.last_step && this.rows.length < MOST_ROWS &&
      row.steps - seen.steps <= MOST_ROWS - this.rows.length;
  }

  async #append(row) {
    const added = [];
    let after = this.#seen.last_step;
    while (after !== null && after < row.last_step) {
      if (added.length > MOST_ROWS) {
        return false;
      }
      const answer = await ask(`${this.path}?after=${after}&limit=1000`, null, "json");
      added.push(...answer.body.steps.filter((step) => step.step <= row.last_step));
      after = answer.body.next;
    }
    if (row.first_step > this.#seen.first_step) { // the daemon keeps only the newest, and dropped as many
      this.rows = this.rows.filter((step) => step.step >= row.first_step);
    } else if (this.#seen.steps + added.length !== row.steps) {
      return false;
    }
    this.rows = this.rows.concat(added);
    return true;
  }
}

// ---- metrics ----------------------------------------------------------------------------------------------------

export const STAGES = ["receive", "queue", "compute", "answer"];

/** Prometheus text -> the sums over routes that the page shows. */
export function parseMetrics(text) {
  const totals = { images: 0, requests: 0, stages: {} };
  const requests = new Map();
  const computing = new Set(); // routes that take predictions
  for (const stage of STAGES) {
    totals.stages[stage] = { sum: 0, count: 0, buckets: new Map() };
  }
  for (const line of text.split("\n")) {
    const match = /^lossd_([a-z_]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) {
      continue;
    }
    const [, name, labels = "", value] = match;
    const label = (key) => new RegExp(`(?:^|,)${key}="([^"]*)"`).exec(labels)?.[1];
    const number = Number(value);
    if (name === "images_total") {
      totals.images += number;
      computing.add(label("route"));
    } else if (name === "requests_total") {
      requests.set(label("route"), (requests.get(label("route")) ?? 0) + number);
    } else {
      const [, stage, part] = /^([a-z]+)_seconds_(sum|count|bucket)$/.exec(name) ?? [];
      const into = totals.stages[stage];
      if (into && part === "bucket") {
        const limit = label("le") === "+Inf" ? Infinity : Number(label("le"));
        into.buckets.set(limit, (into.buckets.get(limit) ?? 0) + number);
      } else if (into) {
        into[part] += number;
      }
    }
  }
  for (const route of computing) {
    totals.requests += requests.get(route) ?? 0;
  }
  return totals;
}

/** The value below which a share of what came into the buckets lies, as Prometheus' histogram_quantile has it. */
function quantile(share, before, after) {
  const limits = [...after.buckets.keys()].sort((a, b) => a - b);
  const counts = limits.map((limit) => after.buckets.get(limit) - (before.buckets.get(limit) ?? 0));
  const wanted = share * counts.at(-1);
  const i = counts.findIndex((count) => count >= wanted);
  if (limits[i] === Infinity) {
    return limits[i - 1] ?? null;
  }
  const low = i > 0 ? limits[i - 1] : 0;
  const below = i > 0 ? counts[i - 1] : 0;
  return low + ((limits[i] - low) * (wanted - below)) / (counts[i] - below);
}

/** What happened between two readings; null when the daemon started again in between. */
function between(before, after) {
  const seconds = (after.at - before.at) / 1000;
  if (after.images < before.images || after.requests < before.requests || seconds <= 0) {
    return null;
  }
  const sample = {
    time: new Date(),
    images: (after.images - before.images) / seconds,
    requests: (after.requests - before.requests) / seconds,
    stages: {},
  };
  for (const stage of STAGES) {
    const [a, b] = [before.stages[stage], after.stages[stage]];
    const count = b.count - a.count;
    sample.stages[stage] = count <= 0 ? null : {
      mean: (b.sum - a.sum) / count,
      p50: quantile(0.5, a, b),
      p95: quantile(0.95, a, b),
    };
  }
  return sample;
}

/** Throughput and latency from successive readings of /metrics. */
export class Metrics {
  samples = [];
  missing = false; // this daemon has none here
  #last = null;

  async refresh() {
    if (this.missing) {
      return;
    }
    let answer;
    try {
      answer = await ask("/metrics", null, "text");
    } catch (trouble) {
      this.missing = trouble.status === 404;
      if (this.missing) {
        return;
      }
      throw trouble;
    }
    const now = { at: performance.now(), ...parseMetrics(answer.body) };
    const sample = this.#last && between(this.#last, now);
    this.#last = now;
    if (sample) {
      this.samples = this.samples.slice(-899).concat(sample); // half an hour
    }
  }

  /** What happens until the next reading is nobody's rate: the page did not look. */
  forget() {
    this.#last = null;
  }
}

/** The daemon's version, for the heading. */
export async function version() {
  return (await ask("/version", null, "json")).body.version;
}
