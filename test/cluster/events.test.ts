import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { ApiClient } from '../../src/api/index.ts';
import type { Failpoint } from '../../src/sandbox/index.ts';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';
import { kill9, until } from '../support/env.ts';

// What containerd is told of tasks, also while it or the engine is away; and that tasks do not mind its death.

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const MEMORY = String(64 * 2 ** 20);
let probes = 0;

interface Told {
  at: string;
  topic: string;
  event: { container_id?: string; id?: string; exec_id?: string; exit_status?: number };
}

/** What `ctr events` prints, from its start on. */
class Listener {
  readonly #child: ChildProcess;
  #text = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stdout?.on('data', (data) => {
      this.#text += data;
    });
  }

  /** Resolves when it is subscribed. */
  static async start(containerd: Containerd): Promise<Listener> {
    const listener = new Listener(containerd.start('ctr', ['events']));
    await until(async () => {
      const name = `probe-${++probes}`;
      await containerd.ctr('namespaces', 'create', name);
      await containerd.ctr('namespaces', 'remove', name);
      return listener.#text.includes('probe-');
    }, 'it hears something');
    return listener;
  }

  /** Lines are "2026-11-21 16:00:00.1 +0000 UTC default /tasks/exit {…}". */
  of(id: string): Told[] {
    return this.#text.split('\n').flatMap((line) => {
      const [, at = '', topic = '', json = '{}'] = /^(\S+ \S+) \S+ \S+ \S+ \/tasks\/(\S+) (\{.*\})$/.exec(line) ?? [];
      const event = JSON.parse(json) as Told['event'];
      return event.container_id === id ? [{ at, topic, event }] : [];
    });
  }

  close(): void {
    this.#child.kill();
  }
}

/** "exit e1 5" */
const brief = ({ topic, event }: Told): string => {
  const who = topic === 'exit' ? event.id : event.exec_id;
  return [topic, who, topic === 'exit' || topic === 'delete' ? event.exit_status : undefined].filter(Boolean).join(' ');
};

/** Each once, by everything that is told of it: what comes again is the same event with the same time. */
const distinct = (all: readonly Told[]): Told[] => [
  ...new Map(all.map((one) => [JSON.stringify(one), one] as const)).values(),
];

for (const version of ['1.6', '2'] as const)
  describe(`events on containerd ${version}`, () => {
    let containerd: Containerd;
    before(async () => {
      containerd = await Containerd.start({ version, kata: true, environment: { KATA_FAILPOINTS: '1' } });
      await containerd.pullForCtr(BUSYBOX);
    });
    after(async () => assert.deepEqual(await containerd?.dispose(), []));

    const isStopped = (id: string): Promise<void> =>
      until(
        async () => new RegExp(`^${id} +\\d+ +STOPPED`, 'm').test(await containerd.ctr('task', 'ls')),
        `${id} has ended`,
      );
    const remove = async (id: string): Promise<string> => {
      const { stderr } = await containerd.run('ctr', ['task', 'rm', id]);
      await containerd.ctr('container', 'rm', id);
      return stderr;
    };
    const engine = async (): Promise<number> => {
      const answer = JSON.parse(await containerd.kata('version', '--json')) as { engine: { pid: number } };
      return answer.engine.pid;
    };
    /** The engine dies there once. It is started when none runs. */
    const dieAt = async (name: Failpoint): Promise<void> => {
      await containerd.kata('ps', '-q');
      const client = new ApiClient(join(containerd.kataRoot, 'run', 'katad.sock'));
      await client.call('armFailpoint', { body: { name, action: 'kill' } });
    };
    const queue = (suffix: '.jsonl' | '.sent'): string => {
      const directory = join(containerd.kataRoot, 'run', 'events');
      const [name = '', ...others] = readdirSync(directory).filter((one) => one.endsWith(suffix));
      assert.deepEqual(others, [], 'one containerd has one queue');
      return join(directory, name);
    };
    const sent = (): number => Number(readFileSync(queue('.sent'), 'utf8'));
    const lastQueued = (): number => {
      const lines = readFileSync(queue('.jsonl'), 'utf8').trimEnd().split('\n');
      return (JSON.parse(lines.at(-1) ?? '{}') as { n: number }).n;
    };

    test('a task’s events, in their order, also when the engine dies in the middle of each call', async () => {
      const listener = await Listener.start(containerd);
      const ctr = async (at: Failpoint, ...args: string[]): Promise<number | null> => {
        await dieAt(at);
        return (await containerd.run('ctr', args)).code;
      };
      const exec = (id: string, ...args: string[]) => ['task', 'exec', '--exec-id', id, 'told', ...args];
      try {
        const run = ['run', ...KATA, '-d', '--memory-limit', MEMORY, BUSYBOX, 'told', 'sleep', '10000'];
        assert.equal(await ctr('shim.done', ...run), 0);
        assert.equal(await ctr('shim.done', ...exec('e1', 'sh', '-c', 'exit 5')), 5);
        assert.equal(await ctr('exit.recorded', ...exec('e2', 'sh', '-c', 'sleep 1; exit 6')), 6);
        assert.equal(await ctr('exit.recorded', ...exec('e3', 'dd', 'if=/dev/zero', 'of=/dev/null', 'bs=100M')), 137);
        await until(() => listener.of('told').some(({ topic }) => topic === 'oom'), 'the kill is told');
        assert.equal(await ctr('shim.done', 'task', 'pause', 'told'), 0);
        assert.equal(await ctr('shim.finished', 'task', 'resume', 'told'), 0);
        assert.equal(await ctr('shim.killed', 'task', 'kill', '-s', 'KILL', 'told'), 0);
        await isStopped('told');
        await dieAt('shim.delete-recorded');
        assert.match(await remove('told'), /exit code 137/);
        await until(() => listener.of('told').at(-1)?.topic === 'delete', 'its deletion is told');
        const told = distinct(listener.of('told')).map(brief);
        // When the kernel's killing is told, the process may have ended, or not yet.
        assert.deepEqual(
          told.filter((one) => one !== 'oom'),
          [
            ...['create', 'start'],
            ...['exec-added e1', 'exec-started e1', 'exit e1 5'],
            ...['exec-added e2', 'exec-started e2', 'exit e2 6'],
            ...['exec-added e3', 'exec-started e3', 'exit e3 137'],
            ...['paused', 'resumed', 'exit told 137', 'delete 137'],
          ],
        );
        const oom = told.indexOf('oom');
        assert.ok(oom > told.indexOf('exec-started e3') && oom < told.indexOf('paused'), String(told));
        assert.equal(told.lastIndexOf('oom'), oom);
        // There was something to repeat.
        assert.ok(listener.of('told').length > told.length, String(listener.of('told').map(brief)));
      } finally {
        listener.close();
      }
    });

    test('containerd is killed under a task and a pod: both run on, and what happened meanwhile is told then', async () => {
      const go = join(containerd.directory, 'go');
      mkdirSync(go);
      const ends = (code: number) => ['sh', '-c', `until [ -e /go/on ]; do sleep 0.1; done; exit ${code}`];
      const pod = await containerd.runPod('kata', { name: 'p' });
      const stays = await containerd.runContainer(pod, { name: 'a', image: BUSYBOX, command: ['sleep', '10000'] });
      const mounts = [{ container_path: '/go', host_path: go }];
      const inPod = await containerd.runContainer(pod, { name: 'b', image: BUSYBOX, command: ends(6), mounts });
      const mount = `type=bind,src=${go},dst=/go,options=rbind:ro`;
      await containerd.ctr('run', ...KATA, '-d', '--mount', mount, BUSYBOX, 'ends', ...ends(7));
      await until(() => sent() === lastQueued(), 'everything is taken');
      await containerd.stopDaemon('SIGKILL');
      const before = sent();
      writeFileSync(join(go, 'on'), '');
      const exits = (): number =>
        readFileSync(queue('.jsonl'), 'utf8')
          .split('\n')
          .filter((line) => line.includes('"/tasks/exit"') && (JSON.parse(line) as { n: number }).n > before).length;
      await kill9(await engine());
      await until(() => exits() >= 2, 'both have ended while nobody listens');
      assert.equal(sent(), before);
      const wasGone = new Date().toISOString();
      await containerd.startDaemon();
      await until(() => sent() === lastQueued(), 'everything is taken');

      assert.equal(await containerd.crictl('exec', '--sync', stays, 'echo', 'lives'), 'lives');
      const { status } = (await containerd.inspect('container', inPod)) as {
        status: { exitCode: number; state: string; finishedAt: string };
      };
      assert.deepEqual([status.state, status.exitCode], ['CONTAINER_EXITED', 6]);
      assert.ok(new Date(status.finishedAt).toISOString() < wasGone, `it ended at ${status.finishedAt}`);
      assert.match(await containerd.ctr('task', 'ls'), /^ends +\d+ +STOPPED/m);

      // Nobody can listen before containerd is there. An engine that died before it noted what is taken sends that again.
      const listener = await Listener.start(containerd);
      try {
        const pid = await engine();
        process.kill(pid, 'SIGSTOP');
        writeFileSync(queue('.sent'), String(before));
        await kill9(pid);
        await until(() => listener.of('ends').some(({ topic }) => topic === 'exit'), 'it is told again');
        const exit = listener.of('ends').find(({ topic }) => topic === 'exit');
        assert.equal(exit && brief(exit), 'exit ends 7');
        assert.ok((exit?.at.replace(' ', 'T') ?? '~') < wasGone, `it ended at ${exit?.at}`);
        assert.match(await remove('ends'), /exit code 7/);
        await until(() => listener.of('ends').at(-1)?.topic === 'delete', 'events go on');
      } finally {
        listener.close();
      }
      await containerd.crictl('rmp', '--force', pod.id);
    });
  });
