import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createContainerRequest, execProcessRequest, translateAgentError } from '../../../src/agent/index.ts';
import { fromStats } from '../../../src/agent/translate.ts';
import type * as oci from '../../../src/oci/index.ts';
import { CreateContainerRequest, ExecProcessRequest, StatsContainerResponse } from '../../../src/rpc/agent.ts';
import { ExecFailure } from '../../../src/rpc/agent_ext.ts';
import { STATUS, TtrpcError } from '../../../src/ttrpc/index.ts';
import { ociProcess, ociSpec } from './spec.ts';

test('a container’s request says what its OCI spec says', () => {
  const bytes = createContainerRequest({
    containerId: 'c1',
    spec: ociSpec(),
    storages: [
      {
        driver: 'blk',
        driverOptions: ['partition=0,8'],
        source: '04',
        fstype: 'erofs',
        options: ['ro'],
        mountPoint: '/run/kata-containers/image/c1/l0',
        shared: false,
      },
    ],
    devices: [{ id: 'd', type: 'blk', vmPath: '/dev/vdb', containerPath: '/dev/x', options: [] }],
    sharePidNamespace: true,
  });
  const request = CreateContainerRequest.decode(bytes);
  assert.equal(request.container_id, 'c1');
  assert.equal(request.sandbox_pidns, true);
  assert.deepEqual(request.string_user, { uid: 'app:staff', gid: '', additionalGids: [] });
  assert.deepEqual(request.storages[0], {
    driver: 'blk',
    driver_options: ['partition=0,8'],
    source: '04',
    fstype: 'erofs',
    options: ['ro'],
    mount_point: '/run/kata-containers/image/c1/l0',
    fs_group: undefined,
    shared: false,
  });
  assert.equal(request.devices[0]?.container_path, '/dev/x');
  const spec = request.OCI;
  assert.ok(spec?.Process && spec.Linux?.Resources && spec.Linux.Seccomp);
  assert.deepEqual(spec.Root, { Path: '/rootfs', Readonly: true });
  assert.deepEqual(spec.Process.Args, ['sh', '-c', 'exit 7']);
  assert.deepEqual(spec.Process.ConsoleSize, { Height: 24, Width: 80 });
  assert.deepEqual(spec.Process.User, { UID: 1, GID: 2, AdditionalGids: [3], Username: 'app:staff' });
  assert.deepEqual(spec.Process.Rlimits, [{ Type: 'RLIMIT_NOFILE', Hard: 2n ** 64n - 1n, Soft: 1024n }]);
  assert.equal(spec.Process.OOMScoreAdj, -5n);
  assert.deepEqual(spec.Mounts[0], { destination: '/proc', source: 'proc', type: 'proc', options: ['nosuid'] });
  assert.deepEqual(spec.Annotations, { a: 'b' });
  assert.deepEqual(spec.Linux.Namespaces, [{ Type: 'pid', Path: '' }]);
  const { Devices, Memory, CPU, Pids } = spec.Linux.Resources;
  assert.deepEqual(Devices, [
    { Allow: false, Type: 'a', Major: -1n, Minor: -1n, Access: 'rwm' },
    { Allow: true, Type: 'c', Major: 1n, Minor: 3n, Access: 'rwm' },
  ]);
  assert.equal(Memory?.Limit, 2n ** 28n);
  assert.equal(CPU?.Quota, 150_000n);
  assert.equal(Pids?.Limit, -1n);
  assert.deepEqual(spec.Linux.Seccomp.Syscalls, [
    {
      Names: ['clone'],
      Action: 'SCMP_ACT_ERRNO',
      errnoret: 38,
      Args: [{ Index: 0n, Value: 2n ** 64n - 1n, ValueTwo: 0n, Op: 'SCMP_CMP_MASKED_EQ' }],
    },
  ]);
  assert.deepEqual(spec.Linux.MaskedPaths, ['/proc/kcore']);
  assert.deepEqual(spec.Linux.Sysctl, { 'net.ipv4.ip_unprivileged_port_start': '0' });
});

test('an exec’s request; a user by number alone needs no lookup', () => {
  const process = { ...ociProcess(), user: { uid: 5, gid: 6, additionalGids: [] } };
  const request = ExecProcessRequest.decode(execProcessRequest({ containerId: 'c', execId: 'e', process }));
  assert.equal(request.exec_id, 'e');
  assert.equal(request.string_user, undefined);
  assert.deepEqual(request.process?.User, { UID: 5, GID: 6, AdditionalGids: [], Username: '' });
});

test('a seccomp profile whose default errno the protocol cannot say is refused', () => {
  const spec = ociSpec();
  const seccomp = { ...(spec.linux.seccomp as oci.Seccomp), defaultErrnoRet: 38 };
  const container = {
    containerId: 'c',
    spec: { ...spec, linux: { ...spec.linux, seccomp } },
    storages: [],
    devices: [],
    sharePidNamespace: false,
  };
  assert.throws(() => createContainerRequest(container), /defaultErrnoRet of 38/);
});

const failure = (errno: number, step: string, path = '/bin/x'): TtrpcError =>
  new TtrpcError(STATUS.INTERNAL, 'exec failed', {
    details: [
      { type_url: 'kata.agent.v1.ExecFailure', value: Buffer.from(ExecFailure.encode({ errno, step, path }).finish()) },
    ],
    fromPeer: true,
  });

test('why a command does not run decides between 127, 126 and the rest', () => {
  for (const [errno, step, code, exit] of [
    [2, 'lookup', 'COMMAND_NOT_FOUND', 127],
    [2, 'exec', 'COMMAND_NOT_FOUND', 127],
    [20, 'exec', 'COMMAND_NOT_FOUND', 127],
    [13, 'exec', 'COMMAND_NOT_EXECUTABLE', 126],
    [13, 'lookup', 'COMMAND_NOT_EXECUTABLE', 126],
    [8, 'exec', 'COMMAND_NOT_EXECUTABLE', 126],
    [21, 'exec', 'COMMAND_NOT_EXECUTABLE', 126],
    [12, 'exec', 'AGENT_ERROR', 125],
    [2, 'user', 'INVALID_ARGUMENT', 125],
    [2, 'chdir', 'INVALID_ARGUMENT', 125],
    [2, 'mount', 'AGENT_ERROR', 125],
    [28, 'rootfs', 'DISK_FULL', 125],
  ] as const) {
    const error = translateAgentError(failure(errno, step), 'create-container');
    assert.equal(error.code, code, `${errno} ${step}`);
    assert.equal(error.exitCode, exit);
    assert.equal(error.phase, 'create-container');
    assert.match(error.evidence[0] ?? '', new RegExp(`^${step} /bin/x: .*E[A-Z]+`));
  }
});

test('a status without detail keeps its meaning; a lost connection is AGENT_UNAVAILABLE', () => {
  const code = (status: number) => translateAgentError(new TtrpcError(status, 'x', { fromPeer: true }), 'p').code;
  assert.equal(code(STATUS.NOT_FOUND), 'NOT_FOUND');
  assert.equal(code(STATUS.INVALID_ARGUMENT), 'INVALID_ARGUMENT');
  assert.equal(code(STATUS.UNAVAILABLE), 'AGENT_UNAVAILABLE');
  assert.equal(code(STATUS.DEADLINE_EXCEEDED), 'DEADLINE_EXCEEDED');
  assert.equal(code(STATUS.INTERNAL), 'AGENT_ERROR');
  assert.equal(code(9999), 'AGENT_ERROR');
  assert.equal(translateAgentError(new Error('x'), 'p').code, 'INTERNAL');
});

test('a failure of this side says whom it was talking to; the method is evidence', () => {
  const call = 'grpc.AgentService/StartContainer';
  const error = translateAgentError(
    new TtrpcError(STATUS.UNAVAILABLE, 'the peer closed the connection', { call }),
    'p',
  );
  assert.deepEqual(
    [error.code, error.message, error.evidence],
    ['AGENT_UNAVAILABLE', 'the guest agent: the peer closed the connection', [`call: ${call}`]],
  );
});

test('whatever the guest sends, the error is bounded, printable and one of ours', () => {
  fc.assert(
    fc.property(
      fc.string({ unit: 'binary', maxLength: 5000 }),
      fc.uint8Array({ maxLength: 200 }),
      fc.integer(),
      (text, bytes, status) => {
        const details = [{ type_url: 'kata.agent.v1.ExecFailure', value: Buffer.from(bytes) }];
        const error = translateAgentError(new TtrpcError(status, text, { details, fromPeer: true }), 'p');
        for (const line of [error.message, ...error.evidence, error.hint ?? '']) {
          assert.ok(line.length <= 5000);
          assert.doesNotMatch(line, /[\p{Cc}\u2028\u2029]/u);
        }
        assert.ok(error.exitCode > 0);
      },
    ),
  );
  const long = translateAgentError(failure(2, 'exec', `/${'p'.repeat(10_000)}\u001b[2J`), 'p');
  assert.ok((long.evidence[0] as string).length < 2200 && !(long.evidence[0] as string).includes('\u001b'));
});

test('statistics: "no limit" is 0, what is missing is 0', () => {
  const empty = fromStats(StatsContainerResponse.fromPartial({}));
  assert.deepEqual([empty.cpuNanos, empty.memoryBytes, empty.pids, empty.networks], [0, 0, 0, []]);
  const stats = fromStats(
    StatsContainerResponse.fromPartial({
      cgroup_stats: {
        cpu_stats: { cpu_usage: { total_usage: 5n, usage_in_usermode: 3n, usage_in_kernelmode: 2n } },
        memory_stats: { cache: 10n, usage: { usage: 20n, max_usage: 30n, limit: 2n ** 63n - 4096n } },
        pids_stats: { current: 2n, limit: 2n ** 64n - 1n },
        blkio_stats: {
          io_service_bytes_recursive: [
            { major: 254n, op: 'Read', value: 7n },
            { major: 7n, op: 'read', value: 1n },
            { major: 254n, op: 'Write', value: 9n },
          ],
        },
      },
      network_stats: [{ name: 'eth0\n', rx_bytes: 1n }],
    }),
  );
  assert.deepEqual(
    [stats.cpuNanos, stats.memoryBytes, stats.memoryMaxBytes, stats.memoryLimitBytes, stats.memoryCacheBytes],
    [5, 20, 30, 0, 10],
  );
  assert.deepEqual([stats.memoryInactiveBytes, stats.memoryAnonBytes, stats.memoryReclaimableBytes], [10, 10, 10]);
  const told = fromStats(
    StatsContainerResponse.fromPartial({
      cgroup_stats: {
        memory_stats: {
          cache: 10n,
          usage: { usage: 20n },
          stats: { file: 10n, inactive_file: 3n, anon: 8n, shmem: 4n },
        },
      },
    }),
  );
  assert.deepEqual([told.memoryInactiveBytes, told.memoryAnonBytes, told.memoryReclaimableBytes], [3, 8, 6]);
  assert.deepEqual([stats.pids, stats.pidsLimit, stats.readBytes, stats.writeBytes], [2, 0, 8, 9]);
  assert.equal(stats.networks[0]?.name, 'eth0\uFFFD');
});
