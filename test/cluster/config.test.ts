import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BUSYBOX, Containerd } from '../support/cluster/index.ts';

// configuration.toml by the option ConfigPath of a runtime, and annotations of pods, through the whole of containerd.

const HYPERVISOR = 'io.katacontainers.config.hypervisor.';
const GOOD = `[hypervisor.qemu]
default_memory = 640
kernel_params = "mitigations=off kata_test=seen"
virtio_fs_cache = "never"
enable_hugepages = true
enable_annotations = ["default_memory"]
`;

for (const version of ['1.6', '2'] as const)
  describe(`the configuration on containerd ${version}`, () => {
    const directory = mkdtempSync(join(tmpdir(), 'kata-config-'));
    const path = join(directory, 'configuration.toml');
    const write = (text: string): void => writeFileSync(path, text, { mode: 0o600 });
    let containerd: Containerd;
    before(async () => {
      write(GOOD);
      containerd = await Containerd.start({
        version,
        kata: true,
        handlers: [{ name: 'configured', type: 'io.containerd.kata.v2', configPath: path }],
      });
    });
    after(async () => {
      assert.deepEqual(await containerd?.dispose(), []);
      rmSync(directory, { recursive: true });
    });

    const memoryMib = async (id: string): Promise<number> => {
      const total = /^MemTotal: +(\d+) kB/m.exec(await containerd.crictl('exec', id, 'cat', '/proc/meminfo'))?.[1];
      return Number(total) / 1024;
    };
    const container = { name: 'c', image: BUSYBOX, command: ['sleep', '1000'] };
    const refused = async (handler: string, name: string, annotations: Record<string, string>): Promise<string> =>
      containerd.runPod(handler, { name, annotations }).then(
        () => assert.fail('the pod runs'),
        (error: Error) => error.message,
      );

    test('a pod is as the file says, and what it says in vain is in the engine’s log', async () => {
      const pod = await containerd.runPod('configured', { name: 'plain' });
      const id = await containerd.runContainer(pod, container);
      const memory = await memoryMib(id);
      assert.ok(memory > 500 && memory < 640, `${memory} MiB`);
      assert.match(await containerd.crictl('exec', id, 'cat', '/proc/cmdline'), / mitigations=off kata_test=seen/);
      const log = readFileSync(join(containerd.kataRoot, 'run/katad.log'), 'utf8');
      assert.match(
        log,
        new RegExp(`configuration: ${path}:5: \\[hypervisor.qemu\\] enable_hugepages = true is not honoured`),
      );
      await containerd.crictl('rmp', '-f', pod.id);
    });

    test('an annotation that the file allows is done, another one is refused by name', async () => {
      const annotations = { [`${HYPERVISOR}default_memory`]: '900' };
      const pod = await containerd.runPod('configured', { name: 'asks', annotations });
      const memory = await memoryMib(await containerd.runContainer(pod, container));
      assert.ok(memory > 760 && memory < 900, `${memory} MiB`);
      await containerd.crictl('rmp', '-f', pod.id);
      const args = { [`${HYPERVISOR}virtio_fs_extra_args`]: '["-o","source=/"]' };
      assert.match(
        await refused('configured', 'forbidden', args),
        /virtio_fs_extra_args.* is not allowed[\s\S]*enable_annotations of .*\["default_memory[\s\S]*have the administrator add/,
      );
      // A handler without a configuration allows none.
      assert.match(await refused('kata', 'plain-handler', annotations), /default_memory.* is not allowed/);
    });

    test('a value that is not possible is in the answer, with its place', async () => {
      write('[hypervisor.qemu]\ndefault_memory = "2G"\n');
      assert.match(
        await refused('configured', 'wrong', {}),
        new RegExp(`${path}:2: .*default_memory must be an integer`),
      );
      write(GOOD);
      const shown = JSON.parse(await containerd.kata('config', '--json', '--file', path));
      assert.deepEqual([shown.files, shown.effective.memoryBytes, shown.warnings.length], [[path], 640 * 2 ** 20, 1]);
    });
  });
