import { ensure, loadDescription, PIECES, type Piece } from '../../setup/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { renderListing } from '../list-output.ts';

export const command: Command = {
  name: 'setup',
  summary: 'Build and fetch what is needed',
  usage: '[OPTIONS]',
  flags: [
    { long: 'all', short: 'a', kind: 'bool', help: 'Also what only some containers need: file sharing with the host' },
    FLAG_FORMAT,
    { ...FLAG_JSON, help: 'Print JSON: tools and guest image' },
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata setup', 'kata setup --all'],
  notes: [
    'Other commands do this on their own when something is missing. Interrupted, it goes on where it stopped; when ' +
      'nothing is missing it changes nothing.',
    'apt installs QEMU and nftables, and a Rust compiler and libraries where they are missing; the kernel of the guest and busybox ' +
      'are downloaded and not installed.',
    'Fields: .Name .Version .Path',
  ],
  async run(context, flags) {
    const pieces: readonly Piece[] = flags.bool('all') ? PIECES : ['base', 'vsock'];
    const { assets } = context.locations;
    await ensure(pieces, { assets });
    const { describeInstallation } = await loadDescription();
    const installed = await describeInstallation(assets);
    const { name, directory, kernel } = installed.guest;
    const rows = [
      ...Object.entries(installed.tools).map(([tool, { version, path }]) => ({
        Name: tool,
        Version: version,
        Path: path,
      })),
      { Name: `guest ${name}`, Version: kernel, Path: directory },
    ];
    const headers = { Name: 'NAME', Version: 'VERSION', Path: 'PATH' };
    const columns = ['Name', 'Version', 'Path'];
    await context.out(renderListing({ rows, headers, columns, raw: installed }, flags));
    return 0;
  },
};
