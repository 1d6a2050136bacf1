import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BUSYBOX, Containerd, type Pod } from '../support/cluster/index.ts';
import { until } from '../support/env.ts';

// The models of a pod's network beside tcfilter, which every other test has.

const MODELS = ['macvtap', 'none'] as const;
const PORT = 8080;

const directory = mkdtempSync(join(tmpdir(), 'kata-models-'));
let containerd: Containerd;
before(async () => {
  const handlers = MODELS.map((model) => {
    const configPath = join(directory, `${model}.toml`);
    writeFileSync(configPath, `[runtime]\ninternetworking_model = "${model}"\n`, { mode: 0o600 });
    return { name: model, type: 'io.containerd.kata.v2', configPath };
  });
  containerd = await Containerd.start({ version: '1.6', kata: true, handlers });
});
after(async () => {
  assert.deepEqual(await containerd?.dispose(), []);
  rmSync(directory, { recursive: true });
});

async function podWith(model: string): Promise<{ pod: Pod; address: string; guest(script: string): Promise<string> }> {
  const pod = await containerd.runPod(model, { name: model });
  const id = await containerd.runContainer(pod, { name: 'c', image: BUSYBOX, command: ['sleep', '1000'] });
  const guest = (script: string): Promise<string> => containerd.crictl('exec', '--sync', id, 'sh', '-c', script);
  return { pod, address: await containerd.address(pod), guest };
}

async function readFrom(host: string): Promise<string> {
  const socket = connect(PORT, host);
  await once(socket, 'connect');
  let text = '';
  for await (const chunk of socket.setEncoding('utf8')) text += chunk;
  return text;
}

test('macvtap: the guest has the pod’s address and speaks with the host both ways, also after the engine’s death', async () => {
  const { pod, address, guest } = await podWith('macvtap');
  const shown = await guest('ip -o -4 addr show; ip link show eth0; ip route show');
  assert.match(shown, new RegExp(`eth0 +inet ${address}/`));
  const gateway = /default via ([\d.]+)/.exec(shown)?.[1] as string;
  assert.match(await guest(`ping -c 3 -W 20 ${gateway}`), /[123] packets received/);
  await guest(`(while :; do echo "guest of ${address}" | nc -l -p ${PORT}; done) > /dev/null 2>&1 &`);
  const hears = (): Promise<void> =>
    until(async () => (await readFrom(address).catch(() => '')) === `guest of ${address}\n`, 'the guest answers');
  await hears();
  const { engine } = JSON.parse(await containerd.kata('version', '--json')) as { engine: { pid: number } };
  process.kill(engine.pid, 'SIGKILL');
  await hears();
  await containerd.crictl('rmp', '-f', pod.id);
});

test('none: the guest has loopback alone', async () => {
  const { pod, address, guest } = await podWith('none');
  assert.match(address, /^10\./);
  assert.deepEqual((await guest('ls /sys/class/net')).split('\n'), ['lo']);
  await containerd.crictl('rmp', '-f', pod.id);
});
