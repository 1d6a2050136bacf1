import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { FRAME, frame } from '../../../src/api/frames.ts';
import { CreateContainer } from '../../../src/api/schemas.ts';
import { ERROR_CODES, KataError } from '../../../src/base/index.ts';
import { details, ended, FakeEngine, ID } from './engine.ts';

// The real command line as a process, against an engine and a keeper made of answers.

const GUARD = { timeout: 60_000 };
let engine: FakeEngine;
before(async () => {
  engine = await FakeEngine.start();
});
after(() => engine.stop());
beforeEach(() => {
  engine.calls.length = 0;
  for (const name of Object.keys(engine.handlers)) delete engine.handlers[name as 'version'];
  engine.handlers.createContainer = () => ({ id: ID, name: 'web', warnings: ['slow disk'], shares: false });
  engine.handlers.startContainer = ({ body }) =>
    (body as { attach?: unknown }).attach === undefined ? {} : { stream: engine.stream };
  engine.handlers.inspectContainer = () => details();
  engine.handlers.waitContainer = () => ({});
});

test('run: creates, starts attached, passes bytes and the exit code', GUARD, async () => {
  const running = engine.kata(['run', '--rm', '-i', '-e', 'A=1', 'busybox', 'cat', '-'], 'input');
  const peer = await engine.keeper.connection();
  peer.ready(100);
  await peer.until(() => peer.stdinEnded);
  peer.stdout(peer.stdin);
  peer.socket.write(frame(FRAME.stderr, Buffer.from('complaint\n')));
  peer.exit(42);
  const end = await running;
  assert.deepEqual([end.code, end.stdout], [42, 'input']);
  assert.equal(end.stderr, 'WARNING: slow disk\ncomplaint\n');
  assert.deepEqual(
    engine.calls.map(({ name }) => name),
    ['createContainer', 'startContainer', 'waitContainer'],
  );
  const body = CreateContainer.parse(engine.calls[0]?.body);
  assert.deepEqual(body.args, ['cat', '-']);
  assert.deepEqual(engine.calls[1]?.body, { attach: { stdin: true, stdout: true, stderr: true } });
  assert.ok((engine.calls[0]?.requestId ?? '').length > 0);
  assert.equal(engine.calls[2]?.query.get('condition'), 'removed');
});

test('run -d prints the id; an id file holds it and is not reused', GUARD, async () => {
  const argv = ['run', '-d', '--cidfile', 'id', '-v', './made:/x', 'busybox'];
  const end = await engine.kata(argv);
  assert.deepEqual([end.code, end.stdout], [0, `${ID}\n`]);
  assert.equal(readFileSync(join(engine.keeper.directory, 'id'), 'utf8'), ID);
  assert.ok(existsSync(join(engine.keeper.directory, 'made')));
  const again = await engine.kata(argv);
  assert.equal(again.code, 125);
  assert.match(again.stderr, /container ID file found/);
});

test(
  "run: failures have docker's exit codes, evidence and a hint; a failed create leaves no id file",
  GUARD,
  async () => {
    for (const [code, exit] of [
      ['COMMAND_NOT_FOUND', 127],
      ['COMMAND_NOT_EXECUTABLE', 126],
      ['VMM_START_FAILED', 125],
    ] as const) {
      engine.handlers.startContainer = () => {
        throw new KataError(code, 'it failed', { phase: 'boot', evidence: ['line \u001b[2J one'], hint: 'do this' });
      };
      const end = await engine.kata(['run', 'busybox']);
      assert.equal(end.code, exit);
      const text = `kata: it failed\n  code: ${code}, phase: boot\n  evidence: line \\x1b[2J one\n  try: do this\n`;
      assert.equal(end.stderr.replace(/^WARNING.*\n/, ''), text);
    }
    engine.handlers.createContainer = () => {
      throw new KataError('NOT_FOUND', 'no such image: busybox');
    };
    const end = await engine.kata(['run', '--cidfile', 'never', 'busybox']);
    assert.equal(end.code, 125);
    assert.ok(!existsSync(join(engine.keeper.directory, 'never')));
  },
);

test('a signal goes to the process; the third SIGINT leaves it', GUARD, async () => {
  const child = engine.start(['run', 'busybox', 'sleep', '9']);
  const end = ended(child);
  const peer = await engine.keeper.connection();
  peer.ready(0);
  peer.stdout('.');
  await once(child.stdout ?? child, 'data');
  for (const [at, name] of (['SIGUSR1', 'SIGTERM', 'SIGINT'] as const).entries()) {
    child.kill(name);
    await peer.until(() => peer.sent(FRAME.signal).length === at + 1);
  }
  assert.deepEqual(
    peer.sent(FRAME.signal).map((payload) => payload.readUInt32BE()),
    [10, 15, 2],
  );
  child.kill('SIGINT');
  const { code, stderr } = await end;
  assert.equal(code, 1);
  assert.match(stderr, /got 3 SIGTERM\/SIGINTs, forcefully exiting/);
});

test('an interrupted start is given up and taken away', GUARD, async () => {
  const asked = new Promise<void>((done) => {
    engine.handlers.startContainer = () => {
      done();
      return new Promise(() => {});
    };
  });
  engine.handlers.removeContainer = () => ({});
  const child = engine.start(['run', 'busybox']);
  const end = ended(child);
  await asked;
  child.kill('SIGINT');
  assert.equal((await end).code, 130);
  const removal = engine.calls.at(-1);
  assert.deepEqual([removal?.name, removal?.path.id, removal?.query.get('force')], ['removeContainer', ID, 'true']);
});

test('a foreground command goes on while the engine is dead, and ends with the right code', GUARD, async () => {
  const child = engine.start(['run', '--rm', 'busybox']);
  const end = ended(child);
  const peer = await engine.keeper.connection();
  peer.ready(0);
  peer.stdout('before ');
  await once(child.stdout ?? child, 'data');
  await engine.die();
  peer.stdout('after');
  peer.exit(3);
  const { code, stdout, stderr } = await end;
  await engine.listen();
  assert.deepEqual([code, stdout, stderr], [3, 'before after', 'WARNING: slow disk\n']);
});

test('a keeper that is gone is an error with what the engine knows', GUARD, async () => {
  engine.handlers.waitContainer = () => ({
    exit: { code: 137, signal: 9, oomKilled: false, cause: 'keeper-died', evidence: 'pid 12 ended' },
  });
  const running = engine.kata(['exec', 'web', 'true']);
  engine.handlers.createExec = () => engine.stream;
  const peer = await engine.keeper.connection();
  peer.ready(0);
  peer.socket.destroy();
  const { code, stderr } = await running;
  assert.equal(code, 125);
  assert.match(stderr, /the sandbox's keeper is gone/);
  assert.match(stderr, /exit code 137, cause keeper-died/);
  assert.match(stderr, /the sandbox's keeper died: pid 12 ended/);
});

test("an end that is not the process's own is explained", GUARD, async () => {
  const running = engine.kata(['start', '-a', 'web']);
  const peer = await engine.keeper.connection();
  peer.ready(0);
  peer.exit(137, { signal: 9, oom: true, cause: 'oom', evidence: 'limit 64 MiB\u001b[2J' });
  const { code, stderr } = await running;
  assert.equal(code, 137);
  assert.equal(stderr, 'kata: out of memory: the guest kernel killed the process: limit 64 MiB\\x1b[2J\n');
});

test("a call that the engine's death interrupts is repeated under the same request id", GUARD, async () => {
  let first = true;
  engine.handlers.createContainer = async () => {
    if (first) {
      first = false;
      await engine.die();
      await engine.listen();
    }
    return { id: ID, name: 'web', warnings: [], shares: false };
  };
  const end = await engine.kata(['create', 'busybox']);
  assert.deepEqual([end.code, end.stdout], [0, `${ID}\n`]);
  const ids = engine.calls.map(({ requestId }) => requestId);
  assert.equal(ids.length, 2);
  assert.equal(ids[0], ids[1]);
});

test('a reader that leaves ends the command like SIGPIPE', GUARD, async () => {
  const child = engine.start(['run', 'busybox', 'yes']);
  const end = ended(child);
  const peer = await engine.keeper.connection();
  peer.ready(0);
  child.stdout?.destroy();
  const flood = setInterval(() => peer.stdout('y\n'.repeat(1000)), 1);
  const { code } = await end;
  clearInterval(flood);
  assert.equal(code, 141);
});

test('raw terminal, size, resize, detach; the terminal is as before on every way out', GUARD, () => {
  const script = join(import.meta.dirname, 'fixtures/terminal.py');
  const result = spawnSync(
    'python3',
    [script, process.execPath, join(import.meta.dirname, '../../../src/cli/main.ts')],
    {
      env: { ...engine.environment(), TERM: 'xterm' },
      encoding: 'utf8',
      timeout: 60_000,
    },
  );
  assert.equal(result.status, 0, `${result.stdout}${result.stderr}`);
});

test("ps: docker's table, ids, templates, and the API's own JSON", GUARD, async () => {
  const { id, name, image, imageId, command, status, createdAt, startedAt, labels, sandboxUid } = details();
  const one = { id, name, image, imageId, command, status, createdAt, startedAt, labels, sandboxUid };
  engine.handlers.listContainers = () => [one];
  const table = await engine.kata(['ps']);
  const [head = '', row = ''] = table.stdout.split('\n');
  assert.match(head, /^CONTAINER ID {3}IMAGE +COMMAND +CREATED +STATUS +PORTS +NAMES$/);
  assert.ok(!table.stdout.includes('\u001b'));
  assert.match(row, /^c0ffee000000 {3}busybox:latest {3}"sh -c .*…" {3}.* ago {3}Up .* {3}web$/);
  assert.equal((await engine.kata(['ps', '-q'])).stdout, 'c0ffee000000\n');
  assert.equal((await engine.kata(['ps', '-q', '--no-trunc'])).stdout, `${ID}\n`);
  const format = 'table {{.Names}}\\t{{.Label "stage"}}\\t{{upper .State}}';
  assert.equal(
    (await engine.kata(['ps', '--format', format])).stdout,
    'NAMES     stage     STATE\nweb       test      RUNNING\n',
  );
  assert.deepEqual(JSON.parse((await engine.kata(['ps', '--json'])).stdout), [one]);
  assert.equal(JSON.parse((await engine.kata(['ps', '--format', 'json'])).stdout).Names, 'web');
  assert.match((await engine.kata(['ps', '-s'])).stdout, /SIZE +NAMES\n.*7\.83MB +web/);
  await engine.kata(['ps', '--filter', 'status=exited', '--filter', 'label=a=b']);
  const query = engine.calls.at(-1)?.query;
  assert.deepEqual(JSON.parse(query?.get('filters') ?? ''), { status: ['exited'], label: ['a=b'] });
  assert.equal(query?.get('all'), 'true');
  assert.match((await engine.kata(['ps', '--filter', 'nmae=x'])).stderr, /did you mean name/);
});

test("inspect: docker's paths", GUARD, async () => {
  engine.handlers.inspectContainer = ({ path }) => {
    if (path.id !== 'web') throw new KataError('NOT_FOUND', `no such container: ${path.id}`);
    return details({
      status: 'exited',
      exit: { code: 3, signal: 0, oomKilled: true, cause: 'process', evidence: '' },
      finishedAt: '2026-11-21T05:15:00.000000000Z',
    });
  };
  const format =
    '{{.Id}} {{.Name}} {{.State.Running}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Pid}} {{.State.Status}} ' +
    '{{index .Config.Env 0}} {{json .Config.Cmd}} {{json .Config.Volumes}} {{.HostConfig.Memory}} {{range .Mounts}}{{.Name}}:{{.Destination}}:{{.RW}}{{end}} ' +
    '{{index .Config.Labels "stage"}} {{json .NetworkSettings.Networks}} {{.Config.OpenStdin}}';
  const end = await engine.kata(['inspect', '-f', format, 'web']);
  assert.equal(end.stderr, '');
  assert.equal(
    end.stdout,
    `${ID} /web false 3 true 0 exited A=1 ["sh","-c","x"] {"/data":{}} 67108864 data:/data:false test {} true\n`,
  );
  const [whole] = JSON.parse((await engine.kata(['inspect', 'web'])).stdout);
  assert.deepEqual([whole.State.ExitCode, whole.kata.exit.cause, whole.kata.sandbox], [3, 'process', null]);
  assert.equal((await engine.kata(['inspect', '-f', '{{.kata.exit.oomKilled}}', 'web'])).stdout, 'true\n');
  const missing = await engine.kata(['inspect', 'web', 'nobody']);
  assert.deepEqual([missing.code, JSON.parse(missing.stdout).length], [1, 1]);
  assert.match(missing.stderr, /no such object: nobody/);
});

test('commands over names print each name and go on after a failure', GUARD, async () => {
  engine.handlers.stopContainer = ({ path }) => {
    if (path.id === 'b') throw new KataError('NOT_FOUND', 'no such container: b');
    return {};
  };
  const end = await engine.kata(['stop', '-t', '3', 'a', 'b', 'c']);
  assert.deepEqual([end.code, end.stdout], [1, 'a\nc\n']);
  assert.match(end.stderr, /no such container: b/);
  assert.deepEqual(
    engine.calls.map(({ body }) => body),
    [{ timeoutSeconds: 3 }, { timeoutSeconds: 3 }, { timeoutSeconds: 3 }],
  );
  engine.handlers.waitContainer = () => ({
    exit: { code: 9, signal: 0, oomKilled: false, cause: 'process', evidence: '' },
  });
  assert.equal((await engine.kata(['container', 'wait', 'a'])).stdout, '9\n');
  assert.equal((await engine.kata(['rm', '-f', 'nobody'])).code, 0);
  assert.equal((await engine.kata(['rm', 'nobody'])).code, 1);
});

test("logs: files from the API's path, and following ends with the process", GUARD, async () => {
  const directory = join(engine.keeper.directory, 'log');
  mkdirSync(directory);
  const path = join(directory, 'container.log');
  const line = (text: string) => `2026-11-21T05:14:00.123456789Z stdout F ${text}\n`;
  writeFileSync(path, line('one'));
  const answer = { path, files: [path], terminal: false, droppedLines: 0 };
  engine.handlers.containerLogs = ({ query }) =>
    query.get('follow') === 'true' ? { ...answer, stream: engine.stream } : answer;
  assert.equal((await engine.kata(['logs', 'web'])).stdout, 'one\n');
  const child = engine.start(['logs', '-f', 'web']);
  const end = ended(child);
  const peer = await engine.keeper.connection();
  peer.ready(0);
  await once(child.stdout ?? child, 'data');
  writeFileSync(path, line('two'), { flag: 'a' });
  peer.exit(5);
  assert.deepEqual(await end, { code: 0, signal: null, stdout: 'one\ntwo\n', stderr: '' });
});

test('version starts no engine and says whether one runs', GUARD, async () => {
  engine.handlers.version = () => ({
    version: '9',
    apiVersion: 1,
    engine: { pid: 1, root: '/r', node: 'v', startedAt: 't', sandboxes: 0 },
  });
  const running = JSON.parse((await engine.kata(['version', '--json'])).stdout);
  assert.equal(running.engine.pid, 1);
  await engine.die();
  const end = await engine.kata(['version', '--json']);
  await engine.listen();
  assert.deepEqual([end.code, JSON.parse(end.stdout).engine], [0, undefined]);
  assert.ok(!existsSync(join(engine.run, 'katad.log')));
});

test('an engine that does not start is an error with the tail of its log', GUARD, async () => {
  await engine.die();
  writeFileSync(join(engine.run, 'katad.log'), 'first\nthe reason\u001b[2J\n');
  const end = await engine.kata(['ps']);
  await engine.listen();
  assert.equal(end.code, 1);
  assert.match(
    end.stderr,
    /katad ended at its start with exit code 1\n {2}code: ENGINE_UNAVAILABLE, phase: engine-start\n/,
  );
  assert.match(end.stderr, /evidence: the reason\\x1b\[2J\n/);
});

test('arguments and variables that are not UTF-8 are refused, not changed', GUARD, async () => {
  const main = join(import.meta.dirname, '../../../src/cli/main.ts');
  const shell = (script: string) =>
    ended(spawn('sh', ['-c', script, process.execPath, main], { env: engine.environment() }));
  const argument = await shell(`exec "$0" "$1" run -e "$(printf 'A=\\377')" busybox`);
  assert.deepEqual([argument.code, /not valid UTF-8/.test(argument.stderr)], [125, true]);
  const variable = await shell(`A=$(printf '\\377') exec "$0" "$1" run -e A busybox`);
  assert.deepEqual([variable.code, /not valid UTF-8/.test(variable.stderr)], [125, true]);
  const fine = await shell(`A=$(printf '\\357\\277\\275') exec "$0" "$1" create -e A busybox`);
  assert.equal(fine.code, 0, fine.stderr);
});

test('load reads standard input through a file that goes away again', GUARD, async () => {
  let path = '';
  engine.handlers.loadImages = ({ body }) => {
    path = (body as { path: string }).path;
    return { images: [{ id: 'i', tags: [`read:${readFileSync(path, 'utf8')}`] }] };
  };
  const end = await engine.kata(['load'], 'archive');
  assert.deepEqual([end.code, end.stdout], [0, 'Loaded image: read:archive\n']);
  assert.ok(!existsSync(path));
  engine.handlers.saveImages = ({ body }) => {
    writeFileSync((body as { path: string }).path, 'saved');
    return {};
  };
  assert.equal((await engine.kata(['save', 'busybox'])).stdout, 'saved');
});

test(
  'explain says what a code means, in any case of letters; a wrong one is refused with the near one',
  GUARD,
  async () => {
    const one = await engine.kata(['explain', 'guest_panic', 'DISK_FULL']);
    assert.equal(one.code, 0);
    assert.match(one.stdout, /^GUEST_PANIC \(exit code 125\)\n {2}\S.*\n {2}try: /);
    assert.match(one.stdout, /\n\nDISK_FULL \(exit code 125\)\n {2}.*\n {2}try: /);
    const all = JSON.parse((await engine.kata(['explain', '--json'])).stdout) as { code: string }[];
    assert.deepEqual(
      all.map(({ code }) => code),
      Object.keys(ERROR_CODES),
    );
    const wrong = await engine.kata(['explain', 'GUEST_PANICK']);
    assert.equal(wrong.code, 1);
    assert.match(wrong.stderr, /no error code "GUEST_PANICK"\n.*\n.*try: kata explain GUEST_PANIC\n/);
    assert.equal(engine.calls.length, 0);
  },
);
