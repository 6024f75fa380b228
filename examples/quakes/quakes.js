// The page: follows `quakes.**` with EventSource, keeps the books, and shows them.
//
// EventSource does the work: it reconnects by itself and presents the id of what it saw last, and the server goes on
// from there. What this file adds is the proof: it counts what came, what came twice, and what came out of order.
// Drawing is in draw.js and knows nothing of the stream.

import { Chart, depth, depthColour, WorldMap } from './draw.js';

const LISTED = 60; // rows in the list of the latest: more than fit, few enough to be cheap
const SECOND_TRY_MS = 3000; // after an answer that ends an EventSource for good (anything but 200), it is made anew

const server = (new URLSearchParams(location.search).get('server') ?? `http://${location.hostname}:4242`).replace(/\/+$/, '');

/** The books; the tests read them. `ids` are the log's ids in order of arrival, `keys` the quakes' own. */
const books = {
  ids: [], keys: [], received: 0, distinct: 0, duplicates: 0, disorder: 0, gaps: [], reconnects: 0,
  state: 'connecting', cursor: '', log: null, tail: 0,
};
window.quakes = books;

const el = (id) => document.getElementById(id);
const map = new WorldMap(el('map'));
const chart = new Chart(el('chart'));
let seenIds = new Set();
let seenKeys = new Set();
let fresh = []; // arrived since the last frame
let frame = 0;

// ---- the stream

function follow() {
  const url = new URL('/events', server);
  url.searchParams.set('topic', 'quakes.**');
  if (books.cursor === '') url.searchParams.set('from', 'earliest');
  else url.searchParams.set('last_event_id', books.cursor);
  el('url').textContent = decodeURIComponent(url.href);

  const source = new EventSource(url);
  let opened = false;
  const on = (type, act) => source.addEventListener(type, (e) => {
    books.cursor = e.lastEventId;
    act(e);
    refresh();
  });
  source.onopen = () => {
    if (opened) books.reconnects += 1;
    opened = true;
    show('catching up');
  };
  on('quake', (e) => enter(Number(e.lastEventId), JSON.parse(e.data)));
  on('tidelog.live', (e) => {
    const live = JSON.parse(e.data);
    if (books.log !== null && books.log !== live.log) {
      source.close();
      startOver();
      return;
    }
    books.log = live.log;
    books.tail = live.tail;
    show('live');
  });
  on('tidelog.gap', (e) => {
    const gap = JSON.parse(e.data);
    if (gap.reason === 'ahead') forget(); // another log: the server goes on from its beginning
    books.gaps.push(gap);
  });
  source.onerror = () => {
    if (source.readyState === EventSource.CONNECTING) {
      show('reconnecting');
      return;
    }
    show('refused');
    setTimeout(() => {
      books.reconnects += 1;
      follow();
    }, SECOND_TRY_MS);
  };
}

function enter(id, quake) {
  if (books.ids.length > 0 && id <= books.ids[books.ids.length - 1]) books.disorder += 1;
  books.ids.push(id);
  books.keys.push(quake.id);
  books.received += 1;
  const again = seenIds.has(id) || seenKeys.has(quake.id);
  seenIds.add(id);
  seenKeys.add(quake.id);
  books.distinct = seenKeys.size;
  if (again) {
    books.duplicates += 1;
    return;
  }
  fresh.push(quake);
}

/** What was received belongs to a log that is no more. */
function forget() {
  Object.assign(books, { ids: [], keys: [], received: 0, distinct: 0, duplicates: 0, disorder: 0, gaps: [], log: null, tail: 0 });
  seenIds = new Set();
  seenKeys = new Set();
  fresh = [];
  map.clear();
  chart.clear();
  el('list').replaceChildren();
}

function startOver() {
  forget();
  books.cursor = '';
  follow();
}

// ---- what is shown

function show(state) {
  books.state = state;
  refresh();
}

/** Everything that came since the last frame is shown in the next one. A hidden page gets no frames, but keeps its books. */
function refresh() {
  if (frame === 0) frame = requestAnimationFrame(paint);
}

function paint() {
  frame = 0;
  const arrived = fresh;
  fresh = [];
  if (arrived.length > 0) {
    map.add(arrived);
    chart.add(arrived);
    list(arrived);
    const newest = new Date(arrived[arrived.length - 1].time);
    el('clock').innerHTML = `<small>${day(newest)}</small>${newest.toISOString().slice(11, 19)} <small>UTC</small>`;
    el('span').textContent = chart.span();
  }
  el('state').dataset.state = books.state;
  el('state').lastElementChild.textContent = books.state;
  count('received', books.received);
  count('distinct', books.distinct);
  count('duplicates', books.duplicates, true);
  count('gaps', books.gaps.length, true);
  count('reconnects', books.reconnects);
  el('last').textContent = books.ids.length > 0 ? books.ids[books.ids.length - 1].toLocaleString('en') : '–';
  const sound = books.duplicates === 0 && books.disorder === 0 && books.gaps.length === 0;
  el('verdict').textContent = books.received === 0 ? '' : sound ? '✓ each once, in order' : '✗ not each once, in order';
  el('verdict').classList.toggle('bad', !sound);
  el('empty').hidden = books.received > 0;
}

function count(id, n, wantsZero = false) {
  el(id).textContent = n.toLocaleString('en');
  if (wantsZero) el(id).className = n === 0 ? 'zero' : 'some';
}

function list(quakes) {
  const rows = quakes.slice(-LISTED).reverse().map((quake) => {
    const row = document.createElement('li');
    row.innerHTML = '<span class="mag"></span><div><div class="where"></div><div class="what"></div></div><time></time>';
    const at = new Date(quake.time);
    row.querySelector('.mag').textContent = quake.mag.toFixed(1);
    row.querySelector('.mag').style.setProperty('--tone', `var(--${depthColour(quake.depth_km)})`);
    row.querySelector('.where').textContent = row.title = quake.place;
    row.querySelector('.what').textContent =
      `${depth(quake.depth_km)} · ${quake.net}${quake.type === 'earthquake' ? '' : ` · ${quake.type}`}`;
    row.querySelector('time').innerHTML = `${at.toISOString().slice(11, 19)}<br>${day(at)}`;
    row.addEventListener('pointerenter', () => map.point(quake));
    row.addEventListener('pointerleave', () => map.point(null));
    return row;
  });
  const ol = el('list');
  ol.prepend(...rows);
  while (ol.children.length > LISTED) ol.lastElementChild.remove();
}

function day(date) {
  return date.toLocaleDateString('en-GB', { day: 'numeric', month: 'short', timeZone: 'UTC' });
}

for (const button of document.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => {
    for (const other of document.querySelectorAll('[data-view]')) other.setAttribute('aria-pressed', String(other === button));
    map.look(button.dataset.view);
  });
}
follow();
