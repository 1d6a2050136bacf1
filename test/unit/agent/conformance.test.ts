import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { qemu } from '../../../src/hypervisor/index.ts';
import { TtrpcClient, TtrpcServer } from '../../../src/ttrpc/index.ts';
import { guestAssets } from '../hypervisor/guest.ts';
import { LocalHost } from '../hypervisor/local-host.ts';
import { machineSpec } from '../hypervisor/spec.ts';
import { type AgentUnderTest, agentConformance } from './conformance.ts';
import { FakeAgent } from './fake-agent.ts';

const AGENT_PORT = 1024;
const READY_PORT = 1030;

agentConformance('fake agent', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'kata-agent-'));
  const server = new TtrpcServer(new FakeAgent().services);
  await server.listen(join(dir, 'sock'));
  const ttrpc = await TtrpcClient.connect(join(dir, 'sock'));
  return {
    ttrpc,
    rootfs: '/rootfs',
    storages: [],
    [Symbol.asyncDispose]: async () => {
      ttrpc.close();
      await server.close();
      rmSync(dir, { recursive: true });
    },
  };
});

/** Hybrid vsock: "CONNECT <port>\n" is answered "OK <port>\n". */
async function connectHybrid(path: string, port: number): Promise<Socket> {
  const socket = connect(path);
  await new Promise<void>((resolve, reject) => {
    let text = '';
    const read = (): void => {
      for (let byte = socket.read(1); byte !== null; byte = socket.read(1)) {
        text += byte.toString('latin1');
        if (!text.endsWith('\n')) continue;
        socket.off('readable', read);
        if (text.startsWith('OK ')) resolve();
        else reject(new Error(text));
        return;
      }
    };
    socket.once('error', reject);
    socket.on('readable', read);
    socket.write(`CONNECT ${port}\n`);
  });
  socket.removeAllListeners();
  return socket;
}

/** The real agent in a real guest, over the vsock device as the keeper would. */
async function realAgent(): Promise<AgentUnderTest> {
  const assets = guestAssets as NonNullable<typeof guestAssets>;
  const dir = mkdtempSync(join(tmpdir(), 'kata-agent-'));
  const files = join(dir, 'files');
  mkdirSync(join(files, 'bin'), { recursive: true });
  for (const name of ['proc', 'dev', 'sys', 'tmp']) mkdirSync(join(files, name));
  copyFileSync(assets.busybox, join(files, 'bin/busybox'));
  execFileSync('mkfs.ext4', ['-q', '-d', files, join(dir, 'rw.img'), '16m']);
  mkdirSync(join(dir, 'vsock'));
  const host = new LocalHost(dir);
  const console = createServer((socket) => socket.on('error', () => {}).resume());
  const ready = createServer();
  await new Promise<void>((resolve) => console.listen(join(dir, 'console.sock'), resolve));
  await new Promise<void>((resolve) => ready.listen(join(dir, `vsock/v.sock_${READY_PORT}`), resolve));
  const machine = qemu.create(
    machineSpec({
      kernel: assets.kernel,
      initrd: assets.initrd,
      runDir: dir,
      vsock: { mode: 'hybrid', directory: join(dir, 'vsock') },
      consoleSocket: join(dir, 'console.sock'),
      devices: [{ kind: 'block', id: 'rw', path: join(dir, 'rw.img'), readOnly: false }],
      binaries: { vmm: assets.vmm, vsockDevice: assets.vsockDevice },
    }),
    host,
  );
  const dispose = async (): Promise<void> => {
    await host[Symbol.asyncDispose]();
    for (const server of [console, ready]) server.close();
  };
  try {
    const pushed = new Promise<Socket>((resolve) => ready.once('connection', resolve));
    await machine.start();
    const early = machine.exited.then(() => Promise.reject(new Error('the machine ended')));
    (await Promise.race([pushed, early])).on('error', () => {}).destroy();
    const ttrpc = new TtrpcClient(await connectHybrid(join(dir, 'vsock/v.sock'), AGENT_PORT));
    const mountPoint = '/run/kata-containers/image/test';
    const address = machine.addressOf('rw');
    const storage = {
      driver: address.driver,
      driverOptions: [],
      source: address.source,
      fstype: 'ext4',
      options: [],
      mountPoint,
      shared: true,
    };
    return {
      ttrpc,
      rootfs: mountPoint,
      storages: [storage],
      [Symbol.asyncDispose]: async () => {
        ttrpc.close();
        await dispose();
      },
    };
  } catch (error) {
    await dispose();
    throw error;
  }
}

agentConformance('agent in a guest', realAgent, { skip: guestAssets?.agent ? false : 'no guest image with the agent' });
