// SPDX-License-Identifier: Apache-2.0
//
// The page: what is chosen, what is shown, and when the daemon is asked. All asking is in `poll`, one at a time.

import { hasToken, History, Latest, Metrics, RunList, Trouble, useToken, version } from "./feed.js";
import { Chart, Group, Histogram, MOST_RUNS, short, smoothed, swatch } from "./charts.js";

const EVERY_MS = 2000;
const MOST_LISTED = 200; // rows of the list; the filter reaches the others
const $ = (id) => document.getElementById(id);

const feed = { list: new RunList(), metrics: new Metrics(), latest: null };
const chosen = new Map(); // name -> {slot, history}
const settings = { one: null, log: false, smooth: 0, theme: "auto", ...remembered() };
const steps = new Group(2, false);
const times = new Group(120000, true);
const zero = { zero: true };
const milliseconds = (value) => (value === null ? short(value) : `${short(value)} ms`);
const charts = {
  total: new Chart($("total"), steps),
  positives: new Chart($("positives"), steps),
  unmatched: new Chart($("unmatched"), steps, zero),
  parts: new Chart($("parts"), steps),
  throughput: new Chart($("throughput"), times, { ...zero, unit: "time" }),
  latency: new Chart($("latency"), times, { ...zero, unit: "time", digits: milliseconds }),
};
const histogram = new Histogram($("iou"));

// ---- settings: in the address, so that it can be passed on, and in the browser ----------------------------------

function remembered() {
  try {
    return JSON.parse(localStorage.getItem("lossd")) ?? {};
  } catch {
    return {};
  }
}

function remember() {
  const words = new URLSearchParams();
  const names = [...chosen].sort(([, a], [, b]) => a.slot - b.slot).map(([name]) => name);
  words.set("runs", names.join(","));
  if (settings.one) {
    words.set("one", settings.one);
  }
  words.set("log", settings.log ? "1" : "0");
  words.set("smooth", settings.smooth);
  history.replaceState(null, "", `#${words.toString().replaceAll("%2C", ",")}`);
  try {
    const { log, smooth, theme } = settings;
    localStorage.setItem("lossd", JSON.stringify({ log, smooth, theme }));
  } catch {
    // a browser that keeps nothing
  }
}

/** Whether the address says which runs. */
function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (words.has("log")) {
    settings.log = words.get("log") === "1";
  }
  if (words.has("smooth")) {
    settings.smooth = Number(words.get("smooth"));
  }
  settings.smooth = Math.min(0.99, Math.max(0, Number(settings.smooth) || 0));
  settings.theme = ["light", "dark"].includes(settings.theme) ? settings.theme : "auto";
  settings.one = words.get("one") ?? settings.one;
  if (words.has("runs")) {
    const names = words.get("runs").split(",").filter((name) => /^[A-Za-z0-9._-]{1,64}$/.test(name));
    [...chosen.keys()].filter((name) => !names.includes(name)).forEach((name) => chosen.delete(name));
    names.slice(0, MOST_RUNS).forEach(choose);
  }
  $("log").checked = settings.log;
  $("smooth").value = settings.smooth;
  $("theme").value = settings.theme;
  document.documentElement.dataset.theme = settings.theme;
  return words.has("runs");
}

const darkSystem = matchMedia("(prefers-color-scheme: dark)");

function scheme() {
  return settings.theme === "auto" ? (darkSystem.matches ? "dark" : "light") : settings.theme;
}

// ---- choosing ---------------------------------------------------------------------------------------------------

function choose(name) {
  const taken = new Set([...chosen.values()].map((run) => run.slot));
  const slot = [...Array(MOST_RUNS).keys()].find((i) => !taken.has(i));
  if (!chosen.has(name) && slot !== undefined) {
    chosen.set(name, { slot, history: new History(name) });
  }
}

function toggle(name, on) {
  if (on) {
    choose(name);
  } else {
    chosen.delete(name);
  }
  keepOne();
  say(`${name} ${on ? "added" : "removed"}; ${chosen.size} of at most ${MOST_RUNS} runs compared.`);
  remember();
  render();
  pollNow();
}

/** One of those that are chosen is looked at alone. */
function keepOne() {
  if (!chosen.has(settings.one)) {
    settings.one = chosen.keys().next().value ?? null;
  }
}

/** The runs, the one that began last first. */
function listed() {
  return [...feed.list.rows].sort((a, b) => (a.first_time < b.first_time ? 1 : a.first_time > b.first_time ? -1
    : a.name < b.name ? -1 : 1));
}

/** Forget runs that are gone; at the first look choose the newest one. */
let looked = readAddress();
let known = null;

function reconcile() {
  const names = new Set(feed.list.rows.map((row) => row.name));
  if (known) {
    const fresh = [...names].filter((name) => !known.has(name));
    if (fresh.length > 0) {
      say(fresh.length === 1 ? `New run: ${fresh[0]}.` : `${fresh.length} new runs.`);
    }
  }
  known = names;
  for (const name of chosen.keys()) {
    if (!names.has(name)) {
      chosen.delete(name);
    }
  }
  if (names.size > 0 && (!looked || chosen.size === 0 && !touched)) {
    looked = true;
    choose(listed()[0].name);
  }
  keepOne();
}

let touched = false; // the selection, by hand

// ---- asking -----------------------------------------------------------------------------------------------------

let timer = 0;
let asking = false;
let again = false;
let failures = 0;
let locked = false; // until a token is given, nothing is asked
let paused = false;

/** Everything that is new. Whether something is. */
async function refresh() {
  const changed = [await feed.list.refresh()];
  if (changed[0]) {
    reconcile();
  }
  const rows = new Map(feed.list.rows.map((row) => [row.name, row]));
  for (const [name, run] of [...chosen]) {
    if (rows.has(name)) {
      changed.push(await orGone(run.history.follow(rows.get(name))));
    }
  }
  if (settings.one === null) {
    feed.latest = null;
  } else if (feed.latest?.name !== settings.one) {
    feed.latest = new Latest(settings.one);
    changed.push(await orGone(feed.latest.refresh()));
  } else if (changed[0]) {
    changed.push(await orGone(feed.latest.refresh()));
  }
  await feed.metrics.refresh();
  return changed.some(Boolean);
}

/** A run that was deleted since the list was made: the next list says so. */
async function orGone(promise) {
  try {
    return await promise;
  } catch (trouble) {
    if (trouble.status === 404) {
      return false;
    }
    throw trouble;
  }
}

async function poll() {
  clearTimeout(timer);
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  do {
    again = false;
    try {
      const changed = await refresh();
      if (failures > 0) {
        say("lossd answers again.");
      }
      failures = 0;
      lock(false);
      $("trouble").textContent = "";
      document.documentElement.dataset.state = feed.list.rows.length > 0 ? "some" : "none";
      if (changed) {
        render();
      } else {
        renderList();
      }
      renderDaemon();
    } catch (trouble) {
      failures++;
      feed.metrics.forget();
      if (!(trouble instanceof Trouble)) {
        reportError(trouble); // a fault of this page; the next look may go well
      }
      lock(trouble.status === 401);
      const why = trouble instanceof Trouble ? trouble.message : "This page failed";
      const text = locked ? `${why}.` : `${why}; trying again every few seconds.`;
      if ($("trouble").textContent !== text) { // an alert is read out each time it is written
        $("trouble").textContent = text;
      }
    }
  } while (again);
  asking = false;
  renderState();
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (!paused && !locked && document.visibilityState === "visible") {
    timer = setTimeout(poll, Math.min(10000, EVERY_MS * 2 ** Math.max(0, failures - 1)));
  }
}

/** Something was chosen: it is fetched even while paused. */
function pollNow() {
  void poll();
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  feed.metrics.forget();
  if (document.visibilityState === "visible" && !paused && !locked) {
    pollNow();
  }
});

// ---- the door ---------------------------------------------------------------------------------------------------

function lock(now) {
  if (now && !locked) {
    $("token").value = "";
  }
  locked = now;
  document.documentElement.toggleAttribute("data-locked", now);
}

/** The version, and a command that records: they need the token too. */
function introduce() {
  const header = hasToken() ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  $("command").textContent = `curl -s${header} '${location.origin}/v1/loss?run=first&step=1' \\\n` +
    "  --data-binary @tests/golden/bccd-ssd300/request.safetensors";
  version().then((text) => { $("version").textContent = text; }, () => {});
}

function connectDoor() {
  $("door").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("token").value.trim().replace(/^bearer\s+/i, ""); // as a header has it
    if (!/^[!-~]+$/.test(text)) { // no header can carry it
      $("trouble").textContent = "A token is made of visible ASCII characters.";
      return;
    }
    useToken(text);
    introduce();
    pollNow();
  });
}

// ---- showing ----------------------------------------------------------------------------------------------------

function say(text) {
  $("news").textContent = text;
}

function ago(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= unit) {
      return `${Math.floor(seconds / unit)} ${name} ago`;
    }
  }
  return seconds < 10 ? "now" : `${Math.floor(seconds)} s ago`;
}

/** Today the time, else the date too. */
function moment(text) {
  const time = new Date(text);
  const today = time.toDateString() === new Date().toDateString();
  return today ? time.toLocaleTimeString([], { hour12: false }) : time.toLocaleString([], { hour12: false });
}

function element(name, text, className) {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className ?? "";
  return made;
}

function renderState() {
  const link = failures > 0 ? "lost" : paused ? "paused" : "live";
  document.documentElement.dataset.link = link;
  const time = new Date().toLocaleTimeString([], { hour12: false });
  $("state").textContent = link === "live" ? `Live, ${time}` : link === "paused" ? "Paused"
    : locked ? "No token" : "No answer";
}

const items = new Map(); // of the list, by name

function makeItem(name) {
  const item = document.createElement("li");
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.addEventListener("change", () => {
    touched = true;
    toggle(name, box.checked);
  });
  const parts = { item, box, mark: document.createElement("span"), about: element("span", "", "about") };
  label.append(box, element("span", name, "name"), parts.mark, parts.about);
  item.append(label);
  return parts;
}

function renderList() {
  const wanted = $("filter").value.trim().toLowerCase();
  const rows = listed();
  const matching = rows.filter((row) => row.name.toLowerCase().includes(wanted));
  const full = chosen.size >= MOST_RUNS;
  const shown = matching.slice(0, MOST_LISTED);
  for (const row of shown) {
    if (!items.has(row.name)) {
      items.set(row.name, makeItem(row.name));
    }
    const { box, mark, about } = items.get(row.name);
    const run = chosen.get(row.name);
    box.checked = Boolean(run);
    box.disabled = full && !run;
    const look = run ? `${run.slot} ${scheme()}` : "";
    if (mark.dataset.look !== look) {
      mark.dataset.look = look;
      mark.replaceChildren(...(run ? [swatch(run.slot, scheme())] : []));
    }
    const text = `${short(row.last_loss)} · ${row.steps} ${row.steps === 1 ? "step" : "steps"} · ${ago(row.last_time)}`;
    if (about.textContent !== text) {
      about.textContent = text;
    }
  }
  const order = shown.map((row) => items.get(row.name).item);
  if (order.length !== $("list").children.length || order.some((item, i) => item !== $("list").children[i])) {
    const focused = document.activeElement;
    $("list").replaceChildren(...order);
    if (focused !== document.activeElement && focused.isConnected) {
      focused.focus();
    }
    const names = new Set(shown.map((row) => row.name));
    [...items.keys()].filter((name) => !names.has(name)).forEach((name) => items.delete(name));
  }
  $("count").textContent = matching.length === rows.length ? String(rows.length) : `${matching.length} of ${rows.length}`;
  $("hint").textContent = full ? `${MOST_RUNS} runs are compared at most; uncheck one to add another.`
    : matching.length > shown.length ? `${matching.length - shown.length} more; the filter finds them.` : "";
}

/** One column of the chosen runs' steps, for a chart. */
function series(value, smooth = settings.smooth) {
  return [...chosen].sort(([, a], [, b]) => a.slot - b.slot).map(([name, { slot, history: { rows } }]) => ({
    name,
    slot,
    smooth,
    x: rows.map((row) => row.step),
    values: rows.map((row) => value(row) ?? NaN),
  }));
}

const perImage = (member) => (row) => (row[member] === null ? null : row[member] / Math.max(1, row.images));

function renderCharts() {
  const common = { scheme: scheme(), none: chosen.size > 0 ? "Loading…" : "Choose a run to see it here." };
  charts.total.draw({ ...common, log: settings.log, series: series((row) => row.total) });
  charts.positives.draw({ ...common, series: series(perImage("positives")) });
  const targets = "These runs sent targets: nobody knows their objects.";
  const any = [...chosen.values()].some((run) => run.history.rows.length > 0);
  charts.unmatched.draw({ ...common, series: series(perImage("unmatched_objects")), none: any ? targets : common.none });
  const one = chosen.get(settings.one)?.history.rows ?? [];
  const parts = [["loc", "loc"], ["conf", "conf"], ["conf_positive", "conf, positives"], ["conf_negative", "conf, negatives"]];
  charts.parts.draw({
    ...common,
    log: settings.log,
    series: one.length === 0 ? [] : parts.map(([member, name], slot) => ({
      name, slot, smooth: settings.smooth, x: one.map((row) => row.step), values: one.map((row) => row[member]),
    })),
  });
  steps.apply();
  const latest = feed.latest?.name === settings.one ? feed.latest?.body?.latest : null;
  histogram.draw({
    scheme: scheme(),
    counts: latest?.best_iou_histogram,
    about: latest ? `step ${latest.step}` : "",
    none: latest ? "This run sent targets: nobody knows its objects." : common.none,
  });
}

function renderOne() {
  const names = [...chosen.keys()];
  if (names.join() !== [...$("one").options].map((option) => option.value).join()) {
    $("one").replaceChildren(...names.map((name) => new Option(name, name)));
  }
  $("one").value = settings.one ?? "";
  $("one").disabled = names.length === 0;
}

function renderNumbers() {
  const rows = [...chosen].sort(([, a], [, b]) => a.slot - b.slot).map(([name, { slot, history: { rows: all } }]) => {
    const line = document.createElement("tr");
    const head = element("th", "");
    head.scope = "row";
    head.append(swatch(slot, scheme()), name);
    const last = all.at(-1);
    const cells = !last ? [] : [last.step, moment(last.time), last.total, last.loc,
      last.conf, perImage("positives")(last), perImage("unmatched_objects")(last), last.best_iou_mean, last.compute_ms];
    line.append(head, ...cells.map((cell) => element("td", typeof cell === "string" ? cell : short(cell))));
    return line;
  });
  $("numbers").replaceChildren(...rows);
}

function renderDaemon() {
  const { samples, missing } = feed.metrics;
  const none = missing ? "This daemon answers no /metrics here." : "Measuring…";
  const x = samples.map((sample) => sample.time.getTime());
  const line = (name, slot, value) => ({ name, slot, x, values: samples.map((sample) => value(sample) ?? NaN) });
  charts.throughput.draw({
    scheme: scheme(),
    none,
    series: samples.length === 0 ? [] : [line("images", 0, (s) => s.images), line("requests", 1, (s) => s.requests)],
  });
  const stage = $("stage").value;
  const ms = (key) => (s) => (s.stages[stage] ? s.stages[stage][key] * 1000 : null);
  const any = samples.some((sample) => sample.stages[stage]);
  charts.latency.draw({
    scheme: scheme(),
    none: missing || samples.length === 0 ? none : "No request since this page was opened.",
    series: any ? [line("p95", 1, ms("p95")), line("median", 0, ms("p50")), line("mean", 2, ms("mean"))] : [],
  });
  times.apply();
}

function render() {
  if (feed.list.rows.length > 0) {
    renderOne();
    renderList();
    renderCharts();
    renderNumbers();
    remember();
  }
  $("smooth-value").textContent = settings.smooth.toFixed(2);
}

// ---- controls ---------------------------------------------------------------------------------------------------

function readChart(chart) {
  const x = chart.rows[chart.graph.getSelection()][0];
  const unit = chart.options.digits ?? short;
  say(`${chart.place(x)}: ${chart.reading(x).map(({ name, value }) => `${name} ${unit(value)}`).join(", ")}`);
}

function connectControls() {
  const redraw = () => {
    remember();
    render();
    renderDaemon();
  };
  $("log").addEventListener("change", () => {
    settings.log = $("log").checked;
    redraw();
  });
  $("smooth").addEventListener("input", () => {
    settings.smooth = Number($("smooth").value);
    redraw();
  });
  $("theme").addEventListener("change", () => {
    settings.theme = $("theme").value;
    document.documentElement.dataset.theme = settings.theme;
    redraw();
  });
  darkSystem.addEventListener("change", redraw);
  $("one").addEventListener("change", () => {
    settings.one = $("one").value;
    redraw();
    pollNow();
  });
  $("filter").addEventListener("input", renderList);
  $("stage").addEventListener("change", renderDaemon);
  $("zoom-in").addEventListener("click", () => steps.scale(1 / 2));
  $("zoom-out").addEventListener("click", () => steps.scale(2));
  $("zoom-reset").addEventListener("click", () => {
    steps.reset();
    times.reset();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", paused);
    feed.metrics.forget();
    renderState();
    if (paused) {
      clearTimeout(timer);
    } else {
      pollNow();
    }
  });
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("command").textContent);
    } catch { // not over plain HTTP from another machine
      getSelection().selectAllChildren($("command"));
      if (!document.execCommand("copy")) {
        say("The command is selected; copy it with the keyboard.");
        return;
      }
    }
    $("copy").textContent = "Copied";
    say("Copied.");
    setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
  });
  addEventListener("hashchange", () => {
    readAddress();
    reconcile();
    render();
    pollNow();
  });
  for (const chart of Object.values(charts)) {
    chart.onread = readChart;
  }
}

connectControls();
connectDoor();
introduce();
pollNow();
