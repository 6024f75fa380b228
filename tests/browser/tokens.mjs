// A long answer as its readers see it: reloaded, opened twice, its server killed; and at the end nothing asks again.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { App, Line } from './apps.mjs';
import { browser, everything, freePort, OUTPUT, request, Server, until } from './lib.mjs';

const ANSWER = readFileSync(new URL('../../examples/tokens/answer.txt', import.meta.url), 'utf8');
const CLOSED = 2; // EventSource.CLOSED

let server;
let line;
let app;
let chrome;

before(async () => {
  const port = await freePort();
  server = await new Server({ settings: { retry: '100ms', 'cors.allow_origins': `http://127.0.0.1:${port}` } }).start();
  line = await new Line(server.url, { losing: 5 }).start();
  app = new App('tokens', ['--tidelog', line.url, '--public', server.url, '--pause', '0.02']);
  app.port = port;
  await app.start();
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await app?.stop();
  line?.stop();
  await server?.stop();
});

const books = (page) =>
  page.evaluate(() => {
    const { source, ...rest } = window.tokens ?? {};
    return { ...rest, readyState: source?.readyState };
  });

/** A page, with the statuses of what it was answered on the stream, `asked` counting what it asked for. */
async function open(context, url) {
  const page = await context.newPage();
  page.asked = 0;
  page.statuses = [];
  page.troubles = [];
  const stream = (sent) => sent.url().includes('/topics/answers.');
  page.on('request', (sent) => (page.asked += stream(sent) ? 1 : 0));
  page.on('response', (answer) => stream(answer) && page.statuses.push(answer.status()));
  page.on('pageerror', (error) => page.troubles.push(error.stack));
  await page.goto(url);
  return page;
}

async function sees(page, what, condition) {
  const told = async () => `${what} on the page: ${JSON.stringify(await books(page))}; ${app.program.told}`;
  await until(told, async () => condition(await books(page)), 30_000);
}
const tokens = (page, n) => sees(page, `${n} tokens`, ({ ids }) => ids?.length >= n);
const ended = (page, state) => sees(page, `the end, ${state}`, (seen) => seen.state === state && seen.readyState === CLOSED);

async function ask(page) {
  await page.getByRole('button', { name: 'Ask' }).click();
  await page.waitForFunction(() => location.hash.length > 1, null, { timeout: 30_000 });
  return { url: page.url(), topic: `answers.${new URL(page.url()).hash.slice(1)}` };
}

test('the answer is complete and each token in it once, and then the stream is over', { timeout: 120_000 }, async () => {
  const context = await chrome.newContext({ viewport: { width: 900, height: 900 }, colorScheme: 'dark' });
  const one = await open(context, `${app.url}/`);
  const { url, topic } = await ask(one);
  await tokens(one, 30);
  const other = await open(context, url);
  await tokens(other, 60);
  await one.screenshot({ path: path.join(OUTPUT, 'tokens-dark.png') });
  await one.reload();
  await tokens(one, 90);
  assert.notEqual((await books(one)).state, 'complete', 'it is killed in the middle');
  await server.restart();
  await Promise.all([ended(one, 'complete'), ended(other, 'complete')]);

  const log = await everything(server, [topic]);
  assert.equal(log.map(({ data }) => data).join(''), ANSWER, 'the log holds each token once');
  const asked = [one, other].map((page) => page.asked);
  for (const page of [one, other]) {
    const seen = await books(page);
    assert.equal(seen.text, ANSWER);
    assert.equal(await page.evaluate(() => document.getElementById('answer').textContent), ANSWER);
    assert.deepEqual(seen.ids, log.map(({ id }) => id));
    assert.ok(seen.opens >= 2, `${seen.opens} connections, though the server was killed`);
    assert.equal(seen.gaps, 0);
  }
  assert.ok(line.lost > 0, `${line.lost} answers to the writer were lost`);

  // Whoever comes after the end: the whole text, in one request, also from a server that has been killed since.
  for (const life of ['the same', 'another']) {
    if (life === 'another') await server.restart();
    const late = await open(context, url);
    await ended(late, 'complete');
    assert.equal((await books(late)).text, ANSWER, `${life} life of the server`);
    assert.deepEqual([late.asked, late.statuses], [1, [200]], 'one request');
    await late.emulateMedia({ colorScheme: 'light' });
    await late.setViewportSize({ width: 390, height: 844 });
    assert.equal(await late.evaluate(() => document.documentElement.scrollWidth), 390, 'a phone needs no sideways scrolling');
    await late.screenshot({ path: path.join(OUTPUT, 'tokens-phone.png'), fullPage: true });
    await late.close();
  }

  // All this while, and a restart of the server, nobody asked again.
  assert.deepEqual([one, other].map((page) => page.asked), asked, 'no more requests after the end');
  for (const page of [one, other]) {
    assert.equal((await books(page)).readyState, CLOSED);
    assert.deepEqual(page.troubles, []);
  }
  const { topics } = (await request(`${server.url}/topics?prefix=${topic}`)).json();
  assert.deepEqual([topics[0].closed, topics[0].subscribers], [true, 0]);
  await context.close();
});

test('a page that does not heed tidelog.closed comes back once, is answered 204, and stops', { timeout: 60_000 }, async () => {
  const context = await chrome.newContext();
  await context.addInitScript(() => {
    const listen = EventSource.prototype.addEventListener;
    EventSource.prototype.addEventListener = function (type, ...rest) {
      if (type !== 'tidelog.closed') listen.call(this, type, ...rest);
    };
  });
  const page = await open(context, `${app.url}/`);
  await ask(page);
  await ended(page, 'complete');
  assert.equal((await books(page)).text, ANSWER);
  assert.deepEqual(page.statuses, [200, 204]);
  assert.equal(page.asked, 2);

  // A page that is opened after the end goes the same way.
  const late = await open(context, page.url());
  await ended(late, 'complete');
  assert.equal((await books(late)).text, ANSWER);
  assert.deepEqual(late.statuses, [200, 204]);
  assert.equal(page.asked, 2, 'and the first has not asked again');
  await context.close();
});

test('an answer whose writer dies is ended by its next life', { timeout: 60_000 }, async () => {
  const context = await chrome.newContext();
  const page = await open(context, `${app.url}/`);
  const { topic } = await ask(page);
  await tokens(page, 20);
  await app.restart();
  await ended(page, 'interrupted');
  const log = await everything(server, [topic]);
  assert.deepEqual(log.filter(({ event }) => event !== undefined).map(({ event }) => event), ['interrupted']);
  const { text, ids } = await books(page);
  assert.deepEqual(ids, log.filter(({ event }) => event === undefined).map(({ id }) => id));
  assert.ok(ANSWER.startsWith(text) && text.length < ANSWER.length, 'a beginning of the answer');
  assert.match(await page.textContent('#trouble'), /interrupted/);
  const closed = await request(`${server.url}/topics/${topic}`, { method: 'POST', body: 'more' });
  assert.equal(closed.status, 409);
  await context.close();
});
