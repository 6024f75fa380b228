// Chromium's EventSource across the deaths of a server that is being written to without pause.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { browser, everything, request, Server, until } from './lib.mjs';

const SIGNALS = ['SIGKILL', 'SIGKILL', 'SIGTERM', 'SIGKILL', 'SIGTERM', 'SIGKILL'];
const BETWEEN = 150; // events that the browser sees between two deaths
const WRITERS = 3;
const TOPICS = ['load.a', 'load.b', 'load.c'];

let server;
let chrome;

before(async () => {
  server = await new Server({ settings: { retry: '100ms', drain_timeout: '2s' } }).start();
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await server?.stop();
});

/** Publishes until told to stop. What was not answered is not sent again: it may be in the log or not. */
class Writer {
  constructor(name, topic) {
    this.acked = new Map();
    this.unknown = new Set();
    this.stopped = false;
    this.done = this.run(name, topic);
  }

  async run(name, topic) {
    for (let n = 0; !this.stopped; n += 1) {
      const data = `${name} ${n}`;
      try {
        const answer = await request(`${server.url}/topics/${topic}`, { method: 'POST', headers: { 'Content-Type': 'text/plain' }, body: data });
        if (answer.status === 201) this.acked.set(answer.json().id, data);
        else if (answer.status === 503) await this.away(data);
        else throw new Error(`${answer.status}: ${answer.bytes}`);
      } catch (error) {
        if (error.code === undefined) throw error; // not the connection's
        await this.away(data);
      }
    }
  }

  async away(data) {
    this.unknown.add(data);
    await server.up;
  }
}

test('each id is seen exactly once and in order across kills', { timeout: 300_000 }, async () => {
  const page = await chrome.newPage();
  await page.goto(`${server.url}/healthz`);
  await page.evaluate((topics) => {
    window.seen = [];
    window.told = [];
    window.opened = 0;
    const source = new EventSource(`/events?${topics.map((topic) => `topic=${topic}`).join('&')}&from=earliest`);
    window.source = source;
    source.onopen = () => (window.opened += 1);
    source.onmessage = (e) => window.seen.push([Number(e.lastEventId), e.data]);
    for (const type of ['tidelog.gap', 'tidelog.error']) source.addEventListener(type, (e) => window.told.push([type, JSON.parse(e.data)]));
  }, TOPICS);

  const writers = Array.from({ length: WRITERS }, (_, i) => new Writer(`w${i}`, TOPICS[i]));
  const failed = Promise.all(writers.map((writer) => writer.done)).then(() => new Promise(() => {}));
  const story = async () => {
    let mark = 0;
    const grown = () => page.evaluate((n) => window.seen.length >= n && window.source.readyState === EventSource.OPEN, mark + BETWEEN);
    for (const signal of SIGNALS) {
      await until(`${BETWEEN} more events before ${signal} ${server.kills + 1}`, grown);
      await server.restart(signal);
      mark = await page.evaluate(() => window.seen.length);
    }
    await until(`${BETWEEN} more events after the last restart`, grown);
  };
  try {
    await Promise.race([story(), failed]);
  } finally {
    for (const writer of writers) writer.stopped = true;
  }
  await Promise.all(writers.map((writer) => writer.done));

  const log = await everything(server, TOPICS);
  const tail = log.at(-1).id;
  await until(`id ${tail} in the browser`, () => page.evaluate((id) => window.seen.at(-1)?.[0] >= id, tail));
  const { seen, told, opened, state } = await page.evaluate(() => ({ seen: window.seen, told: window.told, opened: window.opened, state: window.source.readyState }));

  for (let i = 1; i < seen.length; i += 1) assert.ok(seen[i][0] > seen[i - 1][0], `${seen[i][0]} after ${seen[i - 1][0]}`);
  assert.deepEqual(seen.map(([id]) => id), log.map(({ id }) => id), 'the browser saw what the log holds');
  assert.deepEqual(seen.map(([, data]) => data), log.map(({ data }) => data));
  assert.deepEqual(told.filter(([type]) => type === 'tidelog.gap'), [], 'nothing is lost, so no gap is told');
  assert.equal(state, 1, 'the stream is open');
  assert.ok(opened > SIGNALS.length, `it was opened ${opened} times`);

  const held = new Map(log.map(({ id, data }) => [id, data]));
  const accounted = new Set();
  for (const writer of writers) {
    for (const [id, data] of writer.acked) {
      assert.equal(held.get(id), data, `${data} was confirmed under ${id}`);
      accounted.add(data);
    }
    for (const data of writer.unknown) accounted.add(data);
  }
  for (const { data } of log) assert.ok(accounted.has(data), `${data} was published by nobody`);
  assert.equal(new Set(log.map(({ data }) => data)).size, log.length, 'nothing was appended twice');
  await page.close();
});

test('a stream with follow=false ends, and a 204 ends the retries', { timeout: 60_000 }, async () => {
  for (const data of ['one', 'two', 'three']) {
    const answer = await request(`${server.url}/topics/finite`, { method: 'POST', body: data });
    assert.equal(answer.status, 201);
  }
  const page = await chrome.newPage();
  await page.goto(`${server.url}/healthz`);
  const answers = [];
  page.on('response', (answer) => {
    if (answer.url().includes('/topics/finite')) answers.push(answer);
  });
  await page.evaluate(() => {
    window.seen = [];
    window.source = new EventSource('/topics/finite?from=earliest&follow=false');
    window.source.onmessage = (e) => window.seen.push(e.data);
  });
  await page.waitForFunction(() => window.source.readyState === EventSource.CLOSED, null, { timeout: 30_000 });
  assert.deepEqual(await page.evaluate(() => window.seen), ['one', 'two', 'three']);
  const ids = (await everything(server, ['finite'])).map(({ id }) => id);
  assert.deepEqual(answers.map((answer) => answer.status()), [200, 204]);
  const presented = (await answers[1].request().allHeaders())['last-event-id'];
  assert.ok(Number(presented) >= ids.at(-1), `the second request said Last-Event-ID ${presented}`);
  await page.close();
});
