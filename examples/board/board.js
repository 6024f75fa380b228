// The page: loads the state, subscribes from exactly there, and takes what is newer than what it has.
//
// What holds: nothing is lost between the state and the stream, since the state says the id N from which to follow it. What was
// changed while the state was being read is in both, and is taken once, by its version. After that EventSource
// does the work: it reconnects by itself and goes on after the last id that it saw.

const TRY_AGAIN_MS = 1000; // from a failed load to the next
const STAGES = ['todo', 'doing', 'done'];

const items = new Map(); // by id. Deleted ones too: an event that is older than the deletion must not bring them back
let source = null;

/**
 * The books; the tests read them. `loaded` is the version of each item in the state that was read. Every change makes a version one
 * greater: so when each change was applied once and none was left out, `applied` is what the versions have `grown` by.
 */
const books = { state: 'loading', from: 0, last: 0, loaded: {}, applied: 0, grown: 0, known: 0, loads: 0, gaps: 0 };
window.board = books;

const el = (id) => document.getElementById(id);

// ---- in sync

async function load() {
  source?.close();
  show('loading');
  try {
    const answer = await fetch('board', { cache: 'no-store' });
    const state = await answer.json();
    if (!answer.ok) throw new Error(state.error);
    enter(state);
    follow(state);
  } catch {
    show('away');
    setTimeout(load, TRY_AGAIN_MS);
  }
}

/** The state takes the place of whatever was there. */
function enter(state) {
  for (const id of items.keys()) document.getElementById(`item-${id}`)?.remove();
  items.clear();
  for (const item of state.items) items.set(item.id, item);
  Object.assign(books, { from: state.last_event_id, last: state.last_event_id, applied: 0, grown: 0, known: 0 });
  books.loaded = Object.fromEntries(state.items.map(({ id, version }) => [id, version]));
  books.loads += 1;
  for (const item of items.values()) paint(item);
}

function follow({ stream, last_event_id, log }) {
  source = new EventSource(`${stream}?last_event_id=${last_event_id}`);
  source.onmessage = (e) => {
    apply(JSON.parse(e.data));
    books.last = Number(e.lastEventId);
    tally();
  };
  source.addEventListener('tidelog.live', (e) => {
    if (JSON.parse(e.data).log === log) show('live');
    else load(); // another log: ours was replaced, and its ids mean nothing here
  });
  // Some of what we asked for is no longer in the log (a page that slept for long, a short retention): so the state is read anew.
  source.addEventListener('tidelog.gap', () => {
    books.gaps += 1;
    load();
  });
  source.onerror = () => {
    if (source.readyState === EventSource.CONNECTING) {
      show('reconnecting'); // by itself, from the last id
    } else {
      show('away'); // it was refused, and EventSource gives up then
      setTimeout(load, TRY_AGAIN_MS);
    }
  };
}

/**
 * The rule that makes it exact: an item is taken only when it is newer than the one we have. An older one, or the same, was already
 * in the state: it was published after N, but before the database was read.
 */
function apply(item) {
  const version = items.get(item.id)?.version ?? 0;
  if (item.version <= version) {
    books.known += 1;
    return;
  }
  items.set(item.id, item);
  books.applied += 1;
  books.grown += item.version - version;
  paint(item);
}

// ---- changes: sent to the server, and seen when they come back as events, like everybody else's

async function send(method, path, body) {
  el('trouble').textContent = '';
  try {
    const answer = await fetch(path, { method, headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
    if (!answer.ok) throw new Error((await answer.json()).error);
    return true;
  } catch (error) {
    el('trouble').textContent = `Not changed: ${error.message}`;
    return false;
  }
}

el('add').addEventListener('submit', async (e) => {
  e.preventDefault();
  const field = e.target.elements.text;
  if (await send('POST', 'items', { text: field.value })) field.value = '';
});

function create(item) {
  const card = el('card').content.firstElementChild.cloneNode(true);
  card.id = `item-${item.id}`;
  card.dataset.item = item.id;
  const path = `items/${item.id}`;
  const text = card.querySelector('.text');
  text.addEventListener('change', () => send('PATCH', path, { text: text.value }));
  text.addEventListener('blur', () => (text.value = items.get(item.id)?.text ?? ''));
  text.addEventListener('keydown', (e) => e.key === 'Enter' && text.blur());
  card.addEventListener('click', (e) => {
    const act = e.target.dataset.act;
    const stage = STAGES.indexOf(items.get(item.id).stage);
    if (act === 'delete') send('DELETE', path);
    if (act === 'back') send('PATCH', path, { stage: STAGES[stage - 1] });
    if (act === 'on') send('PATCH', path, { stage: STAGES[stage + 1] });
  });
  return card;
}

// ---- what is shown

function paint(item) {
  const old = el(`item-${item.id}`);
  if (item.deleted) {
    old?.remove();
    return;
  }
  const card = old ?? create(item);
  const text = card.querySelector('.text');
  if (text !== document.activeElement) text.value = item.text; // not under the hands of somebody who types
  card.querySelector('.version').textContent = `v${item.version}`;
  card.querySelector('[data-act=back]').disabled = item.stage === STAGES[0];
  card.querySelector('[data-act=on]').disabled = item.stage === STAGES.at(-1);

  const column = document.querySelector(`ul[data-stage=${item.stage}]`);
  if (card.parentElement === column) return;
  const focused = card.contains(document.activeElement) ? document.activeElement : null;
  column.insertBefore(card, [...column.children].find((other) => Number(other.dataset.item) > item.id) ?? null);
  focused?.focus(); // moving an element takes the focus from it
}

function show(state) {
  books.state = state;
  el('state').dataset.state = state;
  el('state').lastElementChild.textContent = state;
  tally();
}

function tally() {
  const sound = books.grown === books.applied;
  for (const name of ['from', 'last', 'applied', 'known']) el(name).textContent = books[name].toLocaleString('en');
  el('verdict').textContent = sound ? '✓ no change lost, none twice' : '✗ a change was lost or came twice';
  el('verdict').classList.toggle('bad', !sound);
  for (const column of document.querySelectorAll('ul[data-stage]')) column.previousElementSibling.lastElementChild.textContent = column.children.length;
}

load();
