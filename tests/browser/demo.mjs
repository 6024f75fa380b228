// The demo as a visitor sees it: the feeder, the page, and a server that is killed again and again.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { browser, everything, freePort, OUTPUT, Program, QUAKES, Server, until } from './lib.mjs';

const SPEED = 60_000; // the week in ten seconds
const KILL_AT = [150, 500, 850, 1200, 1500]; // quakes in the page
const QUAKE_IDS = readFileSync(new URL('../../examples/quakes/quakes.ndjson', import.meta.url), 'utf8').trim().split('\n').map((line) => JSON.parse(line).id);

let server;
let feeder;
let chrome;

before(async () => {
  const port = await freePort();
  const origin = `http://127.0.0.1:${port}`;
  server = await new Server({ settings: { retry: '200ms', 'cors.allow_origins': origin } }).start();
  feeder = new Program(QUAKES, ['--server', server.url, '--speed', String(SPEED), '--page', `127.0.0.1:${port}`]);
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await feeder?.stop();
  await server?.stop();
});

test('the page sees every quake once, whenever the server dies', { timeout: 300_000 }, async () => {
  const [, url] = await feeder.line(/^page on (\S+)$/);
  const context = await chrome.newContext({ viewport: { width: 1360, height: 860 }, colorScheme: 'dark' });
  const page = await context.newPage();
  const troubles = [];
  page.on('pageerror', (error) => troubles.push(error.stack));
  const elsewhere = [];
  page.on('request', (sent) => {
    const host = new URL(sent.url()).host;
    if (sent.url().startsWith('http') && ![new URL(url).host, new URL(server.url).host].includes(host)) elsewhere.push(sent.url());
  });
  await page.goto(url);

  const books = () => page.evaluate(() => window.quakes);
  const told = async () => `the page (${JSON.stringify(await books()).slice(-300)}); the feeder: ${feeder.ended ?? 'runs'}, ${feeder.lines.slice(-4).join(' | ')} ${feeder.told.slice(-500)}`;
  for (const count of KILL_AT) {
    await until(async () => `${count} quakes on ${await told()}`, () => page.evaluate((n) => window.quakes.received >= n, count), 90_000);
    await server.restart('SIGKILL');
  }
  await feeder.line(/^all 1707 quakes are in the log$/, 120_000);
  await until(async () => `every quake on ${await told()}`, () => page.evaluate(() => window.quakes.distinct >= 1707 && window.quakes.state === 'live'));

  const seen = await books();
  const log = await everything(server, ['quakes.**']);
  assert.deepEqual(log.map(({ key }) => key), QUAKE_IDS, 'the log holds every quake once, in order');
  assert.deepEqual(seen.keys, QUAKE_IDS, 'the page saw every quake once, in order');
  assert.deepEqual(seen.ids, log.map(({ id }) => id), 'under the ids of the log');
  assert.deepEqual(
    { received: seen.received, distinct: seen.distinct, duplicates: seen.duplicates, disorder: seen.disorder, gaps: seen.gaps },
    { received: 1707, distinct: 1707, duplicates: 0, disorder: 0, gaps: [] },
  );
  assert.ok(seen.reconnects >= KILL_AT.length - 1, `${seen.reconnects} reconnects`);
  assert.equal(new Set(log.map(({ topic }) => topic)).size, 12, 'twelve networks, twelve topics');
  assert.deepEqual(troubles, [], 'no error in the page');
  assert.deepEqual(elsewhere, [], 'nothing loaded from anywhere else');

  await page.waitForFunction(() => document.getElementById('received').textContent === '1,707');
  assert.equal(await page.textContent('#verdict'), '✓ each once, in order');
  assert.equal(await page.textContent('#state'), 'live');
  await page.screenshot({ path: path.join(OUTPUT, 'demo-dark.png') });
  await page.emulateMedia({ colorScheme: 'light' });
  await page.screenshot({ path: path.join(OUTPUT, 'demo-light.png') });
  await page.setViewportSize({ width: 390, height: 844 });
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390, 'a phone needs no sideways scrolling');
  await page.screenshot({ path: path.join(OUTPUT, 'demo-phone.png'), fullPage: true });
  await context.close();
});

test('a feeder started anew goes on after the last quake', { timeout: 60_000 }, async () => {
  const again = new Program(QUAKES, ['--server', server.url, '--speed', '0', '--no-page']);
  try {
    await again.line(/^1707 of 1707 quakes are in the log/);
    assert.equal(await again.exit, 'exit 0');
  } finally {
    await again.stop();
  }
  assert.equal((await everything(server, ['quakes.**'])).length, 1707);
});
