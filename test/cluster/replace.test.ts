import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Containerd, engineBuild, Replacement } from '../support/cluster/index.ts';
import { until } from '../support/env.ts';

// What goes away under running pods: the cgroup that everything was started in, and katad, which another one replaces.
// test/cluster/upgrade does the second with a build of another commit.

const DOOMED = 'doomed';
const OWN_VERSION = '0.1.0';
const OTHER_VERSION = '0.1.0-other';
/** Of the first version one for each controller, of which some have two names. */
const hierarchies = (): string[] => {
  const root = '/sys/fs/cgroup';
  if (existsSync(join(root, 'cgroup.controllers'))) return [root];
  const directories = readdirSync(root).map((name) => realpathSync(join(root, name)));
  return [...new Set(directories)].filter((directory) => existsSync(join(directory, 'cgroup.procs')));
};
const members = (directory: string): string[] =>
  readFileSync(join(directory, DOOMED, 'cgroup.procs'), 'latin1')
    .split('\n')
    .filter(Boolean);

let containerd: Containerd;
let replacement: Replacement;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true });
  replacement = new Replacement(containerd);
  await containerd.stopDaemon();
  // As a service manager starts it: containerd, and so everything that it starts, is in a group of its own.
  for (const directory of hierarchies()) {
    mkdirSync(join(directory, DOOMED));
    for (const file of ['cpuset.cpus', 'cpuset.mems'])
      if (existsSync(join(directory, file)) && !existsSync(join(directory, 'cgroup.controllers')))
        writeFileSync(join(directory, DOOMED, file), readFileSync(join(directory, file)));
    writeFileSync(join(directory, DOOMED, 'cgroup.procs'), String(process.pid));
  }
  try {
    await containerd.startDaemon();
  } finally {
    for (const directory of hierarchies()) writeFileSync(join(directory, 'cgroup.procs'), String(process.pid));
  }
});
after(async () => {
  await replacement?.end();
  assert.deepEqual(await containerd?.dispose(), []);
});

test('the cgroup in which katad was started is removed: pods live on', async () => {
  await replacement.startPod('first');
  await containerd.stopDaemon();
  for (const directory of hierarchies()) {
    // What a service manager ends with its service.
    const left = members(directory).map((pid) => readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' '));
    assert.deepEqual(left, [], directory);
    await until(() => {
      try {
        rmdirSync(join(directory, DOOMED));
        return true;
      } catch {
        return false;
      }
    }, `${directory} is free`);
  }
  await containerd.startDaemon();
  await replacement.check();
});

test('katad is replaced by another build, and back, under pods: no stream ends, and the one that came last comes back', async () => {
  await replacement.startPod('second');
  await replacement.check();
  const own = engineBuild(join(containerd.directory, 'bin'));
  const script = own.engine.find((word) => word.endsWith('/katad.mjs')) ?? '';
  const elsewhere = join(containerd.directory, 'katad.mjs');
  writeFileSync(elsewhere, readFileSync(script, 'utf8').replaceAll(`"${OWN_VERSION}"`, `"${OTHER_VERSION}"`));
  const other = { ...own, engine: own.engine.map((word) => (word === script ? elsewhere : word)) };
  for (const [build, version] of [
    [other, OTHER_VERSION],
    [own, OWN_VERSION],
  ] as const) {
    assert.equal((await replacement.swap(build)).version, version);
    await replacement.check();
    assert.equal((await replacement.dies()).version, version);
    await replacement.check();
  }
});
