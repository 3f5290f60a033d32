"use strict";
// Turns the object: one view at a time, chosen by clock, slider, keys, a drag, or a click on a view or a camera.
// The first `aside` views are inputs that are not on the ring: they are listed and drawn only.
const { views, aside } = JSON.parse(document.getElementById("data").textContent);
const [stage, slider, play, where, scene] = ["stage", "slider", "play", "where", "scene"].map((id) => document.getElementById(id));
const buttons = [...document.querySelectorAll(".views button")];
const turning = [...document.querySelectorAll(".turn img")];
const radians = Math.PI / 180;
const count = views.length - aside;
let at = 0, timer = 0, held = null;

function show(place) {
  at = (place + count) % count;
  const view = views[aside + at], pictures = buttons[aside + at].querySelectorAll("img");
  turning.forEach((img, row) => {
    const from = pictures[Math.min(row, pictures.length - 1)]; // an input view has one
    img.src = from.src;
    img.alt = from.alt;
  });
  for (const button of buttons) button.removeAttribute("aria-current");
  buttons[aside + at].setAttribute("aria-current", "true");
  slider.value = at;
  slider.setAttribute("aria-valuetext", view.said);
  where.textContent = view.label;
  where.classList.toggle("input", view.input);
  draw(view);
}

// The cameras and what they look at, seen from above and beside the current one. The farthest stands at distance 1.
function draw(current) {
  const azimuth = (current.azimuth + 35) * radians, height = 28 * radians;
  const [cos, sin, low, high] = [Math.cos(azimuth), Math.sin(azimuth), Math.cos(height), Math.sin(height)];
  const depth = ([x, y, z]) => 3.4 - low * (cos * x + sin * y) - high * z;
  const spot = (p) => {
    const [x, y, z] = p, zoom = 2.7 / depth(p);
    return [zoom * (cos * y - sin * x), zoom * (high * (cos * x + sin * y) - low * z)].map((n) => n.toFixed(3)).join(" ");
  };
  const line = (points, end = "") => "M" + points.map(spot).join("L") + end;
  const circle = Array.from({ length: 60 }, (_, i) => [Math.cos(i * 6 * radians), Math.sin(i * 6 * radians), 0]);
  const axes = { x: [0.3, 0, 0], y: [0, 0.3, 0], z: [0, 0, 0.3] };
  const parts = [`<path class="ground" d="${line(circle, "Z")}"/>`];
  for (const [name, tip] of Object.entries(axes)) {
    const [x, y] = spot(tip.map((n) => 1.25 * n)).split(" ");
    parts.push(`<path class="axis" d="${line([[0, 0, 0], tip])}"/><text x="${x}" y="${y}" text-anchor="middle">${name}</text>`);
  }
  const cameras = views.map(({ corners, input }, index) => ({ corners, input, index })).sort((a, b) => depth(b.corners[0]) - depth(a.corners[0]));
  for (const { corners: [eye, a, b, c, d], index, input } of cameras) {
    const kind = `camera${input ? " input" : ""}${index === aside + at ? " now" : ""}`;
    parts.push(`<path class="${kind}" data-view="${index}" d="${line([eye, a, b], "Z") + line([eye, c, d], "Z") + line([a, b, c, d], "Z")}"/>`);
  }
  scene.innerHTML = parts.join("");
}

function nearest(azimuth, elevation) {
  const heights = views.slice(aside).map((view) => view.elevation);
  const height = Math.min(Math.max(elevation, Math.min(...heights)), Math.max(...heights)) * radians;
  const closeness = views.slice(aside).map((view) => {
    const other = view.elevation * radians;
    return Math.sin(height) * Math.sin(other) + Math.cos(height) * Math.cos(other) * Math.cos((view.azimuth - azimuth) * radians);
  });
  return closeness.indexOf(Math.max(...closeness));
}

function setPlaying(playing) {
  clearInterval(timer);
  timer = playing ? setInterval(() => show(at + 1), Math.max(80, 5000 / count)) : 0;
  play.textContent = playing ? "❚❚" : "▶";
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
}

function choose(index) {
  if (index >= aside) {
    setPlaying(false);
    show(index - aside);
  }
}

slider.addEventListener("input", () => { setPlaying(false); show(Number(slider.value)); });
play.addEventListener("click", () => setPlaying(!timer));
buttons.forEach((button, index) => button.addEventListener("click", () => choose(index)));
scene.addEventListener("click", (event) => choose(Number(event.target.dataset.view)));
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.target === slider || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  setPlaying(false);
  show(at + step);
});
stage.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.target.closest(".turn")) return;
  setPlaying(false);
  stage.setPointerCapture(event.pointerId);
  held = { ...views[aside + at], x: event.clientX, y: event.clientY };
});
stage.addEventListener("pointermove", (event) => {
  if (held) show(nearest(held.azimuth - 0.6 * (event.clientX - held.x), held.elevation + 0.6 * (event.clientY - held.y)));
});
for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { held = null; });
show(0);
setPlaying(count > 1 && !matchMedia("(prefers-reduced-motion: reduce)").matches);
