import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { writeCpio } from '../../../src/setup/guest/cpio.ts';

export interface GuestAssets {
  kernel: string;
  initrd: string;
  /** The initrd's /init is this project's agent. */
  agent: boolean;
  vmm: string;
  vsockDevice: string;
  /** Absent: nothing is shared. */
  virtiofsd: string | undefined;
  busybox: string;
}

/** What driver tests boot: KATA_TEST_* name it one by one; else it is the installation's current guest image and tools. */
export const guestAssets = findAssets();

function findAssets(): GuestAssets | undefined {
  const { env } = process;
  const assets = env.KATA_ASSETS ?? join(import.meta.dirname, '../../../.kata');
  const image = readText(join(assets, 'guest/current'))?.trim();
  const tools = JSON.parse(readText(join(assets, 'tools.json')) ?? '{}') as Record<
    string,
    { path: string } | undefined
  >;
  const tool = (name: string): string | undefined => {
    const path = tools[name]?.path;
    return path === undefined ? undefined : resolve(assets, path);
  };
  const installed = (file: string) => (image === undefined ? undefined : join(assets, 'guest', image, file));
  const kernel = env.KATA_TEST_VMLINUX ?? installed('vmlinux');
  const initrd = env.KATA_TEST_INITRD ?? installed('initrd');
  const vsockDevice = env.KATA_TEST_VSOCK_DEVICE ?? tool('vhost-device-vsock');
  if (kernel === undefined || initrd === undefined || vsockDevice === undefined) return undefined;
  return {
    kernel,
    initrd,
    agent: env.KATA_TEST_INITRD === undefined || env.KATA_TEST_AGENT === '1',
    vmm: env.KATA_TEST_QEMU ?? tool('qemu-system-x86_64') ?? '/usr/bin/qemu-system-x86_64',
    vsockDevice,
    virtiofsd: env.KATA_TEST_VIRTIOFSD ?? tool('virtiofsd'),
    busybox: env.KATA_TEST_BUSYBOX ?? tool('busybox') ?? '/bin/busybox',
  };
}

function readText(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, 'utf8') : undefined;
}

/**
 * /init of a guest for driver tests: loads the initrd's modules and runs a shell on the console. The kernel unpacks archives
 * one behind the other, so it replaces the initrd's own /init.
 */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
cat /etc/modules.list /etc/modules/*.list | grep -v '^#' | while read -r m; do insmod "$m"; done
exec 0<>/dev/ttyS0 1>&0 2>&0
stty -echo
echo GUEST-READY
while IFS= read -r line; do eval "$line"; done
`;

/** Writes the initrd with a shell into `dir`. */
export function shellInitrd(dir: string, assets: GuestAssets): string {
  const busybox = readFileSync(assets.busybox);
  const shell = writeCpio([
    { path: 'bin/busybox', kind: 'file', mode: 0o755, data: busybox },
    { path: 'init', kind: 'file', mode: 0o755, data: Buffer.from(INIT) },
  ]);
  const path = join(dir, 'initrd');
  const archive = readFileSync(assets.initrd);
  const padding = Buffer.alloc((4 - (archive.length % 4)) % 4);
  writeFileSync(path, Buffer.concat([archive, padding, shell]));
  return path;
}

/** The console socket's other end: a shell in the guest. */
export class GuestShell implements AsyncDisposable {
  readonly #server: Server;
  #socket: Socket | undefined;
  #text = '';
  #changed: () => void = () => {};
  #commands = 0;
  #closed = false;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async listen(path: string): Promise<GuestShell> {
    const server = createServer();
    const shell = new GuestShell(server);
    server.on('connection', (socket) => {
      shell.#socket = socket;
      socket.on('error', () => {});
      socket.on('data', (chunk) => {
        shell.#text = (shell.#text + chunk.toString('latin1')).slice(-1_000_000);
        shell.#changed();
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return shell;
  }

  /** Resolves when the guest's shell runs. */
  async ready(): Promise<void> {
    await this.#until(/GUEST-READY/);
  }

  /** Runs a command; its output. Throws when it fails. */
  async run(command: string): Promise<string> {
    this.#commands += 1;
    const from = this.#text.length;
    this.#socket?.write(`${command}; echo "E"ND-${this.#commands}-$?\n`);
    const match = await this.#until(new RegExp(`END-${this.#commands}-(\\d+)`), from);
    const output = this.#text.slice(from, this.#text.indexOf(match[0], from)).replaceAll('\r', '');
    if (match[1] !== '0') throw new Error(`guest: ${command}: status ${match[1]}: ${output}`);
    return output.trim();
  }

  async #until(pattern: RegExp, from = 0): Promise<RegExpExecArray> {
    const deadline = Date.now() + 60_000;
    for (;;) {
      const match = pattern.exec(this.#text.slice(from));
      if (match !== null) return match;
      if (this.#closed) throw new Error('the guest is gone');
      if (Date.now() > deadline) throw new Error(`guest says nothing like ${pattern}: ${this.#text.slice(-3000)}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 1000);
        this.#changed = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    this.#changed();
    this.#socket?.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
