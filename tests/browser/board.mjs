// The board as its users see it: pages that are loaded while others write, whichever server dies.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { App, Line, python } from './apps.mjs';
import { browser, everything, freePort, OUTPUT, request, seeded, Server, temporaryDirectory, until } from './lib.mjs';

const WRITERS = 4;
const ITEMS = 12; // few, so that each is changed often
const CONTEXTS = 2;
const PAGES = 3; // in each: a browser opens six connections to a host, and each page holds one
const ROUNDS = 6;
// How far the writers may be ahead of the relay. A relay that is far behind hides mistakes: what a page misses by following from a later place
// than its state's is then not yet published.
const AHEAD = WRITERS;
const DELAY_MS = 100; // at most, for each part of a load: tidelog's tail on its way there and back, the state on its way to the page
const BETWEEN = 15; // changes that each page applies between two loads

let server;
let line;
let board;
let chrome;
let database;
let changes = 0; // that were answered

before(async () => {
  database = path.join(temporaryDirectory(), 'board.sqlite');
  const port = await freePort();
  server = await new Server({ settings: { retry: '100ms', 'cors.allow_origins': `http://127.0.0.1:${port}` } }).start();
  line = await new Line(server.url, { losing: 2 }).start();
  board = new App('board', ['--database', database, '--tidelog', line.url, '--public', server.url]);
  board.port = port;
  await board.start();
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await board?.stop();
  line?.stop();
  await server?.stop();
});

/** What the database holds, read past the server. */
function held() {
  const script = `import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(json.dumps({"items": db.execute("SELECT id, version, text, stage, deleted_at IS NOT NULL FROM items ORDER BY id").fetchall(),
                  "outbox": db.execute("SELECT count(*) FROM outbox").fetchone()[0]}))`;
  const read = spawnSync(python(), ['-c', script, database], { encoding: 'utf8', timeout: 30_000 });
  assert.equal(read.status, 0, read.stderr);
  const { items, outbox } = JSON.parse(read.stdout);
  return { outbox, items: items.map(([id, version, text, stage, deleted]) => ({ id, version, text, stage, deleted: deleted === 1 })) };
}

async function write(method, target, body) {
  const answer = await request(`${board.url}${target}`, { method, headers: { 'Content-Type': 'application/json' }, body: body && JSON.stringify(body) });
  return { status: answer.status, ...answer.json() };
}

/** How many changes are published; nothing when tidelog is away. */
async function published() {
  try {
    const { topics } = (await request(`${server.url}/topics`)).json();
    return topics.find(({ topic }) => topic === 'board')?.events ?? 0;
  } catch {
    return Number.NaN;
  }
}

/** Changes the board without pause until told to stop. A change without an answer is made or not: the database knows. */
class Writer {
  constructor(n) {
    this.name = `w${n}`;
    this.random = seeded(n + 1);
    this.ids = [];
    this.stopped = false;
    this.done = this.run();
  }

  async run() {
    for (let n = 0; !this.stopped; n += 1) {
      try {
        await this.change(`${this.name} ${n} <é ☂>`);
        changes += 1;
        await until('the relay to follow', async () => this.stopped || changes - (await published()) < AHEAD);
      } catch (error) {
        if (error.code === undefined) throw error; // not the connection's
        await until('the board to be back', () => this.stopped || board.program.ended === null);
      }
    }
  }

  async change(text) {
    if (this.ids.length < ITEMS / WRITERS) {
      const { status, id } = await write('POST', '/items', { text });
      assert.equal(status, 200);
      this.ids.push(id);
      return;
    }
    const at = this.random.below(this.ids.length);
    const target = `/items/${this.ids[at]}`;
    const dice = this.random.below(10);
    const changed = dice < 5 ? { stage: ['todo', 'doing', 'done'][this.random.below(3)] } : { text };
    const { status } = dice === 0 ? await write('DELETE', target) : await write('PATCH', target, changed);
    // 404: it was deleted by a request that got no answer.
    assert.ok(status === 200 || status === 404, `${status}`);
    if (dice === 0 || status === 404) this.ids.splice(at, 1);
  }
}

const books = (page) => page.evaluate(() => structuredClone(window.board));
const shown = (page) =>
  page.evaluate(() =>
    [...document.querySelectorAll('ul[data-stage]')]
      .flatMap((column) =>
        [...column.children].map((card) => ({
          id: Number(card.dataset.item), version: Number(card.querySelector('.version').textContent.slice(1)), text: card.querySelector('.text').value,
          stage: column.dataset.stage, deleted: false,
        })),
      )
      .sort((a, b) => a.id - b.id),
  );

/** Opens a page, or loads it anew. A page that is being loaded while a server is away tries again by itself. */
async function load(page) {
  await page.goto(`${board.url}/`);
  await page.waitForFunction(() => window.board?.loads > 0, null, { timeout: 30_000 });
}

test('a change is neither lost nor applied twice, wherever in a load it comes', { timeout: 60_000 }, async () => {
  const ids = {};
  for (const way of ['there', 'back', 'page']) ids[way] = (await write('POST', '/items', { text: 'as it was' })).id;
  const change = async (way) => {
    assert.equal((await write('PATCH', `/items/${ids[way]}`, { text: way })).status, 200);
    await until('an empty outbox', () => held().outbox === 0);
  };
  // One change before tidelog says N, one between that and the reading of the database, one between that and the page's stream.
  line.meanwhile = change;
  const page = await (await chrome.newContext()).newPage();
  await page.route(`${board.url}/board`, async (route) => {
    const answer = await route.fetch();
    await change('page');
    await route.fulfill({ response: answer });
  });
  await load(page);
  line.meanwhile = async () => {};
  await page.waitForFunction(() => window.board.state === 'live', null, { timeout: 30_000 });

  assert.deepEqual(await shown(page), held().items, 'the page shows what the database holds');
  const { loads, loaded, applied, known, grown } = await books(page);
  assert.deepEqual(loaded, { [ids.there]: 2, [ids.back]: 2, [ids.page]: 1 }, 'the first two are in the state');
  assert.deepEqual({ loads, known, applied, grown }, { loads: 1, known: 1, applied: 1, grown: 1 }, 'the second came as an event too, the third only so');
  await page.close();
});

test('each page shows what the database holds, each change once, whichever server dies', { timeout: 120_000 }, async () => {
  const troubles = [];
  const pages = [];
  const random = seeded(9);
  const delay = () => new Promise((done) => setTimeout(done, random.below(DELAY_MS + 1)));
  line.meanwhile = delay;
  for (let c = 0; c < CONTEXTS; c += 1) {
    const context = await chrome.newContext();
    await context.route(`${board.url}/board`, async (route) => {
      try {
        const answer = await route.fetch();
        await delay();
        await route.fulfill({ response: answer });
      } catch {
        await route.abort().catch(() => {}); // the board is away, or the page is gone
      }
    });
    for (let p = 0; p < PAGES; p += 1) pages.push(await context.newPage());
  }
  for (const page of pages) page.on('pageerror', (error) => troubles.push(error.stack));

  const writers = Array.from({ length: WRITERS }, (_, n) => new Writer(n));
  const failed = Promise.all(writers.map((writer) => writer.done)).then(() => new Promise(() => {}));
  let already = 0;
  let loads = 0;
  const story = async () => {
    await Promise.all(pages.map(load));
    for (let round = 0; round < ROUNDS; round += 1) {
      const told = async () => `${BETWEEN} more changes on each page in round ${round}: ${JSON.stringify(await Promise.all(pages.map(books)))}; the board: ${board.program.told}`;
      const mark = await Promise.all(pages.map(books));
      const grown = async () => (await Promise.all(pages.map(books))).every(({ applied }, i) => applied >= mark[i].applied + BETWEEN);
      await until(told, grown, 30_000);
      // Half of the pages are loaded anew, just as a server dies and comes back.
      const anew = pages.filter((_, i) => i % 2 === round % 2);
      for (const page of anew) {
        const { applied, grown: by, known } = await books(page);
        assert.equal(applied, by, 'no change lost, none twice, up to here');
        already += known;
        loads += 1;
      }
      if (round % 4 === 3) {
        await board.restart();
        await Promise.all(anew.map(load));
      } else if (round % 2 === 1) {
        await Promise.all([server.restart(), ...anew.map(load)]);
      } else {
        await Promise.all(anew.map(load));
      }
    }
  };
  try {
    await Promise.race([story(), failed]);
  } finally {
    for (const writer of writers) writer.stopped = true;
  }
  line.meanwhile = async () => {};
  await Promise.all(writers.map((writer) => writer.done));
  await until('an empty outbox', () => held().outbox === 0);

  const { items } = held();
  const log = await everything(server, ['board']);
  const tail = log.at(-1).id;
  for (const page of pages) {
    await until(async () => `id ${tail} on a page: ${JSON.stringify(await books(page))}`, () => page.evaluate((id) => window.board.last >= id, tail));
  }

  // The log: each version of each item once, in order, from the first to the one in the database.
  const versions = new Map();
  for (const { id, data } of log) {
    const { id: item, version } = JSON.parse(data);
    assert.equal(version, (versions.get(item) ?? 0) + 1, `event ${id} is version ${version} of item ${item}`);
    versions.set(item, version);
  }
  assert.deepEqual([...versions].sort(([a], [b]) => a - b), items.map(({ id, version }) => [id, version]), 'the log ends with what the database holds');

  // The pages: what the database holds, and each change since the load applied once.
  for (const page of pages) {
    assert.deepEqual(await shown(page), items.filter(({ deleted }) => !deleted), 'the page shows what the database holds');
    const { loaded, applied, known, gaps } = await books(page);
    assert.equal(applied, items.reduce((sum, { id, version }) => sum + version - (loaded[id] ?? 0), 0), 'each change since the load was applied once');
    assert.equal(gaps, 0);
    assert.equal(await page.textContent('#verdict'), '✓ no change lost, none twice');
    already += known;
    loads += 1;
  }
  assert.deepEqual(troubles, [], 'no error in a page');
  // That it was a test at all:
  assert.ok(server.kills >= 2 && line.lost > 0, `${server.kills} kills, ${line.lost} answers lost`);
  assert.ok(already > 0, `${already} changes were in a state and came as an event too, in ${loads} loads`);
  console.log(`${loads} loads, ${log.length} changes, ${already} of them in a state and as an event too, ${line.lost} answers lost`);
  for (const page of pages) await page.close();
});

test('a page whose place is no longer in the log reads the state anew', { timeout: 60_000 }, async () => {
  const page = await (await chrome.newContext()).newPage();
  let first = true;
  // The state is on its way to the page for so long that what follows it is trimmed from the log.
  await page.route(`${board.url}/board`, async (route) => {
    const answer = await route.fetch();
    if (first) {
      first = false;
      const { id } = await write('POST', '/items', { text: 'too late for the state' });
      assert.equal((await write('DELETE', `/items/${id}`)).status, 200);
      await write('POST', '/items', { text: 'the newest' });
      await until('an empty outbox', () => held().outbox === 0);
      const { last } = (await request(`${server.url}/topics`)).json().topics.find(({ topic }) => topic === 'board');
      assert.equal((await request(`${server.url}/topics/board?before=${last}`, { method: 'DELETE' })).status, 204);
    }
    await route.fulfill({ response: answer });
  });
  await load(page);
  await page.waitForFunction(() => window.board.loads === 2 && window.board.state === 'live', null, { timeout: 30_000 });
  assert.equal((await books(page)).gaps, 1);
  assert.deepEqual(await shown(page), held().items.filter(({ deleted }) => !deleted));
  await page.close();
});

test('a change by one user is seen by the other', { timeout: 60_000 }, async () => {
  for (const { id, deleted } of held().items) if (!deleted) assert.equal((await write('DELETE', `/items/${id}`)).status, 200);
  const context = await chrome.newContext({ viewport: { width: 1100, height: 700 }, colorScheme: 'dark' });
  const [one, other] = [await context.newPage(), await context.newPage()];
  await Promise.all([one, other].map(load));
  const texts = () => other.evaluate(() => [...document.querySelectorAll('ul[data-stage]')].map((column) => [...column.querySelectorAll('.text')].map(({ value }) => value)));
  const sees = async (wanted) => {
    const told = async () => `${JSON.stringify(wanted)} on the other page, which shows ${JSON.stringify(await texts())}`;
    await until(told, async () => JSON.stringify(await texts()) === JSON.stringify(wanted), 10_000);
  };

  for (const text of ['Water the plants', '<b>Call</b> Åse & Bob', 'Mend the gate']) {
    await one.fill('#add input', text);
    await one.press('#add input', 'Enter');
    await one.waitForFunction(() => document.querySelector('#add input').value === '');
  }
  await sees([['Water the plants', '<b>Call</b> Åse & Bob', 'Mend the gate'], [], []]);
  const right = one.locator('li', { has: one.locator('.version') }).nth(1).getByRole('button', { name: 'Move right' });
  await right.focus();
  await right.press('Enter');
  await sees([['Water the plants', 'Mend the gate'], ['<b>Call</b> Åse & Bob'], []]);
  assert.equal(await one.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Move right', 'the focus moves along');
  await one.locator('ul[data-stage=doing] .text').fill('Call Åse');
  await one.keyboard.press('Enter');
  await sees([['Water the plants', 'Mend the gate'], ['Call Åse'], []]);
  await one.locator('ul[data-stage=todo] li').first().getByRole('button', { name: 'Delete' }).click();
  await sees([['Mend the gate'], ['Call Åse'], []]);

  await other.screenshot({ path: path.join(OUTPUT, 'board-dark.png') });
  await other.emulateMedia({ colorScheme: 'light' });
  await other.screenshot({ path: path.join(OUTPUT, 'board-light.png') });
  await other.setViewportSize({ width: 390, height: 844 });
  assert.equal(await other.evaluate(() => document.documentElement.scrollWidth), 390, 'a phone needs no sideways scrolling');
  await other.screenshot({ path: path.join(OUTPUT, 'board-phone.png'), fullPage: true });

  // Who may not write: another site's page, which cannot send JSON unasked; and nobody writes nonsense.
  const plain = await request(`${board.url}/items`, { method: 'POST', headers: { 'Content-Type': 'text/plain' }, body: '{"text":"no"}' });
  assert.equal(plain.status, 415);
  for (const wrong of [{}, { text: '' }, { text: 7 }, { text: 'x'.repeat(201) }, { text: 'two\nlines' }, { text: 'x', id: 7 }, [], 'x']) {
    assert.equal((await write('POST', '/items', wrong)).status, 400, JSON.stringify(wrong));
  }
  assert.equal((await write('PATCH', '/items/999999', { stage: 'done' })).status, 404);
  await context.close();
});
