import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../../base/index.ts';
import { Dashboard } from '../../dashboard/index.ts';
import type { Command } from '../command.ts';
import type { Context } from '../context.ts';
import { EngineSource } from '../dashboard-source.ts';
import { checkoutDir } from '../locations.ts';

export const command: Command = {
  name: 'dashboard',
  summary: 'Show sandboxes and containers, their load, starts, events and logs, on a page in a browser',
  usage: '[OPTIONS]',
  flags: [
    { long: 'open', kind: 'bool', help: 'Open the page in the desktop’s browser' },
    { long: 'port', short: 'p', kind: 'string', value: 'PORT', help: 'Port of 127.0.0.1 (default: one that is free)' },
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata dashboard', 'kata dashboard --port 8080'],
  notes: [
    'It prints the address and serves the page until it is interrupted. The address holds a token, without which nothing is told; the page shows and changes nothing. ' +
      'From another host: `ssh -L 8080:127.0.0.1:8080 HOST`, with the same port on both sides.',
  ],
  async run(context, flags) {
    const dashboard = new Dashboard(new EngineSource(() => context.runningClient()), readPage);
    const port = flags.integer('port', 0, 65535) ?? 0;
    let address: string;
    try {
      address = await dashboard.listen(port);
    } catch (cause) {
      throw new KataError('CONFLICT', `port ${port} of 127.0.0.1 cannot be taken: ${(cause as Error).message}`, {
        cause,
        hint: 'name another one with --port, or none',
      });
    }
    const opener = flags.bool('open') ? openPage(context, address) : undefined;
    try {
      await context.out(`${address}\n`);
      await Promise.race(['SIGINT', 'SIGTERM', 'SIGHUP'].map((name) => once(process, name)));
    } finally {
      opener?.undo();
      await dashboard.close();
    }
    return 0;
  },
};

/** The page's script is bundled with the command line; the rest is served as it stands in the sources. */
function readPage(name: string): Promise<Buffer> {
  const home = checkoutDir(import.meta.dirname);
  return readFile(name === 'app.js' ? join(home, 'dist/dashboard.mjs') : join(home, 'src/dashboard/page', name));
}

/** Everybody on the host can read a program's arguments: the browser is given a file that only root reads, and that leads on. */
function openPage(context: Context, address: string): { undo(): void } {
  const { run } = context.locations;
  const file = join(run, `dashboard-${process.pid}.html`);
  mkdirSync(run, { recursive: true, mode: 0o700 });
  writeFileSync(file, `<!doctype html><meta http-equiv="refresh" content="0; url=${address}">\n`, { mode: 0o600 });
  const child = spawn('xdg-open', [file], { stdio: 'ignore', detached: true });
  child.once('error', ({ message }) => void context.err(`no browser was opened: ${message}\n`));
  child.unref();
  return { undo: () => rmSync(file, { force: true }) };
}
