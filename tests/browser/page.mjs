// The page at `/`: publishing with it, following with it, and a server that goes away and comes back.

import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { browser, OUTPUT, request, Server } from './lib.mjs';

const LONG_TOPIC = `long.${'x'.repeat(190)}`;

let server;
let chrome;

before(async () => {
  server = await new Server({ settings: { retry: '100ms' } }).start();
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await server?.stop();
});

async function publish(topic, data, query = '') {
  const answer = await request(`${server.url}/topics/${topic}${query}`, { method: 'POST', body: data });
  assert.equal(answer.status, 201, `${answer.bytes}`);
  return answer.json().id;
}

test('the page publishes, follows, and comes back with the server', { timeout: 120_000 }, async () => {
  await publish('orders.eu', '{"n":1}', '?event=created&key=7');
  await publish(LONG_TOPIC, 'y'.repeat(3000));

  const context = await chrome.newContext({ viewport: { width: 1280, height: 860 } });
  const page = await context.newPage();
  const troubles = [];
  page.on('pageerror', (error) => troubles.push(error.stack));
  await page.goto(server.url);
  const live = () => page.waitForFunction(() => document.getElementById('state').textContent === 'live');
  const shows = (text) => page.waitForFunction((wanted) => document.getElementById('events').innerText.includes(wanted), text);
  await live();
  await shows('{"n":1}'); // of a type that the page was not told of

  await page.fill('#publish [name=topic]', 'demo.page');
  await page.fill('#publish [name=event]', 'greeting');
  await page.fill('#publish [name=data]', 'from the page\nin two lines');
  await page.click('#publish button');
  await shows('from the page\nin two lines');
  assert.equal(await page.textContent('#published'), 'Published as event 3.');
  assert.equal(await page.textContent('#tail'), '3');

  await server.restart('SIGKILL');
  await publish('demo.after', 'after the kill');
  await shows('after the kill');
  await live();
  const ids = await page.$$eval('#events .id', (all) => all.map((id) => Number(id.textContent)));
  assert.deepEqual(ids, [...new Set(ids)].sort((a, b) => b - a), 'each once, the newest on top');
  assert.equal(ids.length, 4);

  await page.screenshot({ path: path.join(OUTPUT, 'page-light.png') });
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.screenshot({ path: path.join(OUTPUT, 'page-dark.png') });
  await page.setViewportSize({ width: 390, height: 844 });
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390, 'a phone needs no sideways scrolling');
  await page.screenshot({ path: path.join(OUTPUT, 'page-phone.png'), fullPage: true });

  await page.fill('#follow [name=pattern]', 'a.**.b');
  await page.click('#follow button:not(.plain)');
  await page.waitForFunction(() => document.getElementById('state').textContent.includes('** stands for all the remaining tokens'));
  await page.fill('#publish [name=topic]', 'bad topic');
  await page.click('#publish button');
  await page.waitForFunction(() => document.getElementById('published').textContent.includes('"bad topic" is not valid'));
  assert.deepEqual(troubles, [], 'no error in the page');
  await context.close();
});
