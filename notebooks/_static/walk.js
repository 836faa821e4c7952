// A walk along a string of MNIST networks.  The data of walk_data.js are what `dss strings` wrote;
// between two networks every weight is linear in t, so that filters are interpolated here.
"use strict";
// ---------- data: what was measured at the stations, bytes of weights and pixels
const bytes = (text, Kind) => Kind.from(atob(text), (letter) => letter.charCodeAt(0));

function read(data) {
  const n_pixels = data.sides[0] * data.sides[1], weights = bytes(data.weights, Int8Array);
  return { ...data, n_pixels, weights, pixels: bytes(data.pixels, Uint8Array),
    n_units: weights.length / data.networks.length / n_pixels,
    n_stations: data.string.losses.length };
}

// Where a position lies: its segment, from network k to k + 1, and t within it.
function place(networks, position) {
  const k = Math.max(0, networks.findIndex((end) => position <= end) - 1);
  return { k, t: (position - networks[k]) / (networks[k + 1] - networks[k]) };
}

// Eq. (1) for the first layer.
function filters({ weights, networks, largest }, position, is_straight) {
  const last = networks.length - 1, size = weights.length / (last + 1);
  const { k, t } = is_straight ? { k: 0, t: position } : place(networks, position);
  const [from, to] = [k * size, (is_straight ? last : k + 1) * size];
  return Float32Array.from({ length: size },
    (_, i) => ((1 - t) * weights[from + i] + t * weights[to + i]) * largest / 127);
}

globalThis.DSS_WALKING = { read, place, filters };
// ---------- drawing
const show = (v) => String(Number(v.toPrecision(3)));
const percent = (v) => `${show(100 * v)} %`;
const PATHS = { string: "string", straight: "straight line" };

// Losses of both paths against arc length, with L0 and the networks of the string.
function drawLosses(svg, data) {
  const [width, height] = [svg.clientWidth, svg.clientHeight];
  const [left, right, up, down] = [40, 30, 8, 38];
  const top = 1.08 * Math.max(...data.straight.losses, ...data.string.losses);
  const px = (p) => left + p * (width - left - right);
  const py = (v) => up + (1 - v / top) * (height - up - down);
  const line = (kind, points) => `<path class="dss-${kind}" d="M${
    points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join("L")}"/>`;
  const text = (kind, x, y, words) => `<text class="dss-${kind}" x="${x}" y="${y}">${words}</text>`;
  const curve = (path) => line(path, data[path].losses.map((v, i) => [station(data, i), v]));
  const dots = data.networks.map((p) => {
    const v = data.string.losses[Math.round(p * (data.n_stations - 1))];
    return `<circle r="4" cx="${px(p).toFixed(1)}" cy="${py(v).toFixed(1)}"/>`;
  });
  const step = top > 2 ? 1 : 0.5, ticks = [];
  for (let v = 0; v < top; v += step) ticks.push(text("end", left - 7, py(v) + 4, v));
  for (const p of [0, 0.25, 0.5, 0.75, 1]) ticks.push(text("middle", px(p), height - 22, p));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.innerHTML = [line("axis", [[0, top], [0, 0], [1, 0]]), ...ticks,
    text("middle", px(0.5), height - 5, "arc length (fraction)"),
    text("begin", px(1) + 6, py(data.L0) + 4, "L₀"), line("edge", [[0, data.L0], [1, data.L0]]),
    curve("straight"), curve("string"), ...dots, '<path class="dss-here"/>',
    '<circle class="dss-at-straight" r="5.5"/><circle class="dss-at-string" r="5.5"/>'].join("");
  return { px, py, top };
}

const station = ({ n_stations }, i) => i / (n_stations - 1);

// All filters as one picture: zero has the page's colour, both signs go to one of their own.
function drawFilters(canvas, { sides: [rows, columns], n_units, n_pixels, scale }, values) {
  const style = getComputedStyle(canvas), across = 8, gap = 2;
  const [minus, zero, plus] = ["minus", "zero", "plus"].map((name) => style
    .getPropertyValue(`--dss-${name}`).trim().match(/\w\w/g).map((v) => parseInt(v, 16)));
  canvas.width = across * (columns + gap) - gap;
  canvas.height = Math.ceil(n_units / across) * (rows + gap) - gap;
  const pen = canvas.getContext("2d"), tile = pen.createImageData(columns, rows);
  for (let unit = 0; unit < n_units; unit++) {
    for (let i = 0; i < n_pixels; i++) {
      const v = values[unit * n_pixels + i] / scale, sign = v < 0 ? minus : plus;
      zero.forEach((from, c) => {
        tile.data[4 * i + c] = from + Math.min(1, Math.abs(v)) * (sign[c] - from);
      });
      tile.data[4 * i + 3] = 255;
    }
    pen.putImageData(tile, (unit % across) * (columns + gap),
      Math.floor(unit / across) * (rows + gap));
  }
}

// The digits, once: a picture, its label, and what each path reads.
function drawDigits(list, { labels, pixels, n_pixels, sides: [rows, columns] }) {
  list.innerHTML = labels.map((label) => `<li><canvas width="${columns}" height="${rows}"></canvas>
    <span>is ${label}</span><span></span><span></span></li>`).join("");
  list.querySelectorAll("canvas").forEach((canvas, k) => {
    const pen = canvas.getContext("2d"), image = pen.createImageData(columns, rows);
    for (let i = 0; i < n_pixels; i++)
      image.data.set([0, 0, 0, pixels[k * n_pixels + i]], 4 * i);
    pen.putImageData(image, 0, 0);
  });
}
// ---------- controls
function start() {
  const $ = (id) => document.getElementById(`dss-walk-${id}`), slider = $("slider");
  const data = read(globalThis.DSS_WALK), last = data.n_stations - 1;
  let axes, timer;
  const named = (k) => (k === 0 ? "θ₁" : k === data.networks.length - 1 ? "θ₂" : `bead ${k}`);
  function where(i) {
    const { k, t } = place(data.networks, station(data, i));
    if (i === 0 || i === last) return named(i && k + 1);
    return `between ${named(k)} and ${named(k + 1)}, t = ${show(t)}`;
  }
  function report() {
    const i = +slider.value, position = station(data, i);
    slider.setAttribute("aria-valuetext", `${show(position)}, ${where(i)}`);
    $("says").textContent = `Position ${show(position)}: ${where(i)}; ` + Object.keys(PATHS).map(
      (path) => `loss ${show(data[path].losses[i])} on the ${PATHS[path]}`).join(", ") + ".";
    for (const path of Object.keys(PATHS)) {
      const { losses, errors, n_changed } = data[path], { px, py } = axes;
      const dot = document.querySelector(`.dss-at-${path}`);
      dot.setAttribute("cx", px(position));
      dot.setAttribute("cy", py(losses[i]));
      const changed = `${n_changed[i]} of ${data.n_digits.toLocaleString("en")}`;
      [show(losses[i]), percent(errors[i]), changed].forEach((words, k) => {
        $(path).cells[k + 1].textContent = words;
      });
      drawFilters($(`${path}-filters`), data, filters(data, position, path === "straight"));
      [...$("digits").children].forEach((item, k) => {
        const classes = data[path].classes[k], cell = item.children[path === "string" ? 2 : 3];
        cell.textContent = `${path === "string" ? "string" : "line"} ${classes[i]}`;
        cell.className = item.dataset[path] = classes[i] === classes[0] ? "" : "dss-changed";
      });
    }
    document.querySelector("#dss-walk-losses .dss-here").setAttribute("d",
      `M${axes.px(position)},${axes.py(axes.top)}V${axes.py(0)}`);
  }
  function draw() {
    axes = drawLosses($("losses"), data);
    report();
  }
  function pause() {
    timer = clearInterval(timer);
    $("play").textContent = "Play";
    $("says").setAttribute("aria-live", "polite");
  }
  function play() {
    if (timer) return pause();
    const is_calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (+slider.value === last) slider.value = 0;
    $("play").textContent = "Pause";
    $("says").setAttribute("aria-live", "off"); // a hundred sentences in a few seconds
    timer = setInterval(() => {
      slider.value = +slider.value + (is_calm ? 10 : 1);
      if (+slider.value === last) pause();
      report();
    }, is_calm ? 1500 : 120);
    return report();
  }
  slider.max = last;
  slider.oninput = () => { pause(); report(); };
  $("play").onclick = play;
  drawDigits($("digits"), data);
  $("scale").textContent = show(data.scale);
  draw();
  new ResizeObserver(draw).observe($("losses"));
  new MutationObserver(report).observe(document.documentElement, { attributes: true });
}
if (globalThis.document?.getElementById("dss-walk-slider")) start();
