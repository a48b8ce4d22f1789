"use strict";
const of = (name) => document.getElementById(name);
const read = (name) => JSON.parse(of(name).textContent);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* curves */
const { drawings, mark } = read("curves");
const smoothing = of("smoothing");
let charts = [];

/* The mean over a window around each point, which is cut at the ends; gaps stay gaps. */
function smooth(values, share) {
  const known = [], places = [];
  values.forEach((value, place) => { if (value !== null) { known.push(value); places.push(place); } });
  const half = Math.round(known.length * share / 2), sums = [0];
  for (const value of known) sums.push(sums[sums.length - 1] + value);
  const out = new Array(values.length).fill(null);
  places.forEach((place, at) => {
    const first = Math.max(at - half, 0), end = Math.min(at + half + 1, known.length);
    out[place] = (sums[end] - sums[first]) / (end - first);
  });
  return out;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

function columns(drawing, share) {
  const data = [drawing.steps];
  drawing.lines.forEach((line, place) => {
    data.push(drawing.columns[place]);
    if (line.noisy) data.push(smooth(drawing.columns[place], share));
  });
  return data;
}

function lines(drawing) {
  const series = [{ label: "step" }];
  drawing.lines.forEach((line, place) => {
    const stroke = colour("--c" + place % 5), value = (_, number) => short(number);
    if (line.noisy) {
      series.push({ label: line.label, stroke: stroke + "55", width: 1, value, points: { show: false } });
      series.push({ label: "smoothed", stroke, width: 2, value, points: { show: false } });
    } else {
      series.push({ label: line.label, stroke, width: 2, value, spanGaps: true, points: { show: line.dotted, size: 6 } });
    }
  });
  return series;
}

/* A line where the recommended checkpoint is. */
function markAt(chart) {
  const [first, last] = [chart.scales.x.min, chart.scales.x.max];
  if (mark === null || mark < first || mark > last) return;
  const at = chart.valToPos(mark, "x", true), area = chart.bbox, draw = chart.ctx;
  draw.save();
  draw.strokeStyle = colour("--good");
  draw.lineWidth = 2 * devicePixelRatio;
  draw.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
  draw.beginPath();
  draw.moveTo(at, area.top);
  draw.lineTo(at, area.top + area.height);
  draw.stroke();
  draw.restore();
}

function build() {
  charts.forEach((chart) => chart.destroy());
  const share = Number(smoothing.value) / 100;
  charts = drawings.map((drawing) => {
    const box = of("plot-" + drawing.name);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const up = { ...axis, size: 64, values: (_, ticks) => ticks.map(short) };
    return new uPlot({
      width: box.clientWidth, height: 260, series: lines(drawing),
      scales: { x: { time: false } }, axes: [axis, up],
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      hooks: { draw: [markAt] },
    }, columns(drawing, share), box);
  });
}
function resize() {
  charts.forEach((chart) => {
    const width = chart.root.parentElement.clientWidth;
    if (width && width !== chart.width) chart.setSize({ width, height: 260 });
  });
}
if (drawings.length) {
  build();
  smoothing.addEventListener("input", () => {
    of("smoothed").textContent = smoothing.value + " %";
    charts.forEach((chart, place) => chart.setData(columns(drawings[place], Number(smoothing.value) / 100), false));
    charts.forEach((chart) => chart.redraw());
  });
  new ResizeObserver(resize).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("printing"); build(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("printing"); build(); });
}

/* previews */
const master = of("master"), all = master ? read("steps") : [];
class Film {
  constructor(box, place) {
    this.picture = box.querySelector(".now img");
    this.now = box.querySelector(".now");
    this.told = box.querySelector(".now span");
    this.slider = box.querySelector("input");
    this.place = place;
    this.frames = null;
    if (!this.slider) return;
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.now.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      this.now.setPointerCapture(event.pointerId);
      this.slider.focus({ preventScroll: true });
      this.scrub(event);
    });
    this.now.addEventListener("pointermove", (event) => {
      if (this.now.hasPointerCapture(event.pointerId)) this.scrub(event);
    });
  }
  /* read when they are first asked for: a long run holds megabytes of them */
  get film() { return this.frames ??= read("film-" + this.place); }
  scrub(event) {
    const { left, width } = this.picture.getBoundingClientRect(), last = this.film.steps.length - 1;
    this.show(Math.round(Math.min(Math.max((event.clientX - left) / width, 0), 1) * last));
  }
  show(at) {
    const { steps, pictures } = this.film;
    this.picture.src = pictures[at];
    this.told.textContent = "step " + steps[at];
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", "step " + steps[at]);
  }
  showStep(step) {
    if (!this.slider) return;
    let at = 0;
    while (at + 1 < this.film.steps.length && this.film.steps[at + 1] <= step) at += 1;
    this.show(at);
  }
}
const films = [...document.querySelectorAll(".film")].map((box, place) => new Film(box, place));
if (master) {
  master.addEventListener("input", () => {
    const step = all[Number(master.value)];
    of("at").textContent = "step " + step;
    master.setAttribute("aria-valuetext", "step " + step);
    films.forEach((film) => film.showStep(step));
  });
}
