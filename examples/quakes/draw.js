// The two drawings: a map with three layers (the world, the quakes, what just happened) and a chart.
//
// A layer is drawn again only when what it shows has changed. Both keep at most KEEP quakes. They know nothing of the stream.

import { CENTRE, COAST } from './coast.js';

const KEEP = 10000; // several weeks of quakes; more would be drawn over one another
const FADE_MS = 20 * 3600e3; // by the quakes' own clock: what is a day old is faint
const PULSE_MS = 1500;
const PULSES = 40; // more at once is a catch-up, and would only flicker
const REACH = 16; // CSS pixels from the pointer within which a quake is named
const still = matchMedia('(prefers-reduced-motion: reduce)');

const rad = Math.PI / 180;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
/** The name of the colour of a depth, as in the legend. */
export const depthColour = (km) => (km < 10 ? 'd0' : km < 70 ? 'd1' : km < 300 ? 'd2' : 'd3');
/** In words; what lies above sea level has a negative depth. */
export const depth = (km) => (km < 0 ? 'at the surface' : `${km.toFixed(1)} km deep`);
const radius = (mag) => 1.3 + 0.5 * 1.85 ** Math.max(0, mag);

/** Longitude east of CENTRE, -180 to 180. */
const east = (lon) => ((lon - CENTRE + 540) % 360 + 360) % 360 - 180;

/** Equal Earth (Šavrič, Patterson, Jenny 2018): areas are true, and the Pacific is not torn. About ±2.71 by ±1.32. */
function equalEarth(x, lat) {
  const t = Math.asin(Math.sqrt(3) / 2 * Math.sin(lat * rad));
  const t2 = t * t;
  const t6 = t2 * t2 * t2;
  const slope = 1.340264 - 3 * 0.081106 * t2 + t6 * (7 * 0.000893 + 9 * 0.003796 * t2);
  return [2 * Math.sqrt(3) * x * rad * Math.cos(t) / (3 * slope), t * (1.340264 - 0.081106 * t2 + t6 * (0.000893 + 0.003796 * t2))];
}

/** Lambert's conformal conic with two standard parallels, for a continent. */
function conic(lon0, lat1, lat2) {
  const tan = (lat) => Math.tan(Math.PI / 4 + Math.max(-80, lat) * rad / 2);
  const n = Math.log(Math.cos(lat1 * rad) / Math.cos(lat2 * rad)) / Math.log(tan(lat2) / tan(lat1));
  const f = Math.cos(lat1 * rad) * tan(lat1) ** n / n;
  return (x, lat) => {
    const r = f / tan(lat) ** n;
    const a = n * (((x + CENTRE - lon0 + 540) % 360 + 360) % 360 - 180) * rad;
    return [r * Math.sin(a), -r * Math.cos(a)];
  };
}

const VIEWS = {
  world: { project: equalEarth, globe: true, fit: [[-180, 0], [180, 0], [0, 90], [0, -90]], step: 30, scale: 1 },
  america: {
    project: conic(-118, 30, 60), globe: false, fit: [[east(-168), 53], [east(-152), 70], [east(-122), 25], [east(-78), 27], [east(-62), 46]],
    step: 10, scale: 1.35,
  },
};

/** A canvas of its box's size, in device pixels; its context measures in CSS pixels. */
function sized(canvas, box) {
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  const [w, h] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const ctx = canvas.getContext('2d');
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, box.width, box.height);
  return ctx;
}

/** What both drawings share: a box, the quakes, a tooltip for the one under the pointer, and when to draw again. */
class Drawing {
  constructor(box) {
    this.box = box;
    this.canvases = [...box.querySelectorAll('canvas')];
    this.tip = box.querySelector('.tip');
    this.quakes = [];
    new ResizeObserver(() => this.redraw()).observe(box);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.redraw());
    box.addEventListener('pointermove', (e) => this.hover(e));
    box.addEventListener('pointerdown', (e) => this.hover(e));
    box.addEventListener('pointerleave', () => this.name(null));
  }

  add(quakes) {
    this.quakes.push(...quakes);
    if (this.quakes.length > KEEP) this.quakes.splice(0, this.quakes.length - KEEP);
    this.draw();
  }

  clear() {
    this.quakes = [];
    this.name(null);
    this.draw();
  }

  get size() {
    return { width: this.box.clientWidth, height: this.box.clientHeight };
  }

  hover(e) {
    const box = this.box.getBoundingClientRect();
    const [px, py] = [e.clientX - box.left, e.clientY - box.top];
    let best = null;
    let distance = REACH;
    for (const quake of this.quakes) {
      const [x, y] = this.place(quake);
      const d = Math.hypot(x - px, y - py);
      if (d <= distance) [best, distance] = [quake, d];
    }
    this.name(best);
  }

  /** Shows whose mark it is; null hides. */
  name(quake) {
    this.tip.hidden = quake === null;
    if (quake === null) return;
    const lines = [document.createElement('b'), document.createElement('span')];
    lines[0].textContent = `M ${quake.mag.toFixed(1)} · ${quake.place}`;
    lines[1].textContent = `${new Date(quake.time).toISOString().slice(0, 19).replace('T', ' ')} UTC · ${depth(quake.depth_km)}`;
    this.tip.replaceChildren(...lines);
    const [x, y] = this.place(quake);
    const { width, height } = this.size;
    const [w, h] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const left = Math.max(4, Math.min(width - w - 4, x - w / 2));
    const top = y > h + 14 ? y - h - 10 : Math.min(height - h - 4, y + 12);
    this.tip.style.transform = `translate(${left}px, ${top}px)`;
  }
}

export class WorldMap extends Drawing {
  constructor(box) {
    super(box);
    this.view = VIEWS.world;
    this.pulses = [];
    this.ticking = false;
  }

  look(view) {
    this.view = VIEWS[view];
    this.name(null);
    this.redraw();
  }

  add(quakes) {
    super.add(quakes);
    if (still.matches || document.hidden || quakes.length > PULSES) return;
    const since = performance.now();
    this.pulses.push(...quakes.map((quake) => ({ quake, since })));
    this.pulses.splice(0, this.pulses.length - PULSES);
    this.tick();
  }

  point(quake) {
    this.name(quake);
  }

  /** Fits the view's corners into the box, with a little room around. */
  measure() {
    const { width, height } = this.size;
    const points = this.view.fit.map(([x, y]) => this.view.project(x, y));
    const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
    const [left, right, bottom, top] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    this.zoom = Math.min((width - 6) / (right - left), (height - 6) / (top - bottom));
    this.origin = [width / 2 - this.zoom * (left + right) / 2, height / 2 + this.zoom * (top + bottom) / 2];
    this.unit = Math.max(0.62, Math.min(1.15, width / 950)) * this.view.scale;
  }

  at(x, lat) {
    const [px, py] = this.view.project(x, lat);
    return [this.origin[0] + px * this.zoom, this.origin[1] - py * this.zoom];
  }

  place(quake) {
    return this.at(east(quake.lon), quake.lat);
  }

  redraw() {
    this.measure();
    this.drawWorld();
    this.draw();
    this.legend();
  }

  drawWorld() {
    const ctx = sized(this.canvases[0], this.size);
    ctx.lineJoin = 'round';
    ctx.save();
    const edge = new Path2D();
    if (this.view.globe) {
      for (let lat = -90; lat <= 90; lat += 3) edge.lineTo(...this.at(-180, lat));
      for (let lat = 90; lat >= -90; lat -= 3) edge.lineTo(...this.at(180, lat));
      edge.closePath();
    } else {
      edge.rect(0, 0, this.size.width, this.size.height);
    }
    ctx.fillStyle = colour('sea');
    ctx.fill(edge);
    ctx.clip(edge);
    this.graticule(ctx);
    const land = new Path2D();
    for (const ring of COAST) this.trace(land, ring);
    ctx.fillStyle = colour('land');
    ctx.strokeStyle = colour('shore');
    ctx.lineWidth = 0.7;
    ctx.fill(land);
    ctx.stroke(land);
    ctx.restore();
    ctx.strokeStyle = colour('shore');
    ctx.lineWidth = 1;
    if (this.view.globe) ctx.stroke(edge);
  }

  /** One polygon; outside the globe view what lies on the far side is left out. */
  trace(path, ring) {
    if (!this.view.globe && ring.every(([x, lat]) => lat < 5 || Math.abs(((x + CENTRE + 118 + 540) % 360 + 360) % 360 - 180) > 100)) return;
    ring.forEach(([x, lat], i) => {
      const [px, py] = this.at(x, Math.max(lat, -89.9));
      if (i === 0) path.moveTo(px, py);
      else path.lineTo(px, py);
    });
    path.closePath();
  }

  graticule(ctx) {
    ctx.strokeStyle = colour('grid');
    ctx.lineWidth = 1;
    ctx.beginPath();
    const south = this.view.globe ? -90 : 0;
    for (let lon = 0; lon < 360; lon += this.view.step) {
      for (let lat = south; lat <= 90; lat += 3) ctx[lat === south ? 'moveTo' : 'lineTo'](...this.at(east(lon), Math.min(lat, 89.9)));
    }
    for (let lat = south; lat < 90; lat += this.view.step) {
      for (let x = -180; x <= 180; x += 3) {
        const far = !this.view.globe && Math.abs(((x + CENTRE + 118 + 540) % 360 + 360) % 360 - 180) > 110;
        ctx[x === -180 || far ? 'moveTo' : 'lineTo'](...this.at(x, lat));
      }
    }
    ctx.stroke();
  }

  draw() {
    if (this.zoom === undefined) this.measure();
    const ctx = sized(this.canvases[1], this.size);
    const now = this.quakes.length > 0 ? this.quakes[this.quakes.length - 1].time : 0;
    const tones = { d0: colour('d0'), d1: colour('d1'), d2: colour('d2'), d3: colour('d3') };
    ctx.lineWidth = 1;
    for (const quake of this.quakes) {
      const [x, y] = this.place(quake);
      const young = Math.exp(-(now - quake.time) / FADE_MS);
      const tone = tones[depthColour(quake.depth_km)];
      ctx.fillStyle = ctx.strokeStyle = tone;
      ctx.beginPath();
      ctx.arc(x, y, radius(quake.mag) * this.unit, 0, 2 * Math.PI);
      ctx.globalAlpha = 0.1 + 0.4 * young;
      ctx.fill();
      ctx.globalAlpha = 0.28 + 0.6 * young;
      ctx.stroke();
    }
    ctx.globalAlpha = 1;
  }

  /** Rings that spread from what has just come, for as long as there are any. */
  tick() {
    if (this.ticking) return;
    this.ticking = true;
    const step = () => {
      const ctx = sized(this.canvases[2], this.size);
      const now = performance.now();
      this.pulses = this.pulses.filter((pulse) => now - pulse.since < PULSE_MS);
      for (const { quake, since } of this.pulses) {
        const t = (now - since) / PULSE_MS;
        const grown = 1 - (1 - t) ** 3;
        ctx.beginPath();
        ctx.arc(...this.place(quake), (radius(quake.mag) + 4 + (10 + 3 * Math.max(0, quake.mag)) * grown) * this.unit, 0, 2 * Math.PI);
        ctx.globalAlpha = 0.9 * (1 - t) ** 1.5;
        ctx.lineWidth = 1.8;
        ctx.strokeStyle = colour(depthColour(quake.depth_km));
        ctx.stroke();
      }
      this.ticking = this.pulses.length > 0;
      if (this.ticking) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  legend() {
    const marks = [1, 3, 5].map((mag) => {
      const span = document.createElement('span');
      const dot = document.createElement('i');
      dot.style.width = dot.style.height = `${(2 * radius(mag) * this.unit / this.view.scale).toFixed(1)}px`;
      span.append(dot, String(mag));
      return span;
    });
    document.getElementById('sizes').replaceChildren(...marks);
  }
}

const DAY = 86400e3;
const PAD = { left: 26, right: 10, top: 12, bottom: 20 };
const LOW = -1.2;
const HIGH = 7;

export class Chart extends Drawing {
  /** The first and last instant of the axis: at least a day, so that the first quakes do not leap about. */
  get range() {
    const first = this.quakes[0]?.time ?? 0;
    const last = this.quakes[this.quakes.length - 1]?.time ?? 0;
    return [first, Math.max(first + DAY, last + (last - first) / 60)];
  }

  /** In words, how much time is shown. */
  span() {
    if (this.quakes.length === 0) return '';
    const hours = (this.quakes[this.quakes.length - 1].time - this.quakes[0].time) / 3600e3;
    return hours < 48 ? `${hours.toFixed(0)} h` : `${(hours / 24).toFixed(1)} days`;
  }

  across(time) {
    const [first, last] = this.range;
    return PAD.left + (time - first) / (last - first) * (this.size.width - PAD.left - PAD.right);
  }

  up(mag) {
    const { height } = this.size;
    return height - PAD.bottom - (mag - LOW) / (HIGH - LOW) * (height - PAD.top - PAD.bottom);
  }

  place(quake) {
    return [this.across(quake.time), this.up(quake.mag)];
  }

  redraw() {
    this.draw();
  }

  draw() {
    const ctx = sized(this.canvases[0], this.size);
    ctx.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    this.axes(ctx);
    const tones = { d0: colour('d0'), d1: colour('d1'), d2: colour('d2'), d3: colour('d3') };
    for (const quake of this.quakes) {
      ctx.fillStyle = tones[depthColour(quake.depth_km)];
      ctx.globalAlpha = Math.min(0.95, 0.42 + 0.1 * Math.max(0, quake.mag));
      ctx.beginPath();
      ctx.arc(...this.place(quake), 1.3 + 0.34 * Math.max(0, quake.mag), 0, 2 * Math.PI);
      ctx.fill();
    }
    ctx.globalAlpha = 1;
    this.largest(ctx);
  }

  axes(ctx) {
    const { width, height } = this.size;
    ctx.strokeStyle = colour('line');
    ctx.fillStyle = colour('soft');
    ctx.lineWidth = 1;
    ctx.textAlign = 'right';
    ctx.textBaseline = 'middle';
    ctx.beginPath();
    for (let mag = 0; mag <= 6; mag += 2) {
      const y = Math.round(this.up(mag)) + 0.5;
      ctx.moveTo(PAD.left, y);
      ctx.lineTo(width - PAD.right, y);
      ctx.fillText(String(mag), PAD.left - 8, y);
    }
    ctx.stroke();
    if (this.quakes.length === 0) return;
    const [first, last] = this.range;
    const days = (last - first) / DAY;
    const step = days < 2.5 ? DAY / 4 : days * 62 > width ? 2 * DAY : DAY;
    ctx.textAlign = 'center';
    ctx.textBaseline = 'alphabetic';
    for (let t = Math.ceil(first / step) * step; t <= last; t += step) {
      const x = Math.round(this.across(t)) + 0.5;
      if (x < PAD.left + 18 || x > width - PAD.right - 18) continue;
      ctx.beginPath();
      ctx.moveTo(x, height - PAD.bottom);
      ctx.lineTo(x, height - PAD.bottom + 4);
      ctx.stroke();
      const date = new Date(t);
      const words = t % DAY === 0 ? date.toLocaleDateString('en-GB', { day: 'numeric', month: 'short', timeZone: 'UTC' }) : date.toISOString().slice(11, 16);
      ctx.fillText(words, x, height - 5);
    }
  }

  /** Names the largest quake of all, where its name fits. */
  largest(ctx) {
    if (this.quakes.length === 0) return;
    const quake = this.quakes.reduce((a, b) => (b.mag > a.mag ? b : a));
    if (quake.mag < 5) return;
    const [x, y] = this.place(quake);
    const words = `${quake.mag.toFixed(1)}  ${quake.place.replace(/^.* of /, '')}`;
    const wide = ctx.measureText(words).width;
    const leftward = x + wide + 14 > this.size.width;
    ctx.textAlign = leftward ? 'right' : 'left';
    ctx.textBaseline = 'middle';
    ctx.fillStyle = colour('ink');
    ctx.strokeStyle = colour('card'); // a halo, so that dots and lines do not cross the words
    ctx.lineWidth = 4;
    ctx.lineJoin = 'round';
    ctx.strokeText(words, x + (leftward ? -9 : 9), y);
    ctx.fillText(words, x + (leftward ? -9 : 9), y);
  }
}
