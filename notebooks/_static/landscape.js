// DSS by hand: Dynamic String Sampling on landscapes of two parameters.  First the algorithm, step
// for step as the Python package `dss` has it and without a page; then the drawing, the controls.
"use strict";
// ---------- landscapes: loss and gradient, where a visit begins; the window that is drawn
const WINDOW = [[-2.4, 2.4], [-1.8, 2]];
const square = (v) => v * v;
const LANDSCAPES = {
  valley: { // of Fig. 1
    loss: ([x, y]) => square(y - 1.5 * Math.cos(x)) + 0.01 * x * x,
    gradient: ([x, y]) => [3 * (y - 1.5 * Math.cos(x)) * Math.sin(x) + 0.02 * x,
      2 * (y - 1.5 * Math.cos(x))],
    ends: [[-1.8, -0.25], [1.7, -0.1]], L0: 0.1 },
  unit: { // Gamma is exactly 1, at the saddle in the origin
    loss: ([x, y]) => square(x * y - 1),
    gradient: ([x, y]) => [2 * (x * y - 1) * y, 2 * (x * y - 1) * x],
    ends: [[0.6, 1.6], [-1.9, -0.55]], L0: 0.3 },
};
// ---------- the algorithm (Sec. II.B)
const EPSILON = 8 * Number.EPSILON; // tests allow for rounding
const LEAST_PROGRESS = 1e-3; // by which a descent lowers its best loss within `patience` steps
// Directions in which beads leave stationary points, a level each, as dss draws them from seed 0.
const ANGLES = [1.6155283012255859, 0.895062316466566, 0.07173483775581348, -1.030473803149927,
  0.33001625969459436, 1.2843404683908382, -1.940495836377066, 2.860945541222694];
const distance = (a, b) => Math.sqrt(square(a[0] - b[0]) + square(a[1] - b[1]));

// Eq. (1): theta_1 (1 - t) + theta_2 t; t = 0 and t = 1 give the ends exactly.
const interpolate = (theta_1, theta_2, t) => theta_1.map((a, i) => (t < 0.5
  ? a + t * (theta_2[i] - a) : theta_2[i] - (theta_2[i] - a) * (1 - t)));

// Eq. (2): the loss on a grid of the segment, both ends included.
const gamma = (L, theta_1, theta_2, n_t = 33) => Array.from({ length: n_t },
  (_, k) => L.loss(interpolate(theta_1, theta_2, k / (n_t - 1))));

// The maximum of gamma: on the grid, then three steps of parabolic interpolation around it.
function tStar(L, theta_1, theta_2, n_t = 33) {
  const curve = gamma(L, theta_1, theta_2, n_t), grid_max = Math.max(...curve);
  const off = (k) => Math.abs(k / (n_t - 1) - 0.5), at = (k) => [k / (n_t - 1), curve[k]];
  const best = [...curve.keys()].filter((k) => curve[k] === grid_max)
    .reduce((i, k) => (off(k) < off(i) ? k : i)); // of equal ones the nearest to the middle
  let [m, fm] = at(best), [a, fa] = at(Math.max(best - 1, 0));
  let [b, fb] = at(Math.min(best + 1, n_t - 1));
  for (let round = 0; round < 3; round++) {
    const p = (m - a) * (fm - fb), q = (m - b) * (fm - fa);
    let u = m - 0.5 * ((m - a) * p - (m - b) * q) / (p - q);
    const fits = u > a && u < b && Math.abs(u - m) >= 1e-3 * (b - a); // false for NaN
    if (!fits) u = b - m >= m - a ? (m + b) / 2 : (a + m) / 2;
    const fu = L.loss(interpolate(theta_1, theta_2, u)), left = u < m, better = fu > fm;
    // The better of m and u becomes the middle, the other one a border on its side.
    const border = better ? [m, fm] : [u, fu];
    if (better !== left) [a, fa] = border; else [b, fb] = border;
    if (better) [m, fm] = [u, fu];
  }
  return { t_star: m, gamma_max: fm, grid_max, gamma: curve };
}

// Gradient descent to a target loss, with a budget and a reason.
function descend(L, theta, target, { lr = 0.01, max_steps = 20000, patience = 1000 } = {}) {
  let loss = L.loss(theta), floor = loss * (1 - LEAST_PROGRESS), best_step = 0;
  const path = []; // a few hundred points, to be drawn
  for (let steps = 0; ; steps++) {
    if (loss < floor) [floor, best_step] = [(1 - LEAST_PROGRESS) * loss, steps];
    const status = loss <= target ? "reached" : !Number.isFinite(loss) ? "not finite"
      : steps - best_step >= patience ? "stalled" : steps >= max_steps ? "budget spent" : "";
    if (status) return { theta, loss, steps, status, path: [...path, theta] };
    if (steps < 300 || steps % 50 === 0) path.push(theta);
    const slope = L.gradient(theta);
    theta = theta.map((v, i) => v - lr * slope[i]);
    loss = L.loss(theta);
  }
}

// Level by level: test new segments, insert beads at t*, descend; yields the string after each.
function* search(L, theta_1, theta_2, { L0, alpha, max_depth, n_t = 33, ...training }) {
  const limit = L0 * (1 + EPSILON), target = alpha * L0 * (1 + EPSILON);
  const [left, right] = [theta_1, theta_2].map((v) => ({ theta: v, loss: L.loss(v), depth: 0 }));
  let segments = [{ left, right }], open = [], steps = 0; // in order, from theta_1 to theta_2
  let status = left.loss <= limit && right.loss <= limit ? "" : "endpoint above L0", depth = 0;
  yield { step: "begin", segments, open, status: "", steps, depth };
  for (; status !== "endpoint above L0"; depth++) {
    const fresh = segments.filter((s) => !s.gamma);
    for (const s of fresh) Object.assign(s, tStar(L, s.left.theta, s.right.theta, n_t));
    open = fresh.filter((s) => (s.is_high = !(s.gamma_max <= limit)));
    status ||= !open.length ? "connected" : depth === max_depth ? "depth exhausted" : "";
    if (status) break;
    yield { step: "test", segments, open, status, steps, depth };
    for (const s of open) {
      const [x, y] = interpolate(s.left.theta, s.right.theta, s.t_star), angle = ANGLES[depth];
      const by = 0.01 * distance(s.left.theta, s.right.theta);
      const is_stationary = Math.hypot(...L.gradient([x, y])) * by <= 1e-6 * L.loss([x, y]);
      s.start = is_stationary ? [x + by * Math.cos(angle), y + by * Math.sin(angle)] : [x, y];
    }
    yield { step: "insert", segments, open, status, steps, depth: depth + 1 };
    for (const s of open) {
      s.bead = { ...descend(L, s.start, target, training), depth: depth + 1 };
      s.is_stuck = s.bead.status !== "reached";
      steps += s.bead.steps;
    }
    yield { step: "descend", segments, open, status, steps, depth: depth + 1 };
    if (open.some((s) => s.is_stuck)) status = "training stalled";
    // A segment whose bead failed stays as it is; the others are replaced by their halves.
    segments = segments.flatMap((s) => (!s.bead || s.is_stuck ? [s]
      : [{ left: s.left, right: s.bead }, { left: s.bead, right: s.right }]));
  }
  yield { step: "end", segments, open, status, steps, depth };
}

// What is known of a string: Eq. (4), beads, its length over that of the straight line.
function summary({ segments, status, steps }) {
  const networks = [segments[0].left, ...segments.map((s) => s.right)];
  const lengths = segments.map((s) => distance(s.left.theta, s.right.theta));
  const length = lengths.reduce((sum, v) => sum + v);
  const straight = distance(networks[0].theta, networks[lengths.length].theta);
  return { networks, lengths, length, status, n_beads: networks.length - 2, gradient_steps: steps,
    Gamma_tilde: Math.max(...segments.map((s) => s.grid_max ?? NaN)),
    normalized_length: straight > 0 ? length / straight : length > 0 ? Infinity : 1 };
}

const findString = (...problem) => summary([...search(...problem)].pop());
globalThis.DSS = { LANDSCAPES, interpolate, gamma, tStar, descend, search, summary, findString };
// ---------- drawing: level sets on a canvas, all else SVG, coloured by landscape.css
const show = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(3))) : v || "-");
const kindOf = (segment) => (!segment.gamma ? "untested" : segment.is_high ? "high" : "low");

// Axes of the size that the picture has on the page: how data become pixels, and marks.
function axes(svg, x, y, labels, log) {
  const { width: w, height: h } = svg.getBoundingClientRect(), f = log ? Math.log10 : Number;
  const [left, right, top, bottom] = [44, w - (log ? 34 : 14), 30, h - 40];
  const px = (v) => left + (v - x[0]) / (x[1] - x[0]) * (right - left);
  const py = (v) => bottom - (f(v) - f(y[0])) / (f(y[1]) - f(y[0])) * (bottom - top);
  const d = (line) => "M" + line.map(([u, v]) => [px(u).toFixed(1), py(v).toFixed(1)]).join("L");
  const path = (kind, points, more) => `<path class="dss-${kind}" d="${d(points)}" ${more ?? ""}/>`;
  const text = (say, u, v, kind) => `<text class="dss-${kind}" x="${u}" y="${v}">${say}</text>`;
  const mark = (kind, [u, v], more) =>
    `<use href="#dss-${kind}" x="${px(u)}" y="${py(v)}" ${more ?? ""}/>`;
  const ticks = ([low, high]) => [-4, -3, -2, -1, 0, 1, 2].filter((v) => v >= low && v <= high);
  const [along, up] = log ? [[0, 0.25, 0.5, 0.75, 1], ticks(y.map(f)).map((k) => 10 ** k)]
    : [ticks(x), ticks(y)];
  const own = [path("axis", [[x[0], y[1]], [x[0], y[0]], [x[1], y[0]]]),
    text(labels[0], (left + right) / 2, h - 6, "middle"), text(labels[1], 2, 16, "begin"),
    ...along.map((v) => text(v, px(v), bottom + 17, "middle")),
    ...up.map((v) => text(show(v), left - 6, py(v) + 4, "end"))].join("");
  svg.setAttribute("viewBox", `0 0 ${w} ${h}`);
  return { w, h, px, py, d, path, text, mark, own };
}

// The canvas behind the picture, where the loss is at most L0, and contours: marching squares.
function paintLevels(canvas, L, L0, on, n = 80) {
  const style = getComputedStyle(canvas), pen = canvas.getContext("2d"), scale = devicePixelRatio;
  const key = [L.ends, L0, on.w, on.h, scale, style.getPropertyValue("--dss-shade")].join();
  if (canvas.painted === (canvas.painted = key)) return; // it stays while points move
  [canvas.width, canvas.height] = [on.w * scale, on.h * scale];
  pen.scale(scale, scale);
  const grid = (...ij) => WINDOW.map(([low, high], k) => low + (high - low) * ij[k] / n);
  const contours = [0.1, 0.3, 1, 3, 10].map((v) => [v, "contour", 0.8]);
  for (const [level, kind, width] of [[L0, "shade", 1], ...contours, [L0, "edge", 1.6]]) {
    const parts = [];
    for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) {
      const corners = [grid(i, j), grid(i + 1, j), grid(i + 1, j + 1), grid(i, j + 1)];
      const height = corners.map((corner) => L.loss(corner) - level), shape = [], cuts = [];
      corners.forEach((corner, k) => {
        const next = (k + 1) % 4, t = height[k] / (height[k] - height[next]);
        if (height[k] <= 0) shape.push(corner);
        if ((height[k] <= 0) === (height[next] <= 0)) return;
        for (const list of [shape, cuts]) list.push(interpolate(corner, corners[next], t));
      });
      if (kind === "shade" && shape.length) parts.push(on.d(shape));
      else for (let k = 0; k < cuts.length; k += 2) parts.push(on.d(cuts.slice(k, k + 2)));
    }
    const path = new Path2D(parts.join(""));
    pen.fillStyle = pen.strokeStyle = style.getPropertyValue(`--dss-${kind}`);
    pen.lineWidth = width;
    if (kind === "shade") pen.fill(path);
    pen.stroke(path); // of shaded squares too, which would leave gaps
  }
}

function drawLandscape(svg, L, { L0, ends }, { step, segments, open }) {
  const on = axes(svg, ...WINDOW, ["first parameter θ⁽¹⁾", "second parameter θ⁽²⁾"]);
  paintLevels(svg.parentElement.firstElementChild, L, L0, on);
  const lines = segments.map((s) => on.path(kindOf(s), [s.left.theta, s.right.theta]));
  const beads = open.map((s) => (step === "insert" ? on.mark("dot", s.start)
    : step !== "descend" ? on.mark("star", interpolate(s.left.theta, s.right.theta, s.t_star))
      : on.path("descent", s.bead.path, 'pathLength="1"')
    + `<use class="dss-bead" href="#dss-dot" style="offset-path:path('${on.d(s.bead.path)}')"/>`));
  for (const s of segments) beads.push(on.mark("dot", s.left.theta), on.mark("dot", s.right.theta));
  const handles = ends.map((v, i) => on.mark("grip", v, `data-end="${i}"`)
    + on.text(["θ₁", "θ₂"][i], on.px(v[0]), on.py(v[1]) - 11, "name"));
  svg.innerHTML = [on.own, ...lines, ...beads, ...handles].join("");
  return on;
}

// The loss along the string against arc length, on a logarithmic axis.
function drawGamma(svg, L, { L0, alpha, ends }, { segments }) {
  const bottom = 10 ** Math.floor(Math.log10(alpha * L0 / 2));
  const { lengths, length } = summary({ segments }), top = Math.max(1, L0, ...gamma(L, ...ends));
  const on = axes(svg, [0, 1], [bottom, 2 * top], ["arc length (fraction)", "loss γ"], true);
  const level = (v, kind, name, dy) => on.text(name, on.px(1) + 7, on.py(v) + dy, "begin")
    + on.path(kind, [[0, v], [1, v]]);
  let begin = 0;
  const curves = segments.map((s, i) => {
    const from = begin, share = lengths[i] / length || 0;
    const at = (t, v) => [from + t * share, Math.max(v, bottom)];
    const curve = (s.gamma ?? gamma(L, s.left.theta, s.right.theta)).map((v, k) => at(k / 32, v));
    begin += share;
    return on.path(kindOf(s), curve) + on.mark("dot", curve[0]) + on.mark("dot", curve[32])
      + (s.is_high ? on.mark("star", at(s.t_star, s.gamma_max)) : "");
  });
  svg.innerHTML = [on.own, level(L0, "edge", "L₀", 0), level(alpha * L0, "target", "αL₀", 12),
    ...curves].join("");
}
// ---------- controls: first what is wrong with a number that was typed; nothing where it fits
function complaint(input) {
  const { value, min, max } = input, whole = input.step === "1" ? "whole " : "";
  const fits = value && +value >= min && +value <= max && (!whole || Number.isInteger(+value));
  input.setAttribute("aria-invalid", !fits);
  return fits ? "" : `${input.labels[0].textContent} is ${value || "no number"}; `
    + `a ${whole}number from ${min} to ${max} is needed.`;
}
function start() {
  const $ = (id) => document.getElementById(`dss-${id}`), svg = $("landscape");
  const inputs = ["x1", "y1", "x2", "y2", "L0", "alpha", "max_depth"].map($);
  let L, settings, problem, iterator, state, on, grabbed, timer;
  function report() {
    const found = summary(state), { open, depth } = state, { L0, alpha, ends } = settings;
    const list = (tell) => open.slice(0, 3).map(tell).join("; ") + (open.length > 3 ? "; ..." : "");
    const blanks = { depth, L0: show(L0), target: show(alpha * L0), n: open.length,
      losses: ends.map((v, i) => `θ${"₁₂"[i]} has loss ${show(L.loss(v))}`).join(", "),
      summits: list((s) => `t* = ${show(s.t_star)}, loss ${show(s.gamma_max)} > L0 = ${show(L0)}`),
      descents: list(({ bead: b }) =>
        b && `${b.status} after ${b.steps} steps at loss ${show(b.loss)}`),
    };
    const says = JSON.parse($("words").textContent)[state.status || state.step];
    on = drawLandscape(svg, L, settings, state);
    drawGamma($("gamma"), L, settings, state);
    svg.dispatchEvent(new CustomEvent("drawn", { detail: { L, L0, ends, on } }));
    $("says").textContent = problem || says.replace(/\{(\w+)\}/g, (_, name) => blanks[name]);
    for (const id of ["status", "n_beads", "normalized_length", "Gamma_tilde", "gradient_steps"])
      $(id).textContent = show(found[id] === "" ? "searching" : found[id]);
    $("string").innerHTML = found.networks.map((v, i) => {
      const s = state.segments[i], name = i === 0 ? "θ₁" : s ? i : "θ₂";
      const next = s?.gamma ? `${show(s.gamma_max)} ${s.is_high ? ">" : "≤"} L0` : s ? "-" : "";
      const cells = [...v.theta.map((x) => x.toFixed(3)), show(v.loss), v.depth, next];
      return `<tr><th scope="row">${name}</th><td>${cells.join("</td><td>")}</td></tr>`;
    }).join("");
  }
  const pause = () => { timer = clearTimeout(timer); $("run").textContent = "Run"; };
  function reset() {
    pause();
    problem = inputs.map(complaint).find(Boolean);
    const [x1, y1, x2, y2, L0, alpha, max_depth] = inputs.map((input) => +input.value);
    if (!problem) settings = { L0, alpha, max_depth, ends: [[x1, y1], [x2, y2]] };
    iterator = search(L, ...settings.ends, settings);
    state = iterator.next().value;
    report();
  }
  function step(goes_on) {
    pause();
    if (!problem) state = iterator.next().value ?? state;
    report();
    if (!goes_on || problem || state.step === "end") return;
    $("run").textContent = "Pause";
    timer = setTimeout(step, matchMedia("(prefers-reduced-motion)").matches ? 0 : 1100, true);
  }
  function load() {
    L = LANDSCAPES[$("choice").value];
    [...L.ends.flat(), L.L0, 0.5, 8].forEach((v, k) => { inputs[k].value = v; });
    reset();
  }
  const chosen = () => ($("move2").checked ? 1 : 0);
  const choose = (i) => { $(`move${+i + 1}`).checked = true; };
  function place(theta) { // a point stays in the window
    const [x, y] = WINDOW.map(([low, high], k) => Math.min(high, Math.max(low, theta[k])));
    [x, y].forEach((v, k) => { inputs[2 * chosen() + k].value = v.toFixed(2); });
    reset();
  }
  const pointed = ({ clientX, clientY }, { left, top } = svg.getBoundingClientRect()) => place(
    [[clientX - left, on.px], [clientY - top, on.py]].map(([v, p]) => (v - p(0)) / (p(1) - p(0))));
  svg.onpointerdown = (e) => { if ((grabbed = e.target.dataset.end)) choose(grabbed); };
  // The pointer is captured before the picture is drawn anew.
  svg.onpointermove = (e) => { if (grabbed) { svg.setPointerCapture(e.pointerId); pointed(e); } };
  globalThis.onpointerup = globalThis.onpointercancel = () => { grabbed = ""; }; // outside too
  svg.onclick = (e) => e.target.dataset.end || pointed(e);
  svg.onkeydown = (e) => {
    const k = ["ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp"].indexOf(e.key);
    const by = (e.shiftKey ? 0.25 : 0.05) * (k % 2 ? 1 : -1), [x, y] = settings.ends[chosen()];
    if (e.key === "1" || e.key === "2") choose(e.key - 1);
    if (k < 0 || e.altKey || e.ctrlKey || e.metaKey) return; // Alt and an arrow goes back
    e.preventDefault();
    place(k < 2 ? [x + by, y] : [x, y + by]);
  };
  $("form").oninput = ({ target }) => (target === $("choice") ? load() : reset());
  $("step").onclick = () => step(false);
  $("run").onclick = () => (timer ? pause() : step(true));
  $("reset").onclick = reset;
  load();
  new ResizeObserver(report).observe(svg);
  new MutationObserver(report).observe(document.documentElement, { attributes: true });
}
globalThis.document?.addEventListener("DOMContentLoaded", start); // once cloud.js listens
