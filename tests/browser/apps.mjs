// What the tests of the examples in Python share: the examples' servers, which can be killed and started again, and a bad line
// between them and tidelog.

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort, Program, seeded } from './lib.mjs';

const EXAMPLES = fileURLToPath(new URL('../../examples', import.meta.url));
const PYTHON_WANTED = 'import sys, sqlite3; sys.exit(sys.version_info < (3, 9))';

/** PYTHON_BIN, else the system's; fails when that is not there, or too old. */
export function python() {
  const file = process.env.PYTHON_BIN ?? 'python3';
  const looked = spawnSync(file, ['-c', PYTHON_WANTED], { encoding: 'utf8', timeout: 30_000 });
  if (looked.status !== 0) throw new Error(`${file} is no Python 3.9 or later with sqlite3 (${looked.error?.message ?? looked.stderr}): install one, or name one in PYTHON_BIN`);
  return file;
}

/** The server.py of an example, on one port through all its lives. */
export class App {
  constructor(example, args = []) {
    this.example = example;
    this.args = args;
  }

  async start() {
    this.port ??= await freePort();
    const script = path.join(EXAMPLES, this.example, 'server.py');
    // -B: no bytecode among the sources.
    this.program = new Program(python(), ['-B', script, '--listen', `127.0.0.1:${this.port}`, ...this.args]);
    const [, url] = await this.program.line(new RegExp(`^${this.example} on (http://\\S+)/$`));
    this.url = url;
    return this;
  }

  async restart(signal = 'SIGKILL') {
    await this.program.stop(signal);
    await this.start();
  }

  async stop() {
    await this.program?.stop();
  }
}

/**
 * A bad line between a publisher and tidelog. Of the POSTs that it carries, `losing` of 100 are answered by a broken connection: tidelog
 * has acted on them, and their sender cannot know. A HEAD is held on its way there and on its way back for as long as `meanwhile` takes.
 */
export class Line {
  constructor(target, { losing, seed = 1 }) {
    this.lost = 0;
    this.meanwhile = async (_way) => {};
    const random = seeded(seed);
    const agent = new http.Agent({ keepAlive: true });
    this.listener = http.createServer(async (asked, answer) => {
      const broken = () => answer.destroy();
      if (asked.method === 'HEAD') await this.meanwhile('there');
      const sent = http.request(target + asked.url, { method: asked.method, headers: asked.headers, agent });
      sent.once('error', broken);
      sent.once('response', async (got) => {
        got.once('error', broken);
        if (asked.method === 'HEAD') await this.meanwhile('back');
        if (asked.method === 'POST' && random.below(100) < losing) {
          this.lost += 1;
          got.resume();
          broken();
          return;
        }
        answer.writeHead(got.statusCode, got.headers);
        got.pipe(answer);
      });
      asked.pipe(sent);
    });
  }

  async start() {
    this.listener.listen(0, '127.0.0.1');
    await once(this.listener, 'listening');
    this.url = `http://127.0.0.1:${this.listener.address().port}`;
    return this;
  }

  stop() {
    this.listener?.close();
    this.listener?.closeAllConnections();
  }
}
