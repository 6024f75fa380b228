// What is published comes out of two independent parsers as it went in: eventsource-parser, and Chromium's EventSource.
// The one change that SSE forces is CR and CRLF to LF; the JSON forms are exact to the byte.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { createParser } from 'eventsource-parser';
import { browser, everything, request, seeded, Server } from './lib.mjs';

const TOPIC = 'frame.t';
const SEED = 20261122;
const TYPES = [undefined, 'created', ' leading space', 'trailing ', 'a:b', ':', 'data', 'id', 'retry', 'naïve', '統計', '🌊', '\ufeffbom', 'x'.repeat(200)];

let server;
let chrome;
/** What was published: { id, event, key, data }, by id. */
let published = [];

before(async () => {
  server = await new Server({ settings: { retry: '100ms' } }).start();
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await server?.stop();
});

function samples() {
  const random = seeded(SEED);
  const fixed = [
    '', ' ', '  two spaces', '\t', 'a\nb', 'a\rb', 'a\r\nb', '\n', '\r', '\r\n', '\n\n', '\r\r', '\r\n\r\n', '\n\r', '\r\n\n\r\r\n', '\n\n\na\n\n\n', 'ends\n', 'ends\r\n',
    ':', ':comment', ': comment', 'data: x', 'data:', 'id: 7', 'id', 'event: e\ndata: f', 'retry: 1', 'a\n\nid: 9\nevent: x\ndata: y\n\n', '\n: \n:\n', ' \n \n ',
    '\ufeff', '\ufeffstart', 'in\ufeffside', '\n\ufeffline', '\0', 'a\0b', '\0\n\0', '\u0001\u0007\u001b[31m\u007f', '\u0085', 'a\u2028b\u2029c', '\u000b\f',
    '{"a":1}', '[\r\n1\r\n]', '"', '\\', '\\n', "</script><!--", '\u{10ffff}', '\ud7ff\ue000\uffff', '👩‍👩‍👧‍👦', 'e\u0301', '\u202eabc',
    'x'.repeat(100_000), 'y\n'.repeat(20_000), '\r'.repeat(3_000),
  ];
  const nasty = ['\r', '\n', '\r\n', ' ', ':', '\0', '\ufeff', '\t', 'data:', 'id:', '"', '\\', '\u2028'];
  const anywhere = (plane) => {
    const code = plane * 0x10000 + random.below(0x10000);
    return code >= 0xd800 && code <= 0xdfff ? 'ﷺ' : String.fromCodePoint(code);
  };
  const generated = Array.from({ length: 340 }, (_, i) => {
    let text = '';
    for (let left = random.below(40); left > 0; left -= 1) {
      text += random.below(3) === 0 ? nasty[random.below(nasty.length)] : anywhere(random.below(2) === 0 ? 0 : i % 17);
    }
    return text + anywhere(i % 17);
  });
  return [...fixed, ...generated];
}

/** Every sample, by turns as a plain text body and in a batch of JSON lines, typed and untyped. */
async function publish(texts) {
  for (const [i, data] of texts.entries()) {
    const event = TYPES[(i * 5) % TYPES.length];
    const key = i % 3 === 0 ? `key ${i}` : undefined;
    let answer;
    if (i % 2 === 0) {
      const query = new URLSearchParams({ ...(event && { event }), ...(key && { key }) });
      answer = await request(`${server.url}/topics/${TOPIC}?${query}`, { method: 'POST', headers: { 'Content-Type': 'text/plain; charset=utf-8' }, body: data });
    } else {
      const line = `\n${JSON.stringify({ event, key, data })}\n\n`;
      answer = await request(`${server.url}/topics/${TOPIC}`, { method: 'POST', headers: { 'Content-Type': 'application/x-ndjson' }, body: line });
    }
    assert.equal(answer.status, 201, `${JSON.stringify(data.slice(0, 80))}: ${answer.bytes}`);
    const { id, first } = answer.json();
    published.push({ id: id ?? first, event, key, data });
  }
}

const overSse = (text) => text.replace(/\r\n?/g, '\n');

/** Compares one by one, so that a failure shows one string and not hundreds. */
function same(got, wanted) {
  for (const [i, want] of wanted.entries()) assert.deepEqual(got[i], want, `event ${i}, published as ${JSON.stringify(published[i]).slice(0, 400)}`);
  assert.equal(got.length, wanted.length);
}

test('JSON documents are stored as they were sent', async () => {
  const documents = ['{ "a" : 1.0 }\r\n', '[1,\n 2e5 ,"\\u00e9"]', ' "x" ', '12345678901234567890.10', 'null'];
  const ids = [];
  for (const body of documents) {
    const answer = await request(`${server.url}/topics/frame.json`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
    assert.equal(answer.status, 201, `${answer.bytes}`);
    ids.push(answer.json().id);
  }
  const events = await everything(server, ['frame.json']);
  assert.deepEqual(events.map(({ id, data }) => ({ id, data })), documents.map((data, i) => ({ id: ids[i], data })));
});

test('Chromium gives the data exactly, out of the log and live', { timeout: 180_000 }, async () => {
  const texts = samples();
  const half = Math.floor(texts.length / 2);
  await publish(texts.slice(0, half));

  const page = await chrome.newPage();
  await page.goto(`${server.url}/healthz`);
  await page.evaluate(({ topic, types }) => {
    window.got = [];
    window.live = false;
    const source = new EventSource(`/topics/${topic}?from=earliest`);
    for (const type of new Set(['message', ...types])) {
      source.addEventListener(type, (e) => window.got.push({ id: Number(e.lastEventId), event: e.type === 'message' ? null : e.type, data: e.data }));
    }
    source.addEventListener('tidelog.live', () => (window.live = true));
  }, { topic: TOPIC, types: TYPES.filter(Boolean) });
  await page.waitForFunction(() => window.live, null, { timeout: 60_000 });
  const replayed = await page.evaluate(() => window.got.length);
  assert.equal(replayed, half, 'out of the log');

  await publish(texts.slice(half));
  await page.waitForFunction((n) => window.got.length >= n, texts.length, { timeout: 60_000 });
  same(await page.evaluate(() => window.got), published.map(({ id, event, data }) => ({ id, event: event ?? null, data: overSse(data) })));
  await page.close();
});

async function stream(target, accept) {
  const answer = await request(`${server.url}${target}`, { headers: { Accept: accept } });
  assert.equal(answer.status, 200);
  assert.equal(answer.headers['content-type'], accept);
  return answer;
}

/** Feeds `bytes` in pieces of at most `most` bytes, cut without regard to characters or lines. */
function parse(bytes, most) {
  const random = seeded(most);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const found = { events: [], retries: [], errors: [] };
  const parser = createParser({
    onEvent: ({ id, event, data }) => found.events.push({ id: Number(id), event, data }),
    onRetry: (ms) => found.retries.push(ms),
    onError: (error) => found.errors.push(error),
  });
  for (let at = 0; at < bytes.length; ) {
    const end = Math.min(bytes.length, at + 1 + random.below(most));
    parser.feed(decoder.decode(bytes.subarray(at, end), { stream: true }));
    at = end;
  }
  parser.feed(decoder.decode());
  return found;
}

test('eventsource-parser gives the data exactly, however the bytes are cut', async () => {
  const { bytes } = await stream(`/topics/${TOPIC}?from=earliest&follow=false`, 'text/event-stream');
  assert.equal(bytes.includes(0x0d), false, 'a stream has no CR');
  for (const most of [7, 1000, 1 << 20]) {
    const { events, retries, errors } = parse(bytes, most);
    assert.deepEqual(errors, []);
    assert.equal(retries.length, 1);
    assert.ok(retries[0] >= 50 && retries[0] <= 150, `retry ${retries[0]} is not within half of 100`);
    const own = events.filter(({ event }) => !event?.startsWith('tidelog.'));
    same(own, published.map(({ id, event, data }) => ({ id, event, data: overSse(data) })));
  }
});

test('an envelope gives the whole event exactly', async () => {
  const { bytes } = await stream(`/topics/${TOPIC}?from=earliest&follow=false&envelope=json`, 'text/event-stream');
  const own = parse(bytes, 5000).events.filter(({ event }) => !event?.startsWith('tidelog.'));
  same(own.map(({ id, event, data }) => ({ id, event, whole: bare(JSON.parse(data)) })), published.map((e) => ({ id: e.id, event: e.event, whole: bare(e) })));
});

test('JSON lines and JSON pages are exact to the byte', async () => {
  const { bytes } = await stream(`/topics/${TOPIC}?from=earliest&follow=false`, 'application/x-ndjson');
  assert.equal(bytes.at(-1), 0x0a, 'the last line is whole');
  const lines = bytes.toString('utf8').split('\n').filter((line) => line !== '').map((line) => JSON.parse(line));
  const own = lines.filter(({ event }) => !event?.startsWith('tidelog.'));
  same(own.map(bare), published.map(bare));
  for (const [i, { data }] of own.entries()) assert.deepEqual(Buffer.from(data), Buffer.from(published[i].data));
  same((await everything(server, [TOPIC])).map(bare), published.map(bare));
});

/** What a publisher decides of an event. `event` and `key` are absent when unset, not null. */
function bare({ id, event, key, data }) {
  assert.notEqual(event, null);
  assert.notEqual(key, null);
  return { id, event, key, data };
}
