import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Assets } from '../sandbox/index.ts';

/** Pieces that set-up installs apart from the rest, and what asks for them. */
export interface AssetWish {
  /** The sandbox shares something of the host. */
  sharing: boolean;
  /** The sandbox's vsock is a device process. */
  vsockDevice: boolean;
}

/**
 * Looks up what a new sandbox uses, anew each time: set-up may have added files since. SETUP_INCOMPLETE names the missing piece.
 */
export function findAssets(dir: string, wish: AssetWish): Assets {
  const tool = (name: string): string => findTool(dir, name);
  return {
    keeper: tool('kata-keeper'),
    mkfs: tool('mkfs.ext4'),
    binaries: {
      vmm: tool('qemu-system-x86_64'),
      ...(wish.vsockDevice ? { vsockDevice: tool('vhost-device-vsock') } : {}),
      // Also where nothing is shared yet: a container that joins the machine later may need it.
      ...(wish.sharing || isInstalled(dir, 'virtiofsd') ? { virtiofsd: tool('virtiofsd') } : {}),
    },
    guest: findGuest(dir),
  };
}

/** Absolute path of one tool. SETUP_INCOMPLETE. */
export function findTool(dir: string, name: string): string {
  const path = readTools(dir)[name]?.path;
  if (typeof path !== 'string') throw missing(name, `${join(dir, 'tools.json')} does not name it`);
  const absolute = resolve(dir, path);
  if (!existsSync(absolute)) throw missing(name, `${absolute} does not exist`);
  return absolute;
}

function isInstalled(dir: string, name: string): boolean {
  const path = readTools(dir)[name]?.path;
  return typeof path === 'string' && existsSync(resolve(dir, path));
}

function findGuest(dir: string): Assets['guest'] {
  let digest: string;
  try {
    digest = readFileSync(join(dir, 'guest', 'current'), 'utf8').trim();
  } catch (error) {
    throw missing('guest image', (error as Error).message);
  }
  if (!/^[0-9a-f]{12,64}$/.test(digest))
    throw new KataError('GUEST_IMAGE_INVALID', `${join(dir, 'guest', 'current')} holds no digest`, {
      phase: 'setup',
      hint: 'run `kata setup`',
    });
  const image = join(dir, 'guest', digest);
  const guest = { digest, kernel: join(image, 'vmlinux'), initrd: join(image, 'initrd') };
  for (const path of [guest.kernel, guest.initrd])
    if (!existsSync(path)) throw missing('guest image', `${path} does not exist`);
  return guest;
}

function readTools(dir: string): Record<string, { path?: unknown } | undefined> {
  const path = join(dir, 'tools.json');
  try {
    const value: unknown = JSON.parse(readFileSync(path, 'utf8'));
    if (typeof value === 'object' && value !== null) return value as Record<string, { path?: unknown }>;
    throw new Error('no JSON object');
  } catch (error) {
    throw missing('tools.json', `${path}: ${(error as Error).message}`);
  }
}

const missing = (piece: string, evidence: string): KataError =>
  new KataError('SETUP_INCOMPLETE', `${piece} is not installed`, {
    phase: 'setup',
    evidence: [evidence],
    hint: 'run `kata setup`',
  });
