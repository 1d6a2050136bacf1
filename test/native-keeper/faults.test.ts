import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import * as rpc from '../../src/rpc/keeper.ts';
import { STATUS, type TtrpcError } from '../../src/ttrpc/index.ts';
import { alive, KEEPER, readLog, Sandbox, until } from './support.ts';

const awaitAgent = (sandbox: Sandbox, timeout_ms = 60_000) =>
  sandbox.call('AwaitAgent', rpc.AwaitAgentRequest, rpc.AwaitAgentResponse, { timeout_ms });

/** Runs a command in the keeper's mount namespace. */
const inKeeper = (sandbox: Sandbox, argv: string[]) =>
  execFileSync('nsenter', ['-m', '-t', `${sandbox.keeper.pid}`, ...argv], { encoding: 'utf8' });

const bootFailure = async (attempt: Promise<unknown>): Promise<[TtrpcError, rpc.BootFailure]> => {
  const error = await attempt.then(
    () => assert.fail('the boot succeeded'),
    (error: TtrpcError) => error,
  );
  return [error, rpc.BootFailure.decode(error.detail('kata.keeper.v1.BootFailure') ?? assert.fail(`${error}`))];
};

test('children die with a killed keeper, and cleanup is idempotent', async () => {
  await using sandbox = await Sandbox.start();
  const { pid, start_time_ticks } = await sandbox.spawn('vmm', ['/bin/sleep', '1000']);
  const pids = JSON.parse(readFileSync(join(sandbox.dir, 'pids.json'), 'utf8'));
  assert.deepEqual(pids.processes, [{ name: 'vmm', pid, start_time_ticks: Number(start_time_ticks) }]);
  const refused = spawnSync(KEEPER, ['cleanup', '--dir', sandbox.dir], { encoding: 'utf8' });
  assert.match(refused.stderr, /a keeper serves/);
  sandbox.keeper.kill('SIGKILL');
  await until('death of the child', () => !alive(pid));
  for (let time = 0; time < 2; time++)
    assert.equal(spawnSync(KEEPER, ['cleanup', '--dir', sandbox.dir], { stdio: 'inherit' }).status, 0);
  assert.equal(readLog(join(sandbox.dir, 'k.sock')), '');
});

test('cleanup ends what is recorded, spares others, and says when the record is corrupt', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.shutdown();
  const [left, stranger] = [0, 1].map(() => spawn('/bin/sleep', ['1000'], { stdio: 'ignore' }));
  const ticks = (pid?: number) => Number(readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1]?.split(' ')[19]);
  const boot_id = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const record = (boot: string) =>
    JSON.stringify({
      boot_id: boot,
      processes: [
        { name: 'left', pid: left?.pid, start_time_ticks: ticks(left?.pid) },
        { name: 'stranger', pid: stranger?.pid, start_time_ticks: ticks(stranger?.pid) + 1 },
      ],
    });
  const file = join(sandbox.dir, 'pids.json');
  const cleanup = () => spawnSync(KEEPER, ['cleanup', '--dir', sandbox.dir], { encoding: 'utf8' });
  writeFileSync(file, record('another-boot'));
  assert.equal(cleanup().status, 0);
  assert.ok(alive(left?.pid ?? 0));
  writeFileSync(file, '{"boot_id":');
  const corrupt = cleanup();
  assert.equal(corrupt.status, 1);
  assert.match(corrupt.stderr, /pids\.json is corrupt/);
  assert.equal(cleanup().status, 0);
  writeFileSync(file, record(boot_id));
  assert.equal(cleanup().status, 0);
  assert.ok(!alive(left?.pid ?? 0) && alive(stranger?.pid ?? 0));
  stranger?.kill('SIGKILL');
});

test('the death of the VMM ends the sandbox: cause, exits, helpers', async () => {
  await using sandbox = await Sandbox.start();
  const helper = await sandbox.spawn('virtiofsd', ['/bin/sleep', '1000']);
  await sandbox.boot();
  const log = { path: join(sandbox.dir, 'c.log'), max_bytes: 0n, max_files: 0 };
  await sandbox.createProcess('c1', { log });
  const client = await sandbox.attach('c1');
  sandbox.guest.process('c1').print('stdout', 'last words');
  const kill = { name: 'vmm', signal: 9 };
  await sandbox.call('SignalSpawned', rpc.SignalSpawnedRequest, rpc.Empty, kill);
  const exit = await sandbox.exitOf('c1');
  assert.deepEqual([exit.status, exit.cause], [137, 'vmm-killed']);
  assert.match(exit.evidence, /vmm killed by signal 9/);
  assert.deepEqual(
    sandbox.journal().map((entry) => [entry.kind, entry.process]),
    [
      ['spawned-exit', 'vmm'],
      ['exit', undefined],
    ],
  );
  await until('exit frame', () => client.exit);
  assert.deepEqual([client.exit?.cause, client.stdout.toString()], ['vmm-killed', 'last words']);
  assert.ok(!alive(helper.pid));
  const gone = sandbox.call('SignalSpawned', rpc.SignalSpawnedRequest, rpc.Empty, kill);
  await assert.rejects(gone, (error: TtrpcError) => error.status === STATUS.NOT_FOUND);
  await assert.rejects(sandbox.createProcess('c2'), (error: TtrpcError) => error.status === STATUS.UNAVAILABLE);
  await sandbox.shutdown();
});

test('a helper that leaves after the VMM is not the cause; one that dies before it is', async () => {
  for (const [helperEnd, cause] of [
    ['exit 0', 'vmm-exited'],
    ['kill -9 $$', 'helper-exited'],
  ] as const) {
    await using sandbox = await Sandbox.start();
    // The helper sees the VMM's end or brings it about, as a lost vhost-user connection would.
    const fifo = join(sandbox.dir, 'fifo');
    execFileSync('mkfifo', [fifo]);
    const [vmm, helper] =
      cause === 'vmm-exited'
        ? ['sleep 0.2; exit 5', `read x <${fifo}; ${helperEnd}`]
        : [`read x <${fifo}; exit 1`, `sleep 0.2; ${helperEnd}`];
    const opener = cause === 'vmm-exited' ? `exec 3>${fifo}; ` : '';
    await sandbox.spawn('vsock', ['/bin/sh', '-c', `${cause === 'helper-exited' ? `exec 3>${fifo}; ` : ''}${helper}`]);
    await sandbox.spawn('vmm', ['/bin/sh', '-c', `${opener}${vmm}`]);
    const [error, failure] = await bootFailure(awaitAgent(sandbox));
    assert.equal(error.status, STATUS.FAILED_PRECONDITION);
    assert.equal(failure.cause, cause, error.message);
    assert.equal(failure.process, cause === 'vmm-exited' ? 'vmm' : 'vsock');
    assert.equal(failure.wait_status, cause === 'vmm-exited' ? 5 << 8 : 9);
  }
});

test('a boot that fails tells console and stderr; a panic is told before the VMM ends', async () => {
  await using sandbox = await Sandbox.start();
  const vmm = await sandbox.spawn('vmm', ['/bin/sh', '-c', 'printf "qemu: \\033[1mtrouble\\n" >&2; exec sleep 1000']);
  const attempt = bootFailure(awaitAgent(sandbox));
  await until('stderr', () => readLog(join(sandbox.dir, 'vmm.stderr')).includes('trouble'));
  const console = connect(join(sandbox.dir, 'console.sock'));
  console.write('[    0.1] booting\r\n[    0.2] Kernel panic - not syncing: VFS\x1b[2J\r\n---[ end\r\n');
  const [, failure] = await attempt;
  assert.ok(alive(vmm.pid), 'told at once');
  assert.equal(failure.cause, 'guest-panic');
  assert.match(failure.console_tail, /Kernel panic - not syncing: VFS\\x1b\[2J/);
  assert.match(failure.stderr_tail, /qemu: \\x1b\[1mtrouble/);
  const entries = await sandbox.entries();
  assert.deepEqual([entries[0]?.kind, entries[0]?.evidence.includes('VFS')], ['guest-panic', true]);
  await until('the hanging VMM is ended', () => !alive(vmm.pid));
  const tail = await sandbox.call('Tail', rpc.TailRequest, rpc.TailResponse, { source: 'console', max_lines: 1 });
  assert.equal(tail.text, '---[ end');
});

test('a timeout, an agent that failed, and a lost agent are told apart', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.spawn('vmm', ['/bin/sleep', '1000']);
  const [late, timeout] = await bootFailure(awaitAgent(sandbox, 20));
  assert.deepEqual([late.status, timeout.cause], [STATUS.DEADLINE_EXCEEDED, 'timeout']);
  await sandbox.guest.pushReady({ failure: 'no \u001b cgroups' });
  const [, failed] = await bootFailure(awaitAgent(sandbox));
  assert.equal(failed.cause, 'agent-failure');

  await using other = await Sandbox.start();
  await other.boot();
  await other.createProcess('c1');
  other.guest.drop();
  const exit = await other.exitOf('c1');
  assert.equal(exit.cause, 'agent-lost');
  assert.ok(other.journal().some((entry) => entry.kind === 'agent-lost'));
});

test('what a helper started ends with it', async () => {
  await using sandbox = await Sandbox.start();
  const script = 'sleep 1000 & echo $! >&2; exec sleep 1000';
  const more = { env: ['PATH=/usr/bin:/bin'], essential: false };
  await sandbox.spawn('helper', ['/bin/sh', '-c', script], more);
  const stderr = () => readLog(join(sandbox.dir, 'helper.stderr'));
  const child = Number((await until('pid', () => /^(\d+)\n/m.exec(stderr()) ?? undefined))[1]);
  assert.ok(alive(child));
  const kill = { name: 'helper', signal: 15 };
  await sandbox.call('SignalSpawned', rpc.SignalSpawnedRequest, rpc.Empty, kill);
  await until('end of the child', () => !alive(child));
  const [entry] = await sandbox.entries();
  assert.deepEqual([entry?.kind, entry?.process, entry?.wait_status], ['spawned-exit', 'helper', 15]);
});

test('an intended shutdown is one, and everything of the sandbox is gone after it', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  await sandbox.createProcess('c1');
  const client = await sandbox.attach('c1');
  const { spawned } = await sandbox.state();
  await sandbox.shutdown();
  assert.ok(spawned.every((process) => !alive(process.pid)));
  assert.deepEqual(
    sandbox.journal().map((entry) => [entry.kind, entry.cause, entry.status]),
    [['exit', 'shutdown', 137]],
  );
  await until('exit frame', () => client.exit);
  assert.equal(client.exit?.cause, 'shutdown');
});

test('spawn: exec failures name errno, memory is inherited, readiness is awaited', async () => {
  await using sandbox = await Sandbox.start();
  await assert.rejects(sandbox.spawn('x', ['/no/such/program']), (error: TtrpcError) => {
    assert.equal(error.status, STATUS.NOT_FOUND);
    assert.match(error.message, /exec \/no\/such\/program for x: .*os error 2/);
    return true;
  });
  const memory = { name: 'guest', size_bytes: 4096n };
  await sandbox.call('CreateMemory', rpc.CreateMemoryRequest, rpc.CreateMemoryResponse, memory);
  const script =
    'stat -Lc %s /proc/self/fd/9 >&2; readlink /proc/self/fd/9 >&2; ls /proc/self/fd | tr "\\n" " " >&2; echo >&2; exec sleep 1000';
  await sandbox.spawn('m', ['/bin/sh', '-c', script], {
    fds: [{ memory: 'guest', target_fd: 9 }],
    env: ['PATH=/usr/bin:/bin'],
    essential: false,
  });
  const pattern = /^4096\n\/memfd:guest.*\n([\d ]+)$/m;
  const told = await until('stderr', () => pattern.exec(readLog(join(sandbox.dir, 'm.stderr'))) ?? undefined);
  // 0, 1, 2, the memory, and the directory that ls reads: nothing of the keeper leaks.
  assert.equal(told[1], '0 1 2 3 9 ');
  const socket = join(sandbox.dir, 'helper.sock');
  const listen = ['/usr/bin/socat', `UNIX-LISTEN:${socket}`, 'PIPE'];
  await sandbox.spawn('listener', listen, { ready_socket: socket, ready_timeout_ms: 60_000, essential: false });
  const dies = sandbox.spawn('dies', ['/bin/sh', '-c', 'echo bad option >&2; exit 2'], {
    ready_socket: join(sandbox.dir, 'never.sock'),
    ready_timeout_ms: 60_000,
    essential: false,
  });
  const [, failure] = await bootFailure(dies);
  assert.deepEqual([failure.cause, failure.wait_status], ['helper-exited', 2 << 8]);
  assert.match(failure.stderr_tail, /bad option/);
  const hangs = sandbox.spawn('hangs', ['/bin/sleep', '1000'], {
    ready_socket: join(sandbox.dir, 'never.sock'),
    ready_timeout_ms: 50,
    essential: false,
  });
  await assert.rejects(hangs, (error: TtrpcError) => error.status === STATUS.DEADLINE_EXCEEDED);
  const noisy = ['/bin/sh', '-c', 'head -c 3000000 /dev/zero | tr "\\0" x >&2; echo; echo END; exec sleep 1000'];
  await sandbox.spawn('noisy', noisy, { env: ['PATH=/usr/bin:/bin'], essential: false });
  await until('noisy end', () => readLog(join(sandbox.dir, 'noisy.stderr')).includes('END'));
  const total = ['noisy.stderr', 'noisy.stderr.1'].map((name) => readLog(join(sandbox.dir, name)).length);
  assert.ok(total[0] !== undefined && total[1] !== undefined && total[0] + total[1] <= 512 * 1024);
});

test('a full disk costs log lines, not the container', async () => {
  await using sandbox = await Sandbox.start();
  await sandbox.boot();
  const disk = join(sandbox.dir, 'disk');
  mkdirSync(disk);
  inKeeper(sandbox, ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', disk]);
  const path = join(disk, 'c.log');
  const log = () => inKeeper(sandbox, ['cat', path]);
  await sandbox.createProcess('c1', { log: { path, max_bytes: 2n ** 30n, max_files: 1 } });
  const process = sandbox.guest.process('c1');
  for (let line = 0; line < 5000; line++) process.print('stdout', `line ${line}\n`);
  const lost = await until('lost lines', async () => {
    const state = (await sandbox.state()).processes[0];
    return state !== undefined && state.stdout_bytes === BigInt(process.written.stdout) && state.dropped_lines;
  });
  assert.ok(lost > 1000n && log().endsWith('\n'));
  inKeeper(sandbox, ['mount', '-o', 'remount,size=1m', disk]);
  process.print('stdout', 'room again\n');
  process.finish({ status: 0 });
  const exit = await sandbox.exitOf('c1');
  assert.equal(exit.dropped_lines, lost);
  const lines = log().trimEnd().split('\n');
  assert.match(lines.at(-1) ?? '', / stdout F room again$/);
  // A short line may fit where a long one did not: the count may come in several parts.
  const told = lines.flatMap((line) => /Z system D (\d+)$/.exec(line)?.[1] ?? []);
  assert.equal(lines.at(-2)?.endsWith(` system D ${told.at(-1)}`), true);
  assert.equal(
    told.reduce((sum, part) => sum + BigInt(part), 0n),
    lost,
  );
  assert.equal(BigInt(lines.length - told.length) + lost, 5001n);
});

test('a lost engine is started again, outside of the sandbox’s namespaces', async () => {
  const mark = `/tmp/kk-engine-${process.pid}`;
  const script = `{ readlink /proc/self/ns/mnt; pwd; env; } >${mark}.new; mv ${mark}.new ${mark}`;
  await using sandbox = await Sandbox.start({ engine: ['/bin/sh', '-c', script], engine_env: ['KATA_ROOT=/x'] });
  await sandbox.boot();
  sandbox.client.close();
  const told = await until('engine', () => readLog(mark) || undefined);
  assert.equal(told.split('\n').slice(0, 2).join(' '), `${readlinkSync('/proc/self/ns/mnt')} /`);
  assert.match(told, /^KATA_ROOT=\/x$/m);
  assert.doesNotMatch(told, /^HOME=/m);
  execFileSync('rm', ['-f', mark]);
  await sandbox.connect();
  await sandbox.shutdown();
});

test('daemon: one lock, no inherited descriptors, a session of its own', async () => {
  await using sandbox = await Sandbox.start();
  const [lock, log] = [join(sandbox.dir, 'lock'), join(sandbox.dir, 'log')];
  const daemon = (script: string) => ['daemon', '--lock', lock, '--log', log, '--', '/bin/sh', '-c', script];
  const script =
    'pwd; ls -l /proc/self/fd; sed -n "s/.*) [A-Z] \\([0-9]* [0-9]* [0-9]*\\).*/stat \\1/p" /proc/$$/stat; exec sleep 1000';
  const first = spawn(KEEPER, daemon(script), { stdio: ['pipe', 'ignore', 'ignore', 'pipe'] });
  const told = await until('first daemon', () => /^stat .*$/m.test(readLog(log)) && readLog(log));
  assert.match(told, /^\/\n/);
  assert.match(told, / 0 -> \/dev\/null\n/);
  assert.match(told, new RegExp(` 1 -> ${log}\\n`));
  assert.doesNotMatch(told, /socket:/);
  assert.match(told, new RegExp(`^stat \\d+ ${first.pid} ${first.pid}$`, 'm'));
  assert.equal(spawnSync(KEEPER, daemon('true')).status, 75);
  first.kill('SIGKILL');
  await once(first, 'exit');
  assert.equal(spawnSync(KEEPER, daemon('true')).status, 0);
});

test('kvm-probe and --version answer', () => {
  const probe = JSON.parse(execFileSync(KEEPER, ['kvm-probe'], { encoding: 'utf8', timeout: 6000 }));
  assert.equal(typeof probe.usable, 'boolean');
  assert.ok(probe.reason.length > 10);
  assert.match(execFileSync(KEEPER, ['--version'], { encoding: 'utf8' }), /^kata-keeper \d/);
});
