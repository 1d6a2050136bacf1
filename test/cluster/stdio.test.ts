import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, closeSync, constants, mkdirSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import * as rpc from '../../src/rpc/containerd.ts';
import { BUSYBOX, Containerd, must, TaskClient } from '../support/cluster/index.ts';
import { kill9, until } from '../support/env.ts';
import { Terminal } from '../support/terminal.ts';

// What goes in and out of a task's processes, by every way that containerd has. Streams of every size are test/cluster/soak.test.ts's.

const KATA = ['--runtime', 'io.containerd.kata.v2'];
const { O_RDONLY, O_NONBLOCK } = constants;
const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

/** A reader that takes what is there when it is asked, and no more. */
class FifoReader {
  readonly #fd: number;
  text = '';
  /** No writer is there. */
  isEnded = false;

  constructor(path: string) {
    this.#fd = openSync(path, O_RDONLY | O_NONBLOCK);
  }

  /** Reads at most once. */
  read(size = 65_536): void {
    const buffer = Buffer.alloc(size);
    try {
      const count = readSync(this.#fd, buffer);
      this.isEnded = count === 0;
      this.text += buffer.toString('latin1', 0, count);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }

  async shows(text: string): Promise<void> {
    await until(
      () => {
        this.read();
        return this.text.includes(text);
      },
      `${JSON.stringify(text)} is read`,
    );
  }

  close(): void {
    closeSync(this.#fd);
  }
}

let containerd: Containerd;
let tasks: TaskClient;
let fifos: string;
before(async () => {
  containerd = await Containerd.start({ version: '1.6', kata: true });
  await containerd.pullForCtr(BUSYBOX);
  await containerd.ctr('run', ...KATA, '-d', BUSYBOX, 'host', 'sleep', '10000');
  tasks = await TaskClient.connect(containerd);
  // Longer than the path of a socket can be.
  fifos = join(containerd.directory, `fifos of ${'x'.repeat(100)}`);
  mkdirSync(fifos);
});
after(async () => {
  tasks?.close();
  assert.deepEqual(await containerd?.dispose(), []);
});

let execs = 0;
const exec = (...args: string[]): string[] => ['task', 'exec', '--exec-id', `e${++execs}`, 'host', ...args];
const fifo = (name: string): string => {
  const path = join(fifos, name);
  must('mkfifo', path);
  return path;
};
const isStopped = (id: string): Promise<void> =>
  until(
    async () => new RegExp(`^${id} +\\d+ +STOPPED`, 'm').test(await containerd.ctr('task', 'ls')),
    `${id} has ended`,
  );
const remove = async (id: string): Promise<void> => {
  await containerd.run('ctr', ['task', 'rm', '--force', id]);
  await containerd.ctr('container', 'rm', id);
};

test('both outputs and the input at once, of a task and of an exec', async () => {
  const bytes = randomBytes(4 * 2 ** 20 + 1);
  const script = ['sh', '-c', 'cat; echo done >&2; exit 4'];
  for (const args of [['run', ...KATA, '--rm', BUSYBOX, 'own', ...script], exec(...script)]) {
    const { code, stdout, stderr } = await containerd.run('ctr', args, { stdin: bytes });
    assert.deepEqual([code, stdout.length, digest(stdout)], [4, bytes.length, digest(bytes)]);
    assert.match(stderr, /done\n$/);
  }
});

test('a terminal: its size, a change of it, its interrupt key, and the exit code', async () => {
  for (const args of [
    ['run', ...KATA, '--rm', '-t', BUSYBOX, 'terminal', 'sh'],
    ['task', 'exec', '-t', '--exec-id', 'terminal', 'host', 'sh'],
  ]) {
    const terminal = new Terminal(containerd.command('ctr', args), { rows: 33, columns: 101 });
    try {
      // A ctr sets the size right after the start.
      await terminal.ask('until [ "$(stty size)" = "33 101" ]; do sleep 0.1; done; echo size-$((1+1))', /size-2/);
      terminal.resize({ rows: 44, columns: 99 });
      await terminal.ask('until [ "$(stty size)" = "44 99" ]; do sleep 0.1; done; echo size-$((2+1))', /size-3/);
      // Without job control: the key's signal reaches the shell whatever it runs at that moment.
      const trap = `exec sh -c 'trap "echo caught-$((3+1)); exit 6" INT; tty; while :; do sleep 0.1; done'`;
      await terminal.ask(trap, /\/dev\/pts\/\d/);
      await terminal.ask('\x03', /caught-4/);
      assert.equal(await terminal.exit(), 6);
    } finally {
      terminal.kill();
    }
  }
});

test('a reader comes late, goes, and comes again: nothing is lost', async () => {
  const [stdin, stdout] = [fifo('late-in'), fifo('late-out')];
  await tasks.exec('host', 'late', ['sh', '-c', 'echo 1; read x; echo 2; echo 2 > /second; read x; echo 3'], {
    stdin,
    stdout,
  });
  await tasks.start('host', 'late');
  const first = new FifoReader(stdout);
  await first.shows('1\n');
  first.close();
  writeFileSync(stdin, '\n');
  await containerd.ctr(...exec('sh', '-c', 'until [ -s /second ]; do sleep 0.1; done'));
  const second = new FifoReader(stdout);
  await second.shows('2\n');
  writeFileSync(stdin, '\n');
  await second.shows('3\n');
  assert.equal(second.text, '2\n3\n');
  assert.equal(await tasks.wait('host', 'late'), 0);
  second.close();
  await tasks.delete('host', 'late');
});

test('without a reader a process waits, and nobody else does', async () => {
  const stdout = fifo('unread');
  await tasks.exec('host', 'unread', ['head', '-c', '16000000', '/dev/zero'], { stdout });
  await tasks.start('host', 'unread');
  assert.equal(await tasks.status('host'), rpc.TaskStatus.RUNNING);
  await containerd.ctr(...exec('sh', '-c', 'until ps | grep -q "[h]ead"; do sleep 0.1; done'));
  // Its exit waits for a reader, but not for ever.
  await tasks.kill('host', 'unread', 9);
  assert.equal(await tasks.wait('host', 'unread'), 137);
  await tasks.delete('host', 'unread');
});

test('the exit comes after the last byte, however slow the reader is', async () => {
  const stdout = fifo('slow');
  // No more than pipes and sockets hold: the process ends although nobody reads.
  const size = 200_000;
  await tasks.exec('host', 'slow', ['sh', '-c', `head -c ${size} /dev/zero; echo > /slow; exit 9`], { stdout });
  await tasks.start('host', 'slow');
  await containerd.ctr(...exec('sh', '-c', 'until [ -s /slow ]; do sleep 0.1; done'));
  const reader = new FifoReader(stdout);
  let exit: { status: number; afterBytes: number } | undefined;
  const told = tasks.wait('host', 'slow').then((status) => {
    exit = { status, afterBytes: reader.text.length };
  });
  await until(() => {
    reader.read(8192);
    return reader.isEnded;
  }, 'the end is read');
  await told;
  assert.equal(reader.text.length, size);
  assert.equal(exit?.status, 9);
  // A pipe takes 64 KiB.
  assert.ok((exit?.afterBytes ?? 0) >= size - 65_536, `told after ${exit?.afterBytes} bytes`);
  reader.close();
  await tasks.delete('host', 'slow');
});

test('writers come and go, and CloseIO is the end', async () => {
  const [stdin, stdout] = [fifo('closed-in'), fifo('closed-out')];
  await tasks.exec('host', 'closed', ['sh', '-c', 'cat; echo end'], { stdin, stdout });
  await tasks.start('host', 'closed');
  const reader = new FifoReader(stdout);
  for (const text of ['one\n', 'two\n']) {
    writeFileSync(stdin, text);
    await reader.shows(text);
  }
  await tasks.closeInput('host', 'closed');
  await reader.shows('end\n');
  assert.equal(reader.text, 'one\ntwo\nend\n');
  assert.equal(await tasks.wait('host', 'closed'), 0);
  reader.close();
  await tasks.delete('host', 'closed');
});

test('a client that is killed leaves the task alone, and the next one goes on', async () => {
  const script = 'while read -r line; do echo "heard $line"; done';
  const client = (...args: string[]) => {
    const child = containerd.start('ctr', args, { stdin: 'pipe' });
    const heard = { child, text: '' };
    child.stdout?.on('data', (data) => {
      heard.text += data;
    });
    return heard;
  };
  const first = client('run', ...KATA, BUSYBOX, 'attached', 'sh', '-c', script);
  first.child.stdin?.write('one\n');
  await until(() => first.text === 'heard one\n', 'the first client is heard');
  await kill9(first.child.pid as number);
  const second = client('task', 'attach', 'attached');
  second.child.stdin?.write('two\n');
  await until(() => second.text === 'heard two\n', 'the second client is heard');
  const closed = once(second.child, 'close');
  await containerd.ctr('task', 'kill', '-s', 'KILL', 'attached');
  await closed;
  await remove('attached');
});

test('file:// keeps both outputs, in a directory that is made for it', async () => {
  const path = join(containerd.directory, 'made/for it/100%/log');
  const uri = `file://${encodeURI(path)}`;
  const script = ['sh', '-c', 'echo out; echo err >&2'];
  await containerd.ctr('run', ...KATA, '-d', '--log-uri', uri, BUSYBOX, 'filed', ...script);
  await isStopped('filed');
  assert.deepEqual(readFileSync(path, 'utf8').split('\n').sort(), ['', 'err', 'out']);
  await remove('filed');
});

test('binary:// gets both outputs to the last byte, also over the engine’s death', async () => {
  const [script, log] = [join(containerd.directory, 'log ger'), join(containerd.directory, 'logged to')];
  mkdirSync(log);
  // The end of number 5 says that it is ready: what is looked at is there before.
  writeFileSync(
    script,
    `#!/bin/sh
echo "$* $CONTAINER_ID $CONTAINER_NAMESPACE" > "$2/about"
exec 5>&-
cat <&4 > "$2/err" &
cat <&3 > "$2/out"
wait
echo > "$2/ended"
`,
  );
  chmodSync(script, 0o755);
  const uri = `binary://${encodeURI(script)}?to=${encodeURIComponent(log)}`;
  const count =
    'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; [ $((i % 300)) = 0 ] && sleep 0.2; done; echo no >&2';
  await containerd.ctr('run', ...KATA, '-d', '--log-uri', uri, BUSYBOX, 'logged', 'sh', '-c', count);
  const { engine } = JSON.parse(await containerd.kata('version', '--json')) as { engine: { pid: number } };
  await kill9(engine.pid);
  const text = (name: string): string => {
    try {
      return readFileSync(join(log, name), 'utf8');
    } catch {
      return '';
    }
  };
  await until(() => text('ended') !== '', 'the logger has ended');
  assert.equal(text('about'), `to ${log} logged default\n`);
  assert.equal(text('out'), Array.from({ length: 3000 }, (_, i) => `${i + 1}\n`).join(''));
  assert.equal(text('err'), 'no\n');
  await isStopped('logged');
  await remove('logged');
});

test('a logger that is not there is named; one that leaves at once takes nothing along', async () => {
  const run = (uri: string, id: string) =>
    containerd.run('ctr', ['run', ...KATA, '-d', '--log-uri', uri, BUSYBOX, id, 'sh', '-c', 'echo lost; exit 3']);
  assert.match((await run('binary:///nonexistent/logger', 'unlogged')).stderr, /nonexistent\/logger/);
  await containerd.ctr('container', 'rm', 'unlogged');
  // Its death says that it is ready, as with containerd's own shim.
  const left = await run('binary:///bin/false', 'left');
  assert.equal(left.code, 0, left.stderr);
  await isStopped('left');
  assert.match((await containerd.run('ctr', ['task', 'rm', 'left'])).stderr, /non-zero exit code 3/);
  await containerd.ctr('container', 'rm', 'left');
});
