// What the tests share: a server that can be killed and started again, a browser, and bounded waits.
//
// Holds: whatever was started here is gone when the test process ends, however it ends, and no wait is without a bound.

import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { chromium } from 'playwright-core';

const START_MS = 60_000; // a start after SIGKILL recovers the log first
const LOOK_MS = 20; // how often a condition is looked at
const TOLD_BYTES = 16 * 1024; // of a program's stderr, the end that is kept for the report

/** The built server; the feeder of the demo lies beside it, where cargo puts examples. */
export const TIDELOG = executable(process.env.TIDELOG_BIN, 'TIDELOG_BIN must name the built server');
export const QUAKES = process.env.QUAKES_BIN ?? path.join(path.dirname(TIDELOG), 'examples', 'quakes');
/** Where screenshots go: beside the build, outside the sources. */
export const OUTPUT = process.env.BROWSER_TEST_OUTPUT ?? path.join(path.dirname(TIDELOG), '..', 'browser-tests');
mkdirSync(OUTPUT, { recursive: true });

const children = new Set();
const directories = new Set();
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  for (const dir of directories) rmSync(dir, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

function executable(file, otherwise) {
  if (!file) throw new Error(otherwise);
  accessSync(file, constants.X_OK);
  return path.resolve(file);
}

/** Waits until `condition` gives something truthy, and gives it back; fails after `ms`, saying `what` was awaited. */
export async function until(what, condition, ms = 60_000) {
  const end = Date.now() + ms;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${ms / 1000} s: ${typeof what === 'function' ? await what() : what}`);
    await new Promise((done) => setTimeout(done, LOOK_MS));
  }
}

export function temporaryDirectory() {
  const dir = mkdtempSync(path.join(tmpdir(), 'tidelog-browser-'));
  directories.add(dir);
  return dir;
}

/**
 * A port that is free now and will be for the next minutes: below the range from which the system takes the ports of
 * outgoing connections. One of those could sit on the server's port while the server is dead.
 */
export async function freePort() {
  for (let attempt = 0; attempt < 100; attempt += 1) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const free = await new Promise((done) => {
      const probe = net.createServer().once('error', () => done(false)).listen(port, '127.0.0.1', () => probe.close(() => done(true)));
    });
    if (free) return port;
  }
  throw new Error('no free port in 20000-31999');
}

// The server takes its settings from TIDELOG_ variables, and refuses those that it does not know.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('TIDELOG_')));

/** A program that runs until it is stopped; remembers its stdout by lines and the end of its stderr. */
export class Program {
  constructor(file, args) {
    this.lines = [];
    this.told = '';
    this.ended = null;
    this.child = spawn(file, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    children.add(this.child);
    let rest = '';
    this.child.stdout.setEncoding('utf8').on('data', (text) => {
      const lines = (rest + text).split('\n');
      rest = lines.pop();
      this.lines.push(...lines);
    });
    this.child.stderr.setEncoding('utf8').on('data', (text) => (this.told = (this.told + text).slice(-TOLD_BYTES)));
    this.exit = new Promise((done) => {
      const end = (how) => {
        children.delete(this.child);
        this.ended = how;
        done(how);
      };
      this.child.once('error', (error) => end(error.message)).once('exit', (code, signal) => end(`exit ${code ?? signal}`));
    });
  }

  /** The first line that matches, as soon as it is there. */
  async line(pattern, ms = START_MS) {
    const find = () => this.lines.map((line) => pattern.exec(line)).find(Boolean);
    const what = () => `a line like ${pattern} (ended: ${this.ended}; stdout: ${this.lines.join(' | ')}; stderr: ${this.told})`;
    const found = await until(what, () => find() ?? (this.ended && 'ended'), ms);
    if (found === 'ended') throw new Error(`ended before ${what()}`);
    return found;
  }

  async stop(signal = 'SIGKILL') {
    if (this.ended === null) this.child.kill(signal);
    await until(`the end of ${this.child.spawnfile} after ${signal}`, () => this.ended !== null);
  }
}

/** A tidelog server with a directory of its own, on one port through all its lives. */
export class Server {
  constructor({ settings = {} } = {}) {
    this.settings = settings;
    this.dir = temporaryDirectory();
    this.kills = 0;
  }

  async start() {
    this.port ??= await freePort();
    const args = ['serve', '--listen', `127.0.0.1:${this.port}`, '--data', path.join(this.dir, 'data')];
    for (const [key, value] of Object.entries(this.settings)) args.push('--set', `${key}=${value}`);
    this.program = new Program(TIDELOG, args);
    const [, url] = await this.program.line(/^listening on (http:\/\/\S+)$/);
    this.url = url;
    this.risen?.();
    return this;
  }

  /** Ends it with `signal`, and starts it again on the same port and directory. `up` is a promise for the new life. */
  async restart(signal = 'SIGKILL') {
    this.up = new Promise((done) => (this.risen = done));
    this.kills += 1;
    await this.program.stop(signal);
    await this.start();
  }

  async stop() {
    await this.program?.stop();
    rmSync(this.dir, { recursive: true, force: true });
    directories.delete(this.dir);
  }
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });

/** One request, its whole answer; rejects when the connection breaks or nothing comes for 30 s. */
export function request(url, { method = 'GET', headers = {}, body } = {}) {
  return new Promise((done, fail) => {
    const sent = http.request(url, { method, headers, agent, timeout: 30_000 }, (answer) => {
      const chunks = [];
      answer.on('data', (chunk) => chunks.push(chunk)).once('error', fail).once('end', () => {
        const bytes = Buffer.concat(chunks);
        done({ status: answer.statusCode, headers: answer.headers, bytes, json: () => JSON.parse(bytes.toString('utf8')) });
      });
    });
    sent.once('timeout', () => sent.destroy(new Error(`nothing for 30 s from ${url}`))).once('error', fail);
    sent.end(body);
  });
}

/** Every event that matches, by JSON pages. */
export async function everything(server, topics) {
  const events = [];
  const query = topics.map((topic) => `topic=${encodeURIComponent(topic)}`).join('&');
  for (let from = 'earliest', tail = 0; ; ) {
    const page = (await request(`${server.url}/events?${query}&from=${from}&limit=1000`, { headers: { Accept: 'application/json' } })).json();
    if (!Array.isArray(page.events)) throw new Error(`no page: ${JSON.stringify(page)}`);
    events.push(...page.events);
    tail = page.tail;
    if (page.next > tail) return events;
    if (page.next === from) throw new Error(`the page from ${from} leads nowhere (tail ${tail})`);
    from = page.next;
  }
}

/** A headless Chromium of the system. */
export async function browser() {
  const names = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome'];
  const found = process.env.CHROMIUM_BIN ?? names.flatMap((name) => process.env.PATH.split(':').map((dir) => path.join(dir, name))).find(runs);
  if (!found) throw new Error('no Chromium found: install chromium, or name one in CHROMIUM_BIN');
  const quiet = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--no-proxy-server', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'];
  return chromium.launch({ executablePath: found, headless: true, args: quiet });
}

/** Ubuntu's chromium-browser is a stub that only says that the snap is wanted. */
function runs(file) {
  return spawnSync(file, ['--version'], { stdio: 'ignore', timeout: 30_000 }).status === 0;
}

/** Random numbers that are the same in every run: mulberry32. `below(n)` is an integer from 0 to n - 1. */
export function seeded(seed) {
  let state = seed;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return { next, below: (n) => Math.floor(next() * n) };
}
