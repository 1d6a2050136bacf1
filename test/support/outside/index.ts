import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';

/** Addresses of the outside world, and of this namespace towards it. */
export const OUTSIDE = {
  first: '203.0.113.1',
  second: '203.0.113.2',
  v6: '2001:db8::1',
  metadata: '169.254.169.254',
  here: '203.0.113.254',
  here6: '2001:db8::fe',
} as const;
export const OUTSIDE_PORTS = [80, 443, 8443];

/** What its DNS server knows. */
const RECORDS = {
  'ok.example': { a: [OUTSIDE.first], aaaa: [OUTSIDE.v6] },
  'www.ok.example': { cname: 'ok.example' },
  'bad.example': { a: [OUTSIDE.second] },
  'meta.ok.example': { a: [OUTSIDE.metadata] },
  'big.ok.example': { a: [OUTSIDE.first] },
};

function must(argv: readonly [string, ...string[]]): void {
  const [file, ...args] = argv;
  const { status, stderr } = spawnSync(file, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${argv.join(' ')}: ${stderr}`);
}

/**
 * A second network namespace beyond a veth: the way out of the test's own, with a DNS server that /etc/resolv.conf names. For a test
 * that has network and mount namespaces of its own.
 */
export class Outside {
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #dir: string;

  private constructor(child: ChildProcess, dir: string) {
    this.#child = child;
    this.#dir = dir;
    this.#lines = createInterface({ input: child.stdout as NodeJS.ReadableStream });
  }

  static async open(): Promise<Outside> {
    const script = join(import.meta.dirname, 'server.ts');
    const args = [script, JSON.stringify(RECORDS), JSON.stringify(OUTSIDE_PORTS)];
    const child = spawn('unshare', ['-n', process.execPath, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
    const dir = mkdtempSync(join(tmpdir(), 'kt-outside-'));
    const outside = new Outside(child, dir);
    await once(outside.#lines, 'line');
    const pid = String(child.pid);
    const there = (...words: string[]): void => must(['nsenter', '-t', pid, '-n', 'ip', ...words]);
    must(['ip', 'link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'world0', 'netns', pid]);
    must(['ip', 'link', 'set', 'up0', 'up']);
    must(['ip', 'address', 'add', `${OUTSIDE.here}/24`, 'dev', 'up0']);
    must(['ip', 'address', 'add', `${OUTSIDE.here6}/64`, 'dev', 'up0', 'nodad']);
    there('link', 'set', 'lo', 'up');
    there('link', 'set', 'world0', 'up');
    for (const address of [`${OUTSIDE.first}/24`, `${OUTSIDE.second}/24`])
      there('address', 'add', address, 'dev', 'world0');
    there('address', 'add', `${OUTSIDE.v6}/64`, 'dev', 'world0', 'nodad');
    there('address', 'add', `${OUTSIDE.metadata}/32`, 'dev', 'lo');
    must(['ip', 'route', 'add', 'default', 'via', OUTSIDE.first]);
    must(['ip', '-6', 'route', 'add', 'default', 'via', OUTSIDE.v6]);
    const file = join(dir, 'resolv.conf');
    writeFileSync(file, `nameserver ${OUTSIDE.first}\nsearch example\n`);
    must(['mount', '--bind', file, '/etc/resolv.conf']);
    return outside;
  }

  /** Routes to the sandboxes' networks by way of this host, as a neighbour would try it. */
  routeTo(subnet: string): void {
    must(['nsenter', '-t', String(this.#child.pid), '-n', 'ip', 'route', 'add', subnet, 'via', OUTSIDE.here]);
  }

  /** What a client there gets. */
  async fetch(url: string): Promise<{ status: number; body: string }> {
    const answer = once(this.#lines, 'line');
    this.#child.stdin?.write(`${url}\n`);
    return JSON.parse(String((await answer)[0]));
  }

  async close(): Promise<void> {
    const ended = once(this.#child, 'close');
    this.#child.stdin?.end();
    await ended;
    must(['umount', '/etc/resolv.conf']);
    // Goes with the other namespace, which the kernel takes apart later.
    spawnSync('ip', ['link', 'delete', 'up0']);
    rmSync(this.#dir, { recursive: true });
  }
}
