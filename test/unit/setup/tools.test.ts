import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { withFileLock } from '../../../src/setup/lock.ts';
import { installTool, readTools, recordTools, toolsFile } from '../../../src/setup/tools.ts';

let assets: string;
before(() => {
  assets = mkdtempSync(join(tmpdir(), 'kata-tools-'));
});
after(() => rmSync(assets, { recursive: true }));

const about = { version: '1', builtWith: 'test' };

test('a tool gets a place named by its content, and is not written twice', async () => {
  const file = join(assets, 'built');
  writeFileSync(file, 'one');
  const one = await installTool(assets, 'kata-keeper', file, about);
  const { ino, mtimeMs, mode } = statSync(one.path);
  assert.equal(one.path, join(assets, 'tools', `kata-keeper-${one.sha256.slice(0, 12)}`, 'kata-keeper'));
  assert.equal(mode & 0o777, 0o755);
  assert.deepEqual(await installTool(assets, 'kata-keeper', file, about), one);
  assert.deepEqual([statSync(one.path).ino, statSync(one.path).mtimeMs], [ino, mtimeMs]);
  writeFileSync(file, 'two');
  const two = await installTool(assets, 'kata-keeper', file, about);
  assert.notEqual(two.path, one.path);
  assert.equal(readFileSync(one.path, 'utf8'), 'one');
});

test('a damaged tool is put right', async () => {
  const file = join(assets, 'built');
  writeFileSync(file, 'three');
  const tool = await installTool(assets, 'busybox', file, about);
  writeFileSync(tool.path, 'thr');
  await installTool(assets, 'busybox', file, about);
  assert.equal(readFileSync(tool.path, 'utf8'), 'three');
});

test('records made at the same time are all kept, and a reader never sees half a file', async () => {
  const names = Array.from({ length: 20 }, (_, index) => `tool-${index}`);
  let reading = true;
  const reader = (async () => {
    let reads = 0;
    while (reading) {
      await readTools(assets);
      reads += 1;
    }
    return reads;
  })();
  const tool = (name: string) => ({ path: join(assets, name), sha256: 'x', ...about });
  await Promise.all(names.map((name) => recordTools(assets, { [name]: tool(name) })));
  reading = false;
  assert.ok((await reader) > 0);
  const tools = await readTools(assets);
  for (const name of names) assert.deepEqual(tools[name], tool(name));
  assert.deepEqual(
    readdirSync(assets).filter((name) => name.endsWith('.tmp')),
    [],
  );
});

test('paths below the assets are kept relative to them, others as they are', async () => {
  await recordTools(assets, { mine: { path: join(assets, 'tools/x'), sha256: '', ...about } });
  await recordTools(assets, { system: { path: '/usr/bin/x', sha256: '', ...about } });
  const stored = JSON.parse(readFileSync(toolsFile(assets), 'utf8'));
  assert.equal(stored.mine.path, 'tools/x');
  assert.equal(stored.system.path, '/usr/bin/x');
  assert.equal((await readTools(assets)).mine?.path, join(assets, 'tools/x'));
});

test('a record that is not complete is refused', async () => {
  const other = join(assets, 'other');
  mkdirSync(other);
  writeFileSync(toolsFile(other), JSON.stringify({ version: 1, 'kata-keeper': { path: 'x' } }));
  await assert.rejects(readTools(other), { code: 'STATE_CORRUPT' });
  writeFileSync(toolsFile(other), '{"version":1,');
  await assert.rejects(readTools(other), { code: 'STATE_CORRUPT' });
});

test('a lock that another process holds is waited for, and freed when that process is killed', async () => {
  const path = join(assets, 'lock');
  const holder: ChildProcess = spawn('flock', ['-x', path, 'sh', '-c', 'echo held; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'ignore'],
    detached: true,
  });
  await once(holder.stdout as NonNullable<typeof holder.stdout>, 'data');
  let waited = false;
  const onWait = () => {
    waited = true;
    process.kill(-(holder.pid as number), 'SIGKILL');
  };
  assert.equal(await withFileLock(path, async () => 'worked', { onWait }), 'worked');
  assert.equal(waited, true);
});

test('two holders in one process take turns', async () => {
  const path = join(assets, 'lock2');
  let inside = 0;
  const work = async () => {
    inside += 1;
    assert.equal(inside, 1);
    await new Promise((resolve) => setTimeout(resolve, 5));
    inside -= 1;
  };
  await Promise.all(Array.from({ length: 4 }, () => withFileLock(path, work)));
});
