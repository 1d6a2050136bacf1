import { KataError } from '../base/index.ts';
import type { FlagSpec } from './command.ts';
import type { Flags } from './flags.ts';

export const FLAG_PLATFORM: FlagSpec = {
  long: 'platform',
  kind: 'string',
  value: 'PLATFORM',
  help: "Accepted as the host's own: linux/amd64",
};

/** The guest runs the host's own instructions. */
export function checkPlatform(flags: Flags): void {
  const platform = flags.string('platform');
  const own = `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`;
  if (platform !== undefined && platform !== own)
    throw new KataError('UNSUPPORTED_FLAG', `--platform ${platform} is not supported: this host runs ${own} images`);
}
