import assert from 'node:assert/strict';
import { readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BUSYBOX, Containerd, type Pod, STOPPED_BY_USR1 } from '../support/cluster/index.ts';
import { kill9, until } from '../support/env.ts';
import { Terminal } from '../support/terminal.ts';

// What kubelet does with a pod's containers beyond critest's specs (test/critest), which have exec, attach and logs of their own.

/** CRI's NamespaceMode: the containers of a pod have one pid namespace, or each its own. */
const pids = (mode: 'pod' | 'container') => ({
  security_context: { namespace_options: { pid: mode === 'pod' ? 0 : 1 } },
});
const OWN_PIDS = pids('container');

let containerd: Containerd;
let pod: Pod;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true });
  pod = await containerd.runPod('kata', { name: 'p', linux: OWN_PIDS });
});
after(async () => assert.deepEqual(await containerd?.dispose(), []));

const run = (name: string, script: string, more: object = {}): Promise<string> =>
  containerd.runContainer(pod, {
    ...{ name, image: BUSYBOX, command: ['sh', '-c', script], linux: OWN_PIDS },
    ...more,
  });
const exec = (id: string, ...args: string[]): Promise<string> => containerd.crictl('exec', '--sync', id, ...args);
const exitOf = async (id: string): Promise<number> => {
  let code = -1;
  await until(async () => {
    const { status } = (await containerd.inspect('container', id)) as { status: { state: string; exitCode: number } };
    code = status.exitCode;
    return status.state === 'CONTAINER_EXITED';
  }, 'it has ended');
  return code;
};
/** An empty file of the host's, and the mount that a container sees it by. */
const hostFile = (name: string, path: string) => {
  const host = join(containerd.directory, name);
  writeFileSync(host, '');
  return { text: () => readFileSync(host, 'utf8'), mounts: [{ container_path: path, host_path: host }] };
};

test('the pid of the pod is a process in its network, the same one for all containers and for its whole life', async () => {
  const tasks = async (): Promise<string[]> =>
    [...(await containerd.ctr('-n', 'k8s.io', 'task', 'ls')).matchAll(/^\S+ +(\d+) +RUNNING/gm)].map(
      ([, pid = '']) => pid,
    );
  const { info } = (await containerd.inspect('pod', pod.id)) as {
    info: { pid: number; runtimeSpec: { linux: { namespaces: { type: string; path?: string }[] } } };
  };
  const { path = '' } = info.runtimeSpec.linux.namespaces.find(({ type }) => type === 'network') ?? {};
  const network = `net:[${statSync(path).ino}]`;
  assert.notEqual(readlinkSync('/proc/self/ns/net'), network);
  assert.equal(readlinkSync(`/proc/${info.pid}/ns/net`), network);
  const id = await run('short', 'sleep 10000');
  assert.deepEqual(await tasks(), [String(info.pid), String(info.pid)]);
  const { engine } = JSON.parse(await containerd.kata('version', '--json')) as { engine: { pid: number } };
  await kill9(engine.pid);
  await containerd.crictl('stop', '--timeout', '0', id);
  await containerd.crictl('rm', id);
  assert.deepEqual(await tasks(), [String(info.pid)]);
  assert.equal(readlinkSync(`/proc/${info.pid}/ns/net`), network);
});

test('init containers run one after the other, and what they leave in a volume is there', async () => {
  const { mounts } = hostFile('volume', '/volume');
  for (const name of ['init-1', 'init-2'])
    assert.equal(await exitOf(await run(name, `echo ${name} >> /volume`, { mounts })), 0);
  const main = await run('main', 'sleep 10000', { mounts });
  assert.equal(await exec(main, 'cat', '/volume'), 'init-1\ninit-2');
  await containerd.crictl('rm', '--force', main);
});

test('a container is started again and again beside another one that does not notice', async () => {
  const beside = await run('beside', 'echo 1 > /count; sleep 10000');
  for (let attempt = 0; attempt < 3; attempt += 1) {
    const again = await run('again', `test ! -e /count && echo 1 > /count; exit ${attempt}`);
    assert.equal(await exitOf(again), attempt);
    await containerd.crictl('rm', again);
  }
  assert.equal(await exec(beside, 'cat', '/count'), '1');
  await containerd.crictl('rm', '--force', beside);
});

test('a stop is the signal, once, and time to end by it; then the kill', async () => {
  const trapping = (...names: string[]): string =>
    `${names.map((name) => `trap 'echo ${name} >> /said; [ ${name} = INT ] || { sleep 1; exit 21; }' ${name}`).join('; ')}
    echo ready >> /said; while :; do sleep 0.1; done`;
  for (const [name, image, signal] of [
    ['asked', BUSYBOX, 'TERM'],
    ['asked-by-image', STOPPED_BY_USR1, 'USR1'],
  ] as const) {
    const said = hostFile(name, '/said');
    const id = await run(name, trapping('TERM', 'USR1', 'INT'), { image, mounts: said.mounts });
    await until(() => said.text() === 'ready\n', 'it waits for signals');
    await containerd.crictl('stop', '--timeout', '60', id);
    assert.equal(await exitOf(id), 21);
    assert.equal(said.text(), `ready\n${signal}\n`);
  }
  const stubborn = await run('stubborn', 'trap "" TERM; while :; do sleep 0.1; done');
  await containerd.crictl('stop', '--timeout', '1', stubborn);
  assert.equal(await exitOf(stubborn), 137);
});

test('a message of termination is where kubelet reads it', async () => {
  const message = hostFile('message', '/dev/termination-log');
  const script = 'printf "no disk" > /dev/termination-log; exit 3';
  assert.equal(await exitOf(await run('last-words', script, { mounts: message.mounts })), 3);
  assert.equal(message.text(), 'no disk');
});

test('a container with a terminal: attached to, resized, left, attached to again; the log has it all', async () => {
  const id = await run('interactive', 'exec sh', { stdin: true, tty: true });
  for (const { rows, columns, word } of [
    { rows: 31, columns: 97, word: 'first' },
    { rows: 41, columns: 99, word: 'second' },
  ]) {
    const terminal = new Terminal(containerd.command('crictl', ['attach', '-it', id]), { rows: 20, columns: 50 });
    try {
      await terminal.ask(`echo ${word}-$((1+1))`, new RegExp(`${word}-2`));
      terminal.resize({ rows, columns });
      const line = `until [ "$(stty size)" = "${rows} ${columns}" ]; do sleep 0.1; done; echo size-$((2+1))`;
      await terminal.ask(line, /size-3/);
    } finally {
      terminal.kill();
    }
  }
  const log = await containerd.crictl('logs', id);
  assert.ok(log.indexOf('first-2') > 0 && log.indexOf('second-2') > log.indexOf('first-2'), log);
});

test('a shared pid namespace is the pod’s, and each container ends for itself', async () => {
  const linux = pids('pod');
  const shared = await containerd.runPod('kata', { name: 'shared', linux });
  const add = (name: string, ...command: string[]) =>
    containerd.runContainer(shared, { name, image: BUSYBOX, command, linux });
  const one = await add('one', 'sleep', '10001');
  const two = await add('two', 'sleep', '10002');
  const processes = await exec(two, 'ps', '-o', 'pid,args');
  assert.match(processes, /^ +1 .*pause/m);
  assert.match(processes, /sleep 10001/);
  await exec(two, 'sh', '-c', 'kill -9 $(pgrep -f "^sleep 10001")');
  assert.equal(await exitOf(one), 137);
  const rest = await exec(two, 'ps', '-o', 'args');
  assert.ok(rest.includes('sleep 10002') && !rest.includes('sleep 10001'), rest);
  await containerd.crictl('rmp', '--force', shared.id);
});
