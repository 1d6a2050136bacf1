import { chooseVsock, run } from '../../os/index.ts';
import { findImage, verifyImage } from '../guest/store.ts';
import { isInstalled, readTools, sha256OfFile, type Tool } from '../tools.ts';
import { type Check, type CheckPlaces, failed, ok, warning } from './types.ts';

const SETUP = `run 'kata setup'`;

/** A tool whose file is there and, where set-up made it, still has the recorded content. */
async function intactTool({ assets }: CheckPlaces, name: string): Promise<Tool | string> {
  const tool = (await readTools(assets))[name];
  if (tool === undefined) return 'it is not installed';
  if (!(await isInstalled(tool))) return `${tool.path} is gone`;
  const isOurs = tool.path.startsWith(`${assets}/`);
  if (isOurs && (await sha256OfFile(tool.path)) !== tool.sha256) return `${tool.path} was changed`;
  return tool;
}

const qemu: Check = {
  name: 'qemu',
  timeoutMs: 10_000,
  async probe(places, signal) {
    const tool = await intactTool(places, 'qemu-system-x86_64');
    if (typeof tool === 'string') return failed('setup', `no QEMU: ${tool}`, SETUP);
    const { stdout: version } = await run([tool.path, '--version'], 'qemu', { signal });
    const { stdout: machines } = await run([tool.path, '-machine', 'help'], 'qemu', { signal });
    const known = ['q35', 'microvm'].filter((name) => new RegExp(`^${name}\\s`, 'm').test(machines));
    const number = /version (\d[\w.]*)/.exec(version)?.[1] ?? 'of an unknown version';
    if (!known.includes('q35')) return failed('boot', `QEMU ${number} has no q35 machine`, 'install a full QEMU');
    return ok(`QEMU ${number}, machines ${known.join(', ')} (${tool.path})`);
  },
};

const programs: Check = {
  name: 'programs',
  timeoutMs: 10_000,
  async probe(places) {
    const evidence: string[] = [];
    const versions: string[] = [];
    for (const name of ['kata-keeper', 'kata-agent', 'mkfs.ext4', 'busybox']) {
      const tool = await intactTool(places, name);
      if (typeof tool === 'string') evidence.push(`${name}: ${tool}`);
      else versions.push(`${name} ${tool.version}`);
    }
    if (evidence.length > 0) return failed('setup', 'programs are missing or damaged', SETUP, evidence);
    return ok(versions.join(', '));
  },
};

const guestImage: Check = {
  name: 'guest image',
  timeoutMs: 10_000,
  async probe({ assets }) {
    const image = await findImage(assets);
    const { kernel, vmlinux, initrd, agent } = await verifyImage(image.directory);
    const size = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
    const parts = `kernel ${kernel.release} (${size(vmlinux.sizeBytes)}), initrd ${size(initrd.sizeBytes)}`;
    const built = (await readTools(assets))['kata-agent'];
    if (built !== undefined && built.sha256 !== agent.sha256)
      return warning(`image ${image.name} has another agent than tools.json`, `run 'kata guest build'`);
    return ok(`${image.name}: ${parts}; hashes match`);
  },
};

const vsock: Check = {
  name: 'vsock',
  timeoutMs: 10_000,
  async probe(places, signal) {
    const { mode, reason } = chooseVsock(process.env.KATA_VSOCK);
    if (mode === 'kernel') return ok(`the kernel's vhost-vsock: ${reason}`);
    const tool = await intactTool(places, 'vhost-device-vsock');
    if (typeof tool === 'string') return failed('setup', `no vhost-device-vsock (${tool}), and ${reason}`, SETUP);
    await run([tool.path, '--version'], 'vsock', { signal });
    return ok(`vhost-device-vsock ${tool.version}: ${reason}`);
  },
};

const fileSharing: Check = {
  name: 'file sharing',
  timeoutMs: 10_000,
  async probe(places, signal) {
    const tool = await intactTool(places, 'virtiofsd');
    if (typeof tool === 'string')
      return warning(`no virtiofsd (${tool}); the first 'run -v' builds it`, `run 'kata setup --all'`);
    await run([tool.path, '--version'], 'virtiofsd', { signal });
    return ok(`virtiofsd ${tool.version}`);
  },
};

export const INSTALLATION_CHECKS: readonly Check[] = [qemu, programs, guestImage, vsock, fileSharing];
