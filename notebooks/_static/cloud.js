// A cloud of points on the landscapes of landscape.js: descent with noise of a temperature, as
// `dss.geometry.noise.cloud` has it.  First the numbers, without a page; then picture and controls.
"use strict";
const CLOUD = { n_points: 400, lr: 0.01, at_a_time: 20, near: 0.3, jump: 2000 };
// Mean loss over T where a cloud is at rest: in x and u = y - 1.5 cos x, which keep areas, the loss
// of the valley is quadratic.  The branches of the unit have no end, and no cloud rests on them.
const REST = { valley: 1, unit: NaN };

// Normal numbers, two at a time: sfc32, a generator of 32 bits, and the method of Box and Muller.
function normals(seed) {
  let [a, b, c, count] = [0, seed, 0, 1];
  const uniform = () => {
    const sum = (a + b + count++) | 0;
    [a, b, c] = [b ^ (b >>> 9), (c + (c << 3)) | 0, ((c << 21 | c >>> 11) + sum) | 0];
    return (sum >>> 0) / 2 ** 32;
  };
  for (let k = 0; k < 15; k++) uniform();
  return () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform();
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  };
}

// A cloud before its first step: all points at the first end.
const gather = (ends, seed) => ({ ends, steps: 0, draw: normals(seed),
  points: Array(CLOUD.n_points).fill(ends[0]), reached: Array(CLOUD.n_points).fill(false) });

// theta <- theta - lr gradient + sqrt(2 lr T) xi, for all points, and who comes near the other end.
function move(cloud, L, T, n_steps, lr = CLOUD.lr) {
  const width = Math.sqrt(2 * lr * T);
  for (let k = 0; k < n_steps; k++, cloud.steps++) {
    cloud.points = cloud.points.map((theta) => {
      const slope = L.gradient(theta), xi = cloud.draw();
      return theta.map((v, i) => v - lr * slope[i] + width * xi[i]);
    });
    cloud.points.forEach((theta, i) => {
      cloud.reached[i] ||= distance(theta, cloud.ends[1]) <= CLOUD.near;
    });
  }
  return cloud;
}

// What is known of a cloud: shares, and the mean loss with its standard error.
function measure({ points, reached, ends, steps }, L, L0) {
  const n = points.length, losses = points.map(L.loss);
  const sum = (list) => list.reduce((total, v) => total + v), mean = sum(losses) / n;
  const share = (is) => points.filter(is).length / n;
  return { steps, mean, error: Math.sqrt(sum(losses.map((v) => square(v - mean))) / (n - 1) / n),
    low: losses.filter((v) => v <= L0 * (1 + EPSILON)).length / n,
    across: share((v) => distance(v, ends[1]) < distance(v, ends[0])),
    reached: reached.filter(Boolean).length / n,
    inside: share((v) => WINDOW.every(([low, high], k) => v[k] >= low && v[k] <= high)) };
}
DSS.cloud = { CLOUD, REST, normals, gather, move, measure };
// ---------- picture and controls
function paintCloud(canvas, { points, ends, steps }, on) {
  const pen = canvas.getContext("2d"), scale = devicePixelRatio;
  [canvas.width, canvas.height] = [on.w * scale, on.h * scale]; // wipes it
  if (!steps) return;
  pen.scale(scale, scale);
  pen.fillStyle = pen.strokeStyle = getComputedStyle(canvas).getPropertyValue("--dss-cloud");
  const [[left, right], [low, high]] = WINDOW, [x, y] = ends[1], r = CLOUD.near;
  pen.beginPath();
  pen.rect(on.px(left), on.py(high), on.px(right) - on.px(left), on.py(low) - on.py(high));
  pen.clip();
  for (const [u, v] of points) pen.fillRect(on.px(u) - 1.5, on.py(v) - 1.5, 3, 3);
  pen.beginPath();
  pen.setLineDash([4, 3]);
  pen.ellipse(on.px(x), on.py(y), on.px(r) - on.px(0), on.py(0) - on.py(r), 0, 0, 2 * Math.PI);
  pen.stroke();
}

function startCloud() {
  const $ = (id) => document.getElementById(`dss-cloud-${id}`);
  const svg = document.getElementById("dss-landscape"), canvas = svg.previousElementSibling;
  const percent = (v) => `${(100 * v).toFixed(v > 0 && v < 0.1 ? 1 : 0)} %`;
  let place, cloud, timer = 0;
  const name = () => Object.keys(DSS.LANDSCAPES).find((key) => DSS.LANDSCAPES[key] === place.L);
  function report() {
    const T = +$("T").value, { L, L0, on } = place, found = measure(cloud, L, L0);
    const rests = T > 0 && REST[name()], none = T > 0 ? "never at rest" : "noise is off";
    paintCloud(canvas, cloud, on);
    $("T-is").textContent = T.toFixed(2);
    if (timer && cloud.steps % (10 * CLOUD.at_a_time)) return; // too fast to be read
    const facts = { steps: cloud.steps,
      mean: `${show(found.mean)} ± ${Number(found.error.toPrecision(1))}`,
      rest: rests ? show(rests * T) : none, low: percent(found.low),
      low_rest: rests ? percent(1 - Math.exp(-L0 / T)) : none, across: percent(found.across),
      reached: percent(found.reached), inside: percent(found.inside) };
    for (const [key, value] of Object.entries(facts)) $(key).textContent = value;
    return facts;
  }
  function pause(says) {
    timer = cancelAnimationFrame(timer) ?? 0;
    $("run").textContent = "Run";
    const { steps, mean, reached } = report();
    $("says").textContent = says || complaint($("seed")) || (steps
      ? `After ${steps} steps: mean loss ${mean}; ${reached} have come to θ₂.`
      : `${CLOUD.n_points} points at θ₁.`);
  }
  function reset() {
    const seed = complaint($("seed")) ? 0 : +$("seed").value;
    cloud = gather(place.ends, seed);
    pause();
  }
  function step(n_steps) {
    if (complaint($("seed"))) return false;
    move(cloud, place.L, +$("T").value, n_steps);
    if (cloud.points.flat().every(Number.isFinite)) return true;
    pause(`A point is no longer finite: a step of ${CLOUD.lr} is too large where it was.`);
    return false;
  }
  function run() {
    if (!step(CLOUD.at_a_time)) return;
    $("run").textContent = "Pause";
    timer = requestAnimationFrame(run);
    report();
  }
  svg.addEventListener("drawn", ({ detail }) => { // points moved, or the picture alone
    const is_new = !cloud || detail.L !== place.L || `${detail.ends}` !== `${place.ends}`;
    place = detail;
    return is_new ? reset() : report();
  });
  $("form").oninput = ({ target }) => (target === $("seed") ? reset() : report());
  $("step").onclick = () => { if (step(CLOUD.at_a_time)) pause(); };
  $("run").onclick = () => {
    if (timer) pause();
    else if (!matchMedia("(prefers-reduced-motion)").matches) run();
    else if (step(CLOUD.jump)) pause();
  };
  $("reset").onclick = reset;
}
if (globalThis.document?.getElementById("dss-cloud-form")) startCloud();
