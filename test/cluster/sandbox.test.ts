import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd, HOST_NETWORK, type Pod } from '../support/cluster/index.ts';
import { aliveSince, kill9, until } from '../support/env.ts';

// containerd 2 with `sandboxer = "shim"`: the pod is driven by the shim's sandbox service and has no container of its own.

/** NamespaceMode of CRI. */
const POD = 0;

describe('a pod of the sandbox service', () => {
  let containerd: Containerd;
  let pod: Pod;
  let first: string;
  before(async () => {
    const handlers = [{ name: 'kata-sandbox', type: 'io.containerd.kata.v2', sandboxer: 'shim' as const }];
    containerd = await Containerd.start({ version: '2', kata: true, handlers });
  });
  after(async () => assert.deepEqual(await containerd?.dispose(), []));

  const stateOf = async (id: string): Promise<string> => {
    const { status } = (await containerd.inspect('pod', id)) as { status: { state: string } };
    return status.state;
  };

  test('runs containers with its name, its name servers, its network and its shared memory', async () => {
    pod = await containerd.runPod('kata-sandbox', {
      name: 'web',
      dns_config: { servers: ['10.96.0.10'], searches: ['test.svc', 'svc'], options: ['ndots:5'] },
      linux: { resources: { memory_limit_in_bytes: 268_435_456 } },
    });
    assert.equal(await stateOf(pod.id), 'SANDBOX_READY');
    const half = {
      image: BUSYBOX,
      command: ['sleep', '1000'],
      linux: { resources: { memory_limit_in_bytes: 134_217_728 } },
    };
    first = await containerd.runContainer(pod, { name: 'first', ...half });
    const second = await containerd.runContainer(pod, { name: 'second', ...half });
    assert.equal(containerd.sandboxes().length, 1);
    const seen = await containerd.crictl(
      ...['exec', '--sync', first, 'sh', '-c'],
      'hostname; cat /etc/hostname /etc/resolv.conf; grep -c localhost /etc/hosts; echo here > /dev/shm/file; ip addr show eth0',
    );
    assert.match(
      seen,
      /^web\nweb\nsearch test\.svc svc\nnameserver 10\.96\.0\.10\noptions ndots:5\n[1-9]\d*\n.*inet 10\.88\.0\./s,
    );
    assert.equal(await containerd.crictl('exec', '--sync', second, 'cat', '/dev/shm/file'), 'here');
    // The machine is made for what kubelet would have told: 256 MiB, what the guest needs, and no more.
    const total = await containerd.crictl('exec', '--sync', first, 'awk', '/MemTotal/ {print $2}', '/proc/meminfo');
    assert.ok(Number(total) > 262_144 && Number(total) < 524_288, total);
  });

  test('its counters are its containers’', async () => {
    const { stats } = JSON.parse(await containerd.crictl('statsp', '-o', 'json')) as {
      stats: { linux: { memory: { usageBytes: { value: string } }; process: { processCount: { value: string } } } }[];
    };
    assert.equal(stats.length, 1);
    assert.ok(Number(stats[0]?.linux.memory.usageBytes.value) > 0);
    assert.equal(stats[0]?.linux.process.processCount.value, '2');
    assert.match(await containerd.crictl('metricsp'), /container_memory_usage_bytes/);
  });

  test('outlives containerd and the engine', async () => {
    const { engine } = JSON.parse(await containerd.kata('version', '--json')) as { engine: { pid: number } };
    await containerd.stopDaemon('SIGKILL');
    await kill9(engine.pid);
    await containerd.startDaemon();
    assert.equal(await stateOf(pod.id), 'SANDBOX_READY');
    assert.equal(await containerd.crictl('exec', '--sync', first, 'echo', 'lives'), 'lives');
  });

  test('a container of it ends and is removed, and another one comes', async () => {
    await containerd.crictl('stop', '--timeout', '0', first);
    await containerd.crictl('rm', first);
    const third = await containerd.runContainer(pod, {
      name: 'third',
      image: BUSYBOX,
      command: ['sh', '-c', 'exit 3'],
    });
    await until(async () => {
      const { status } = (await containerd.inspect('container', third)) as {
        status: { exitCode: number; state: string };
      };
      return status.state === 'CONTAINER_EXITED' && status.exitCode === 3;
    }, 'its exit is known');
  });

  test('is stopped, twice, then asked for, and removed with everything', async () => {
    const { info } = (await containerd.inspect('pod', pod.id)) as { info: { pid: number } };
    await containerd.crictl('stopp', pod.id);
    await containerd.crictl('stopp', pod.id);
    assert.equal(await stateOf(pod.id), 'SANDBOX_NOTREADY');
    assert.equal(aliveSince(info.pid), undefined);
    await containerd.crictl('rmp', pod.id);
    await until(() => containerd.sandboxes().length === 0, 'nothing is left');
  });

  test('a shared pid namespace outlives each of its containers', async () => {
    const linux = { security_context: { namespace_options: { pid: POD } } };
    const shared = await containerd.runPod('kata-sandbox', { name: 'shared', linux });
    const sleeping = (seconds: string): Promise<string> =>
      containerd.runContainer(shared, { name: `for-${seconds}`, image: BUSYBOX, command: ['sleep', seconds], linux });
    const one = await sleeping('1000');
    const two = await sleeping('2000');
    const processes = (): Promise<string> => containerd.crictl('exec', '--sync', two, 'ps', '-o', 'pid,comm,args');
    assert.match(await processes(), /^ +1 pause .*sleep 1000.*sleep 2000/ms);
    await containerd.crictl('stop', '--timeout', '0', one);
    const left = await processes();
    assert.match(left, /^ +1 pause .*sleep 2000/ms);
    assert.doesNotMatch(left, /sleep 1000/);
    const agentLog = (): Promise<string> => containerd.kata('logs', '--agent', '--level', 'info', shared.id);
    assert.match(await agentLog(), /^info agent: kata-agent/);
    await containerd.crictl('rmp', '--force', shared.id);
    await until(() => containerd.sandboxes().length === 0, 'the sandbox is gone');
    assert.match(await agentLog(), /^info agent: kata-agent/);
  });

  test('a machine that dies makes its pod not ready', async () => {
    const dying = await containerd.runPod('kata-sandbox', { name: 'dying' });
    const { info } = (await containerd.inspect('pod', dying.id)) as { info: { pid: number } };
    process.kill(info.pid, 'SIGKILL');
    await until(async () => (await stateOf(dying.id)) === 'SANDBOX_NOTREADY', 'the pod is not ready');
    await containerd.crictl('rmp', '--force', dying.id);
    await until(() => containerd.sandboxes().length === 0, 'nothing is left');
  });

  test('the host’s namespaces are refused, and nothing is left', async () => {
    await assert.rejects(
      containerd.runPod('kata-sandbox', { name: 'host', linux: HOST_NETWORK }),
      /network namespace cannot be used/,
    );
    await until(() => containerd.sandboxes().length === 0, 'nothing is left');
  });
});
