import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import { FAILPOINTS, type Failpoint } from '../../src/sandbox/index.ts';
import { collect, HANG_GUARD_MS, isStopped, kill9, type Output, TestEnv, until } from '../support/env.ts';
import { keeperPid, sandboxDirs, spawnedPid } from '../support/sandbox-processes.ts';

// The keeper, and the virtual machine, are killed at every step of a start and of a stop. The engine stands still at the step
// meanwhile. One life of a container has a start that fails, one that works, and a stop.

const env = new TestEnv(undefined, { KATA_FAILPOINTS: '1' });
let engine = 0;
before(async () => {
  await env.ok(['run', '--rm', 'busybox', 'true']);
  engine = (await env.enginePid()) ?? 0;
});
after(async () => assert.deepEqual(await env.dispose(), []));

/** The steps from `first` to `last`, in the order in which they come. */
const steps = (first: Failpoint, last: Failpoint): Failpoint[] =>
  FAILPOINTS.slice(FAILPOINTS.indexOf(first), FAILPOINTS.indexOf(last) + 1);
/** Of a container that is alone in its machine; after the last one both are gone. */
const STOPS = steps('stop.recorded', 'end.recorded').filter((name) => name !== 'leave.disks-unplugged');

interface Victim {
  what: string;
  find(): number;
  starts: Failpoint[];
  /** What a person must read of a start that failed. */
  told: RegExp;
  /** How the container's end may be told: by what it died of, unless it had ended by itself before. */
  causes: RegExp;
}

const sandboxDir = (): string => {
  const [dir] = sandboxDirs(env.runDir);
  assert.ok(dir !== undefined, 'there is a sandbox');
  return dir;
};
/** Fails when there is none. */
const found = (pid: number | undefined): number => {
  assert.ok(pid !== undefined, 'the victim runs');
  return pid;
};

const VICTIMS: Victim[] = [
  {
    what: 'the keeper',
    find: () => found(keeperPid(sandboxDir())),
    starts: steps('start.keeper-launched', 'start.answer'),
    told: /keeper.*(SIGKILL|died)/,
    causes: /^(keeper-died|process)$/,
  },
  {
    what: 'the VMM',
    find: () => found(spawnedPid(sandboxDir(), 'vmm')),
    starts: steps('start.machine-started', 'start.answer'),
    told: /vmm.*killed by signal 9/,
    causes: /^(vmm-killed|process)$/,
  },
];

/** Runs a command; where the engine comes to `point`, the victim dies. */
async function dying(victim: Victim, point: Failpoint, ...command: string[]): Promise<Output> {
  await new ApiClient(join(env.runDir, 'katad.sock')).call('armFailpoint', { body: { name: point, action: 'pause' } });
  const ended = collect(env.start(command, { stdin: 'ignore' }), HANG_GUARD_MS, command.join(' '));
  await until(() => isStopped(engine), `${point} is reached`);
  try {
    await kill9(victim.find());
  } finally {
    process.kill(engine, 'SIGCONT');
  }
  return ended;
}

const left = (): string[] =>
  env.residue().flatMap(({ kind, what }) =>
    // The container is there until it is removed, the engine's files to the end.
    ['cgroup', 'mount', 'link', 'netns', 'loop'].includes(kind) || what.startsWith(join(env.runDir, 's'))
      ? [`${kind} ${what}`]
      : [],
  );
const nothingIsLeft = async (): Promise<void> =>
  until(() => left().length === 0, 'nothing is left').catch(() => assert.deepEqual(left(), []));

for (const victim of VICTIMS)
  for (const [index, start] of victim.starts.entries()) {
    const stop = STOPS[index];
    test(`${victim.what} dies at ${start}${stop === undefined ? '' : ` and at ${stop}`}`, async (t) => {
      t.after(() => env.kata(['rm', '-f', 'v']));
      const failed = await dying(victim, start, 'run', '--name', 'v', 'busybox', 'sleep', '100000');
      assert.notEqual(failed.code, 0);
      assert.match(failed.stderr, victim.told);
      assert.doesNotMatch(failed.stderr, /kata\.keeper\.v1\.Keeper\/\w+:|no answer within/);
      const { kata } = await env.inspect('v');
      assert.equal(kata.status, 'exited');
      assert.ok(kata.exit?.cause === 'start-failed' || victim.causes.test(kata.exit?.cause ?? ''), kata.exit?.cause);
      await nothingIsLeft();

      await env.ok(['start', 'v']);
      assert.equal(await env.ok(['exec', 'v', 'echo', 'again']), 'again');
      if (stop !== undefined) {
        await dying(victim, stop, 'stop', '-t', '0', 'v');
        assert.equal(await env.ok(['wait', 'v']), '137');
        const { exit } = (await env.inspect('v')).kata;
        assert.match(exit?.cause ?? '', victim.causes, JSON.stringify(exit));
      }
      await env.ok(['rm', '-f', 'v']);
      await nothingIsLeft();
      assert.equal(await env.enginePid(), engine, 'the engine is the same');
    });
  }
