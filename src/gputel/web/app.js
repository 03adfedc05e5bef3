"use strict";
// The dashboard: the REST API tells what there is and what was, the WebSocket what is now.
// Everything that comes from data enters the page as text, never as markup.

const SHOWN = [
  "gpu_utilization_percent",
  "memory_used_bytes",
  "memory_free_bytes",
  "power_watts",
  "gpu_temperature_celsius",
  "sm_clock_mhz",
];
const CHARTS = [
  { metric: "gpu_utilization_percent", title: "Utilisation", unit: "%", range: [0, 100] },
  { metric: "power_watts", title: "Power", unit: "W" },
  { metric: "gpu_temperature_celsius", title: "Temperature", unit: "°C" },
  { metric: "memory_used_bytes", title: "Memory", unit: "GiB", scale: 2 ** -30 },
  { metric: "sm_clock_mhz", title: "SM clock", unit: "MHz" },
];
const WINDOW_S = 600;
const STALE_S = 15;
const ROWS_MAX = 500;
const RETRY_MS = [250, 500, 1000, 2000, 5000];

const $ = (id) => document.getElementById(id);
const gpus = new Map(); // keyOf -> what is known of the GPU and where it is shown
let pipeline = null;
let socket = null;
let attempts = 0;
let lastMessage = 0;
let opened = null; // the GPU whose charts are open
let paintQueued = false;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function ask(path) {
  const response = await fetch(path, { headers: { Accept: "application/json" } });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.detail || body.title || `HTTP ${response.status}`);
  return body;
}

function complain(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text || "";
}

function connection(state, text) {
  $("connection").dataset.state = state;
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

// Connected is not live: a replay that has ended, or collectors that are away, send nothing.
function showLive() {
  let newest = 0;
  for (const gpu of gpus.values()) newest = Math.max(newest, gpu.time);
  const live = Date.now() - newest < STALE_S * 1000;
  connection(live ? "live" : "idle", live ? "live" : "connected, no new samples");
}

// ---------------------------------------------------------------- values as people read them

const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
const shown = {
  gpu_utilization_percent: (v) => `${Math.round(v)} %`,
  memory_used_bytes: (v, gpu) => (gpu.total ? `${gib(v)} / ${gib(gpu.total)} GiB` : `${gib(v)} GiB`),
  power_watts: (v) => `${v.toFixed(0)} W`,
  gpu_temperature_celsius: (v) => `${Math.round(v)} °C`,
  sm_clock_mhz: (v) => `${Math.round(v)} MHz`,
};

const clock = (time) => new Date(time * 1000).toTimeString().slice(0, 8);

function ago(seconds) {
  if (seconds < 2) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(Date.now() - seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
}

// ---------------------------------------------------------------- inventory

// A GPU that moved to another node is another row, as in the database.
const keyOf = (info) => JSON.stringify([info.node, info.uuid]);

// A MIG instance has the node and index of its GPU, and a part of its memory.
const isPart = (gpu) => gpu.uuid.startsWith("MIG-");
const wholeGpus = () => [...gpus.values()].filter((gpu) => !isPart(gpu));
const nameOf = (gpu) => `GPU ${gpu.index}${isPart(gpu) ? ` ${gpu.model.match(/MIG .*$/)?.[0] ?? "MIG"}` : ""}`;

function know(info) {
  let gpu = gpus.get(keyOf(info));
  if (!gpu) {
    gpu = { uuid: info.uuid, node: "", index: 0, model: "", values: {}, time: 0, changed: true };
    gpus.set(keyOf(info), gpu);
    gpu.added = true;
  }
  for (const key of ["id", "node", "index", "model", "driver_version", "pci_bus_id"])
    if (info[key] !== undefined) gpu[key] = info[key];
  if (info.memory_total_bytes) gpu.total = info.memory_total_bytes;
  return gpu;
}

function read(gpu, values, time) {
  Object.assign(gpu.values, values);
  if (time > gpu.time) gpu.time = time;
  const { memory_used_bytes: used, memory_free_bytes: free } = gpu.values;
  if (!gpu.total && used !== undefined && free !== undefined) gpu.total = used + free;
  gpu.changed = true;
}

async function loadInventory() {
  let cursor = "";
  do {
    const page = await ask(
      `/api/v1/gpus?latest=true&metrics=${SHOWN.join(",")}&limit=1000${cursor && `&cursor=${encodeURIComponent(cursor)}`}`,
    );
    for (const info of page.gpus) {
      const gpu = know(info);
      for (const [metric, { time, value }] of Object.entries(info.latest || {}))
        if (Date.parse(time) >= gpu.time || gpu.values[metric] === undefined)
          read(gpu, { [metric]: value }, Date.parse(time));
    }
    cursor = page.next_cursor || "";
  } while (cursor);
  layOut();
}

// ---------------------------------------------------------------- the live stream

function connect() {
  socket = new WebSocket(pipeline.stream_url);
  socket.onopen = () => {
    attempts = 0;
    socket.send(JSON.stringify({ type: "subscribe", id: "fleet", metrics: SHOWN, max_hz: 4 }));
  };
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    lastMessage = Date.now();
    if (message.type === "snapshot" || message.type === "update") {
      let added = false;
      for (const reading of message.gpus) {
        const gpu = know({ uuid: reading.uuid, node: reading.node });
        added ||= gpu.added;
        const time = Date.parse(reading.time);
        read(gpu, reading.values, time);
        if (opened && opened.gpu === gpu) opened.add(time / 1000, reading.values);
      }
      if (added) loadInventory().catch((error) => complain(error.message));
      showLive();
      paintSoon();
    } else if (message.type === "status") {
      if (message.source === "reconnecting") connection("lost", "waiting for the broker");
      else showLive();
    } else if (message.type === "hello") {
      if (message.source === "reconnecting") connection("lost", "waiting for the broker");
      else showLive();
    }
  };
  socket.onclose = () => {
    connection("lost", "reconnecting");
    setTimeout(connect, RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)]);
  };
}

// ---------------------------------------------------------------- what is drawn

function ordered() {
  return [...gpus.values()].sort(
    (a, b) => a.node.localeCompare(b.node, undefined, { numeric: true }) || a.index - b.index,
  );
}

function matches(gpu, wanted) {
  return !wanted || `${gpu.node} ${gpu.model} ${gpu.uuid}`.toLowerCase().includes(wanted);
}

function makeRow(gpu) {
  const cells = {};
  const cell = (metric) => {
    cells[metric] = element("td", { className: "number", textContent: "–" });
    cells[metric].dataset.metric = metric;
    return cells[metric];
  };
  const row = element(
    "tr",
    { tabIndex: 0 },
    element("td", { textContent: gpu.node, className: "name", title: gpu.node }),
    element("td", { textContent: gpu.index, title: gpu.uuid }),
    element("td", { textContent: gpu.model, className: "model", title: gpu.model }),
    cell("gpu_utilization_percent"),
    cell("memory_used_bytes"),
    cell("power_watts"),
    cell("gpu_temperature_celsius"),
    cell("sm_clock_mhz"),
  );
  const meter = element("i");
  const text = element("span", { className: "value", textContent: "–" });
  cells.gpu_utilization_percent.replaceChildren(element("span", { className: "meter" }, meter), text);
  const sampled = element("td", { textContent: "" });
  row.append(sampled);
  row.dataset.gpu = gpu.uuid;
  row.onclick = () => open(gpu);
  row.onkeydown = (event) => event.key === "Enter" && open(gpu);
  return { row, cells, meter, text, sampled };
}

function layOut() {
  const all = ordered();
  $("empty").hidden = all.length > 0;
  for (const id of ["fleet", "list"]) $(id).hidden = all.length === 0;
  const nodes = new Map();
  for (const gpu of all) {
    gpu.added = false;
    gpu.changed = true;
    const cell = element("button", { type: "button", className: "cell" });
    cell.onclick = () => open(gpu);
    gpu.cell = cell;
    if (!nodes.has(gpu.node)) nodes.set(gpu.node, []);
    nodes.get(gpu.node).push(cell);
  }
  $("heat").replaceChildren(
    ...[...nodes].map(([name, cells]) =>
      element("div", { className: "node" },
        element("span", { textContent: name, title: name }),
        element("div", { className: "cells" }, ...cells)),
    ),
  );
  const wanted = $("filter").value.trim().toLowerCase();
  const found = all.filter((gpu) => matches(gpu, wanted));
  for (const gpu of all) gpu.shown = null;
  for (const gpu of found.slice(0, ROWS_MAX)) gpu.shown = makeRow(gpu);
  $("rows").replaceChildren(...found.slice(0, ROWS_MAX).map((gpu) => gpu.shown.row));
  $("more").hidden = found.length <= ROWS_MAX;
  $("more").textContent = `${found.length - ROWS_MAX} more; filter to see them`;
  markOpen();
  paintSoon();
}

function paintSoon() {
  if (paintQueued) return;
  paintQueued = true;
  requestAnimationFrame(() => {
    paintQueued = false;
    paint();
  });
}

function paint() {
  const now = Date.now();
  for (const gpu of gpus.values()) {
    if (!gpu.cell) continue;
    const age = gpu.time ? (now - gpu.time) / 1000 : Infinity;
    const stale = age > STALE_S;
    if (gpu.changed || stale !== gpu.stale) {
      gpu.stale = stale;
      const busy = gpu.values.gpu_utilization_percent;
      gpu.cell.style.setProperty("--busy", (busy || 0) / 100);
      gpu.cell.dataset.busy = busy > 75 ? "high" : "low";
      gpu.cell.textContent = busy === undefined ? "–" : Math.round(busy);
      gpu.cell.classList.toggle("stale", stale);
      gpu.cell.setAttribute("aria-label", `${gpu.node} ${nameOf(gpu)}: ${busy === undefined ? "no value" : `${Math.round(busy)} %`}${stale ? ", not live" : ""}`);
    }
    if (gpu.shown) paintRow(gpu, age, stale);
    gpu.changed = false;
  }
  paintTotals();
  if (opened) opened.paint();
}

function paintRow(gpu, age, stale) {
  const { row, cells, meter, text, sampled } = gpu.shown;
  if (gpu.changed)
    for (const [metric, cell] of Object.entries(cells)) {
      const value = gpu.values[metric];
      const label = value === undefined || value === null ? "–" : shown[metric](value, gpu);
      if (metric === "gpu_utilization_percent") {
        text.textContent = label;
        meter.style.width = `${value || 0}%`;
      } else cell.textContent = label;
    }
  row.classList.toggle("stale", stale);
  const label = Number.isFinite(age) ? ago(age) : "never";
  if (sampled.textContent !== label) sampled.textContent = label;
}

function paintTotals() {
  const wholes = wholeGpus();
  const known = (metric) => wholes.map((g) => g.values[metric]).filter((v) => v !== undefined);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const show = (name, text) => (document.querySelector(`[data-total="${name}"]`).textContent = text);
  const busy = known("gpu_utilization_percent");
  const power = known("power_watts");
  const heat = known("gpu_temperature_celsius");
  const used = sum(known("memory_used_bytes"));
  const total = sum(wholes.map((g) => g.total || 0));
  show("gpus", wholes.length);
  show("nodes", new Set([...gpus.values()].map((g) => g.node)).size);
  show("utilization", busy.length ? `${Math.round(sum(busy) / busy.length)} %` : "–");
  show("power", power.length ? (sum(power) >= 10000 ? `${(sum(power) / 1000).toFixed(1)} kW` : `${Math.round(sum(power))} W`) : "–");
  show("memory", total ? `${Math.round((100 * used) / total)} %` : "–");
  show("hottest", heat.length ? `${Math.max(...heat)} °C` : "–");
}

// ---------------------------------------------------------------- one GPU

class Detail {
  constructor(gpu) {
    this.gpu = gpu;
    this.dirty = false;
    this.charts = CHARTS.map((chart) => this.make(chart));
    $("charts").replaceChildren(...this.charts.map((chart) => chart.box));
    this.resize();
  }

  make({ metric, title, unit, range, scale = 1 }) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const value = element("b", { textContent: "" });
    const box = element("div", { className: "chart" }, element("h3", {}, `${title} `, value));
    const axis = { stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } };
    const plot = new uPlot(
      {
        width: 360,
        height: 150,
        legend: { show: false },
        cursor: { drag: { x: true, y: false } },
        scales: { y: range ? { range } : { range: (_, low, high) => (low === null ? [0, 1] : [Math.min(0, low), Math.max(high * 1.1, 1)]) } },
        axes: [{ ...axis, space: 80, values: (_, times) => times.map(clock) }, { ...axis, size: 54 }],
        series: [{}, { stroke: color("--accent"), width: 1.5, fill: `${color("--accent")}22`, spanGaps: false, points: { show: false } }],
      },
      [[], []],
      box,
    );
    return { metric, unit, scale, plot, box, value, times: [], values: [] };
  }

  resize() {
    for (const { plot, box } of this.charts) plot.setSize({ width: Math.max(box.clientWidth, 200), height: 150 });
  }

  async load() {
    const last = this.gpu.time || Date.now();
    const live = Date.now() - last < STALE_S * 1000;
    const start = live ? "-10m" : new Date(last - WINDOW_S * 1000).toISOString();
    const end = live ? "now" : new Date(last + 1000).toISOString();
    const metrics = CHARTS.map((chart) => chart.metric).join(",");
    const found = await ask(
      `/api/v1/gpus/${encodeURIComponent(this.gpu.id ?? this.gpu.uuid)}/telemetry?start_time=${encodeURIComponent(start)}&end_time=${encodeURIComponent(end)}&metrics=${metrics}`,
    );
    for (const series of found.series) {
      const chart = this.charts.find((c) => c.metric === series.metric);
      if (!chart) continue;
      const times = series.time.map((time) => Date.parse(time) / 1000);
      const newest = times.length ? times[times.length - 1] : 0;
      const since = chart.times.findIndex((time) => time > newest);
      chart.times = times.concat(since < 0 ? [] : chart.times.slice(since));
      chart.values = series.value.map((v) => v * chart.scale).concat(since < 0 ? [] : chart.values.slice(since));
    }
    this.dirty = true;
    paintSoon();
  }

  add(time, values) {
    for (const chart of this.charts) {
      const value = values[chart.metric];
      if (value === undefined || (chart.times.length && time <= chart.times[chart.times.length - 1])) continue;
      chart.times.push(time);
      chart.values.push(value * chart.scale);
      while (chart.times[0] < time - WINDOW_S) {
        chart.times.shift();
        chart.values.shift();
      }
    }
    this.dirty = true;
  }

  paint() {
    if (!this.dirty) return;
    this.dirty = false;
    for (const chart of this.charts) {
      chart.plot.setData([chart.times, chart.values]);
      const value = chart.values[chart.values.length - 1];
      chart.value.textContent = value === undefined ? "no values" : `${value.toFixed(chart.scale === 1 ? 0 : 1)} ${chart.unit}`;
    }
  }

  close() {
    for (const { plot } of this.charts) plot.destroy();
  }
}

function markOpen() {
  for (const gpu of gpus.values())
    if (gpu.shown) gpu.shown.row.setAttribute("aria-current", String(Boolean(opened && opened.gpu === gpu)));
}

function open(gpu, focus = true) {
  if (opened) opened.close();
  $("detail").hidden = false;
  $("detail-title").textContent = `${gpu.node} · ${nameOf(gpu)}`;
  const facts = [gpu.model, gpu.uuid, gpu.pci_bus_id, gpu.driver_version && `driver ${gpu.driver_version}`];
  $("facts").textContent = facts.filter(Boolean).join(" · ");
  opened = new Detail(gpu);
  opened.load().catch((error) => complain(error.message));
  history.replaceState(null, "", `#gpu=${encodeURIComponent(keyOf(gpu))}`);
  markOpen();
  if (focus) {
    $("detail").scrollIntoView({ block: "nearest" });
    $("detail-title").focus({ preventScroll: true });
  }
}

function close() {
  if (!opened) return;
  const row = opened.gpu.shown && opened.gpu.shown.row;
  opened.close();
  opened = null;
  $("detail").hidden = true;
  history.replaceState(null, "", location.pathname);
  markOpen();
  if (row) row.focus();
}

// ---------------------------------------------------------------- start

async function refresh() {
  try {
    pipeline = await ask("/api/v1/pipeline");
    $("version").textContent = `gputel ${pipeline.version}`;
    const failing = Object.entries(pipeline.checks).filter(([, state]) => state !== "ok");
    complain(failing.map(([name, state]) => `${name}: ${state}`).join("; "));
    $("newest").textContent = pipeline.newest_sample
      ? `· newest stored sample ${ago((Date.now() - Date.parse(pipeline.newest_sample)) / 1000)}`
      : "";
  } catch (error) {
    complain(`The API does not answer: ${error.message}`);
  }
}

// The stream may bring a GPU before the database knows it, and the database may hold more
// than when the page was opened.
function catchUp() {
  const strangers = [...gpus.values()].some((gpu) => gpu.id === undefined);
  if (strangers || (pipeline && pipeline.gpus > wholeGpus().length))
    loadInventory().catch((error) => complain(error.message));
}

async function start() {
  $("filter").oninput = layOut;
  $("close").onclick = close;
  addEventListener("keydown", (event) => event.key === "Escape" && close());
  addEventListener("resize", () => opened && opened.resize());
  while (!pipeline) {
    await refresh();
    if (!pipeline) await new Promise((resolve) => setTimeout(resolve, 2000));
  }
  connect();
  await loadInventory().catch((error) => complain(error.message));
  const asked = new URLSearchParams(location.hash.slice(1)).get("gpu");
  if (asked && gpus.has(asked)) open(gpus.get(asked), false);
  setInterval(refresh, 10000);
  setInterval(catchUp, 2000);
  setInterval(() => {
    $("age").textContent = lastMessage ? `last message ${ago((Date.now() - lastMessage) / 1000)}` : "";
    if ($("connection").dataset.state === "live") showLive();
    paintSoon();
  }, 1000);
}

start();
