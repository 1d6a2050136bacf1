import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { NamespaceMode, PodSandboxConfig } from '../../../src/rpc/cri.ts';
import type { Bundle } from '../../../src/shim/bundle.ts';
import { podConfig, withPodFiles, writePodFiles } from '../../../src/shim/pod-config.ts';
import { parseSpec } from '../../../src/shim/runtime-spec.ts';
import { metricsOf, summed } from '../../../src/shim/stats.ts';
import { criSpec } from './support.ts';

const options = (config: object) => ({
  type_url: 'runtime.v1.PodSandboxConfig',
  value: Buffer.from(PodSandboxConfig.encode(PodSandboxConfig.fromPartial(config)).finish()),
});

test('a pod that no container describes: name, limits, annotations, name servers', () => {
  const { hostname, annotations, files, cgroupsPath } = podConfig(
    options({
      hostname: 'web',
      annotations: { 'io.katacontainers.config.hypervisor.default_vcpus': '2', other: 'x' },
      dns_config: { servers: ['10.0.0.10', 'fd00::10'], searches: ['a.local', 'local'], options: ['ndots:5'] },
      linux: {
        resources: { cpu_period: 100_000n, cpu_quota: 150_000n, memory_limit_in_bytes: 2n ** 30n },
        cgroup_parent: '/kubepods/pod1',
      },
    }),
    '/nonexistent',
    'pod',
  );
  assert.equal(hostname, 'web');
  assert.equal(cgroupsPath, '/kubepods/pod1/pod');
  const slice = options({ linux: { cgroup_parent: '/kubepods.slice/kubepods-pod1.slice' } });
  assert.equal(podConfig(slice, '/nonexistent', 'pod').cgroupsPath, 'kubepods-pod1.slice:cri-containerd:pod');
  assert.deepEqual(annotations, {
    'io.katacontainers.config.hypervisor.default_vcpus': '2',
    'io.kubernetes.cri.sandbox-memory': '1073741824',
    'io.kubernetes.cri.sandbox-cpu-quota': '150000',
    'io.kubernetes.cri.sandbox-cpu-period': '100000',
  });
  assert.deepEqual(files, {
    hostname: 'web\n',
    hosts: '',
    'resolv.conf': 'search a.local local\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n',
  });
  assert.throws(() => podConfig(options({ dns_config: { servers: ['1.1.1.1\nx'] } }), '', 'pod'), /is not a word/);
  assert.throws(() => podConfig({ type_url: 'runtime.v1.PodSandboxConfig', value: Buffer.from([9]) }, '', 'pod'), {
    code: 'INVALID_ARGUMENT',
  });
});

test('without a configuration the host’s name and files are the pod’s', (t) => {
  const root = mkdtempSync(join(tmpdir(), 'kata-pod-'));
  t.after(() => rmSync(root, { recursive: true }));
  mkdirSync(join(root, 'etc'));
  writeFileSync(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
  writeFileSync(join(root, 'etc/resolv.conf'), 'nameserver 9.9.9.9\n');
  const { hostname, files, annotations } = podConfig(
    { type_url: 'something.Else', value: Buffer.from('x') },
    root,
    'pod',
  );
  assert.ok(hostname.length > 0);
  assert.deepEqual(annotations, {});
  assert.deepEqual([files.hosts, files['resolv.conf']], ['127.0.0.1 localhost\n', 'nameserver 9.9.9.9\n']);
});

test('namespaces of the host are refused', () => {
  const { NODE, POD } = NamespaceMode;
  for (const namespace_options of [{ network: NODE }, { pid: NODE }, { ipc: NODE }, { userns_options: { mode: POD } }])
    assert.throws(() => podConfig(options({ linux: { security_context: { namespace_options } } }), '', 'pod'), {
      code: 'INVALID_ARGUMENT',
    });
  podConfig(
    options({ linux: { security_context: { namespace_options: { userns_options: { mode: NODE } } } } }),
    '',
    'pod',
  );
});

test('a container has its pod’s files where it brings none of its own', (t) => {
  const runDir = mkdtempSync(join(tmpdir(), 'kata-pod-'));
  t.after(() => rmSync(runDir, { recursive: true }));
  writePodFiles(runDir, podConfig(options({ hostname: 'web', dns_config: { servers: ['1.1.1.1'] } }), '', 'pod').files);
  const own = { destination: '/etc/hosts', type: 'bind', source: '/kubelet/hosts', options: ['rbind'] };
  const spec = parseSpec(JSON.stringify(criSpec({ mounts: [own] })));
  const bundle: Bundle = { dir: '/b', spec, role: { kind: 'single' }, annotations: {}, facts: new Map() };
  const { spec: after, facts } = withPodFiles(bundle, runDir);
  assert.deepEqual(
    after.mounts.map(({ destination, options }) => [destination, options.at(-1)]),
    [
      ['/etc/hosts', 'rbind'],
      ['/etc/hostname', 'ro'],
      ['/etc/resolv.conf', 'ro'],
    ],
  );
  const source = after.mounts.at(-1)?.source ?? '';
  assert.equal(readFileSync(source, 'utf8'), 'nameserver 1.1.1.1\n');
  assert.deepEqual(facts.get(source), { kind: 'file' });
});

test('a pod’s counters are its containers’ together', () => {
  const one = {
    ...{ cpuNanos: 10, cpuUserNanos: 6, cpuSystemNanos: 4, throttledPeriods: 1, throttledNanos: 2, memoryBytes: 100 },
    ...{
      memoryMaxBytes: 120,
      memoryLimitBytes: 200,
      memoryCacheBytes: 30,
      memoryInactiveBytes: 30,
      memoryAnonBytes: 70,
      memoryReclaimableBytes: 30,
      pids: 3,
      pidsLimit: 5,
    },
    ...{ readBytes: 7, writeBytes: 8, networks: [] },
  };
  const sum = summed([one, { ...one, memoryLimitBytes: 0 }]);
  assert.deepEqual([sum.cpuNanos, sum.memoryBytes, sum.pids, sum.readBytes], [20, 200, 6, 14]);
  assert.deepEqual([sum.memoryLimitBytes, sum.pidsLimit], [0, 10]);
  assert.equal(metricsOf(summed([]), 2).type_url, 'io.containerd.cgroups.v2.Metrics');
});
