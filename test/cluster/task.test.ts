import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { until } from '../support/env.ts';

// The task service as `ctr` uses it: one machine for the verbs, one for a pod of several containers.

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const annotated = (type: string) => [
  ...['--annotation', `io.kubernetes.cri.container-type=${type}`],
  ...['--annotation', 'io.kubernetes.cri.sandbox-id=pod'],
];

for (const version of ['1.6', '2'] as const)
  describe(`tasks on containerd ${version}`, () => {
    let containerd: Containerd;
    before(async () => {
      containerd = await Containerd.start({ version, kata: true });
      await containerd.pullForCtr(BUSYBOX);
    });
    after(async () => assert.deepEqual(await containerd?.dispose(), []));

    const refused = async (pattern: RegExp, ...args: string[]): Promise<void> => {
      const { code, stderr } = await containerd.run('ctr', args);
      assert.notEqual(code, 0, args.join(' '));
      assert.match(stderr, pattern, args.join(' '));
    };
    const statusOf = async (id: string): Promise<string> =>
      new RegExp(`^${id} +\\d+ +(\\S+)`, 'm').exec(await containerd.ctr('task', 'ls'))?.[1] ?? 'none';
    const isStopped = (id: string): Promise<void> =>
      until(async () => (await statusOf(id)) === 'STOPPED', `${id} is stopped`);
    const keys = (): string[] => readdirSync(join(containerd.kataRoot, 'run', 'k'));
    const nothingLeft = (): Promise<void> =>
      until(() => containerd.sandboxes().length + keys().length === 0, 'no sandbox is left');

    test('a container runs under its own kernel, and its exit code arrives', async () => {
      const host = readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim();
      const printed = await containerd.ctr('run', ...KATA, '--rm', BUSYBOX, 'uname', 'sh', '-c', 'uname -r; hostname');
      assert.notEqual(printed.split('\n')[0], host);
      const failed = await containerd.run('ctr', ['run', ...KATA, '--rm', BUSYBOX, 'seven', 'sh', '-c', 'exit 7']);
      assert.equal(failed.code, 7);
      await nothingLeft();
    });

    test('a command that is not there is named, and nothing is left', async () => {
      await refused(/\/nosuch.*(not found|No such file)/s, 'run', ...KATA, '--rm', BUSYBOX, 'nosuch', '/nosuch');
      await nothingLeft();
    });

    test('exec, pause, metrics, kill and delete, and what is refused', async () => {
      const trap = 'trap "exit 3" TERM; while true; do sleep 0.1; done';
      await containerd.ctr('run', ...KATA, '-d', BUSYBOX, 'verbs', 'sh', '-c', trap);
      const exec = (id: string, ...args: string[]) => ['task', 'exec', '--exec-id', id, 'verbs', ...args];
      assert.equal(await containerd.ctr(...exec('e1', 'echo', 'hi')), 'hi');
      const failing = await containerd.run('ctr', exec('e2', 'sh', '-c', 'echo no >&2; exit 5'));
      // A ctr of version 2 has a warning of its own on a host with cgroup v1.
      assert.deepEqual([failing.code, failing.stderr.split('\n').at(-2)], [5, 'no']);
      await refused(/nosuch/, ...exec('e3', '/nosuch'));
      assert.equal(await containerd.ok('ctr', exec('e4', 'cat'), { stdin: 'through\n' }), 'through');
      // Its input is at the end before it starts. Not every ctr says so then, but the task goes on, and the exec can be ended.
      const ended = containerd.run('ctr', exec('e5', 'wc', '-c'), { stdin: 'ignore' });
      assert.equal(await containerd.ctr(...exec('e6', 'echo', 'meanwhile')), 'meanwhile');
      assert.equal(await statusOf('verbs'), 'RUNNING');
      let isOver = false;
      void ended.then(() => {
        isOver = true;
      });
      await until(async () => {
        await containerd.run('ctr', ['task', 'kill', '-s', 'KILL', '--exec-id', 'e5', 'verbs']);
        return isOver;
      }, 'the exec is over');
      assert.ok([0, 137].includes((await ended).code ?? -1));
      assert.match(await containerd.ctr('task', 'ps', 'verbs'), /^PID/);
      assert.match(await containerd.ctr('task', 'metrics', 'verbs'), /pids\.current\s+[1-9]/);
      await containerd.ctr('task', 'pause', 'verbs');
      assert.equal(await statusOf('verbs'), 'PAUSED');
      await refused(/paused/, 'task', 'pause', 'verbs');
      await containerd.ctr('task', 'resume', 'verbs');
      assert.equal(await statusOf('verbs'), 'RUNNING');
      await refused(/must be stopped/, 'task', 'rm', 'verbs');
      await containerd.ctr('task', 'kill', '-s', 'TERM', 'verbs');
      await isStopped('verbs');
      await refused(/has ended already/, 'task', 'kill', '-s', 'KILL', 'verbs');
      assert.match((await containerd.run('ctr', ['task', 'rm', 'verbs'])).stderr, /non-zero exit code 3/);
      await containerd.ctr('container', 'rm', 'verbs');
      await nothingLeft();
    });

    test('a frozen task can be killed', async () => {
      await containerd.ctr('run', ...KATA, '-d', BUSYBOX, 'frozen', 'sleep', '1000');
      await containerd.ctr('task', 'pause', 'frozen');
      await containerd.ctr('task', 'kill', '-s', 'KILL', 'frozen');
      await isStopped('frozen');
      await containerd.run('ctr', ['task', 'rm', 'frozen']);
      await containerd.ctr('container', 'rm', 'frozen');
      await nothingLeft();
    });

    test('a pod of several containers is one machine', async () => {
      await containerd.ctr('run', ...KATA, '-d', ...annotated('sandbox'), BUSYBOX, 'pod', 'sleep', '1000');
      for (const id of ['one', 'two'])
        await containerd.ctr('run', ...KATA, '-d', ...annotated('container'), BUSYBOX, id, 'sleep', '1000');
      assert.equal(containerd.sandboxes().length, 1);
      const pids = [...(await containerd.ctr('task', 'ls')).matchAll(/^\S+ +(\d+) +RUNNING/gm)].map(
        (match) => match[1],
      );
      assert.deepEqual([pids.length, new Set(pids).size], [3, 1]);
      const echoed = await containerd.ctr(
        ...['run', ...KATA, '--rm', ...annotated('container'), BUSYBOX, 'three', 'echo', 'third'],
      );
      assert.equal(echoed, 'third');
      // The second is removed while the first's end is on its way.
      for (const id of ['one', 'two']) await containerd.ctr('task', 'kill', '-s', 'KILL', id);
      for (const id of ['two', 'one']) {
        await isStopped(id);
        await containerd.run('ctr', ['task', 'rm', id]);
        await containerd.ctr('container', 'rm', id);
      }
      assert.equal(await statusOf('pod'), 'RUNNING');
      await containerd.ctr('task', 'kill', '-s', 'KILL', 'pod');
      await isStopped('pod');
      await containerd.run('ctr', ['task', 'rm', 'pod']);
      await containerd.ctr('container', 'rm', 'pod');
      await nothingLeft();
    });
  });
