import { loadGuest } from '../../setup/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { group } from '../group.ts';
import { renderListing } from '../list-output.ts';

const NO_ARGUMENTS = { minArguments: 0, maxArguments: 0 } as const;

const build: Command = {
  name: 'guest build',
  summary: 'Build a guest image with the newest kernel of the distribution, and use it for new containers',
  usage: '[OPTIONS]',
  flags: [
    {
      long: 'from',
      kind: 'string',
      value: 'MANIFEST',
      help: "Repeat another image: its manifest.json's kernel and modules",
    },
    { ...FLAG_JSON, help: 'Print JSON: the manifest' },
  ],
  ...NO_ARGUMENTS,
  examples: ['kata guest build', 'kata guest build --from manifest.json'],
  notes: [
    'The same kernel package, agent and recipe (guest/image.json) give the same digest. See docs/guest-image.md.',
  ],
  async run(context, flags) {
    const { buildGuest } = await loadGuest();
    const { name, manifest } = await buildGuest(context.locations.assets, { from: flags.string('from') });
    await context.out(flags.bool('json') ? `${JSON.stringify(manifest, undefined, 2)}\n` : `${name}\n`);
    return 0;
  },
};

const list: Command = {
  name: 'guest list',
  summary: 'List guest images',
  usage: '[OPTIONS]',
  flags: [
    { long: 'quiet', short: 'q', kind: 'bool', help: 'Print names only' },
    FLAG_FORMAT,
    { ...FLAG_JSON, help: 'Print JSON: the manifests' },
  ],
  ...NO_ARGUMENTS,
  examples: ['kata guest list'],
  notes: ['Fields: .Name .Current .Kernel .Agent .Size'],
  async run(context, flags) {
    const { listImages } = await loadGuest();
    const images = await listImages(context.locations.assets);
    const { formatBytes } = await import('../../base/index.ts');
    const rows = images.map(({ name, current, manifest: { kernel, agent, vmlinux, initrd } }) => ({
      Name: name,
      Current: current ? '*' : '',
      Kernel: kernel.release,
      Agent: agent.sha256.slice(0, 12),
      Size: formatBytes(vmlinux.sizeBytes + initrd.sizeBytes),
    }));
    const headers = { Name: 'NAME', Current: 'CURRENT', Kernel: 'KERNEL', Agent: 'AGENT', Size: 'SIZE' };
    const raw = images.map(({ name, current, directory, manifest }) => ({ name, current, directory, manifest }));
    await context.out(renderListing({ rows, headers, columns: Object.keys(headers), raw, quiet: 'Name' }, flags));
    return 0;
  },
};

const inspect: Command = {
  name: 'guest inspect',
  summary: 'Verify a guest image and print its manifest; without a name, the one in use',
  usage: '[IMAGE]',
  flags: [{ ...FLAG_JSON, help: 'Accepted: the output is JSON in any case' }],
  minArguments: 0,
  maxArguments: 1,
  examples: ['kata guest inspect'],
  async run(context, flags) {
    const { findImage, verifyImage } = await loadGuest();
    const { directory } = await findImage(context.locations.assets, flags.args[0]);
    await context.out(`${JSON.stringify(await verifyImage(directory), undefined, 2)}\n`);
    return 0;
  },
};

const prune: Command = {
  name: 'guest prune',
  summary: 'Remove guest images, kernel packages and replaced tools that nothing uses',
  usage: '',
  flags: [],
  ...NO_ARGUMENTS,
  examples: ['kata guest prune'],
  notes: ['What the sandboxes of this state root use stays; name another root with --root.'],
  async run(context) {
    const { pruneGuests } = await loadGuest();
    const removed = await pruneGuests(context.locations.assets, context.locations.run);
    await context.out(removed.map((path) => `${path}\n`).join(''));
    return 0;
  },
};

export const command: Command = group('guest', 'Manage guest images: what the virtual machines boot', [
  build,
  list,
  inspect,
  prune,
]);
