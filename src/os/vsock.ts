import { close, openSync, readFileSync } from 'node:fs';
import { KataError } from '../base/index.ts';
import type { VsockMode } from '../model/index.ts';

export interface VsockChoice {
  mode: VsockMode;
  /** One sentence for a person. */
  reason: string;
}

const DEVICE = '/dev/vhost-vsock';
/** Lists the socket families of the kernel that have sockets of their own. */
const PROTOCOLS = '/proc/net/protocols';
const WISHES = ['auto', 'hybrid', 'kernel'];

/**
 * What a new sandbox uses on this host. `wish` is KATA_VSOCK's value: "hybrid" and "kernel" are taken as they are, "auto" or
 * nothing is the kernel's where its device opens. INVALID_ARGUMENT for another wish.
 */
export function chooseVsock(
  wish: string | undefined,
  { device = DEVICE, protocols = PROTOCOLS }: { device?: string; protocols?: string } = {},
): VsockChoice {
  if (wish === 'hybrid' || wish === 'kernel') return { mode: wish, reason: `KATA_VSOCK=${wish}` };
  if (wish !== undefined && wish !== '' && wish !== 'auto')
    throw new KataError('INVALID_ARGUMENT', `KATA_VSOCK=${wish}: it is one of ${WISHES.join(', ')}`);
  try {
    // Only this tells whether it works: a device cgroup may forbid it, and opening it loads the module. Closing it waits for the
    // kernel's readers of the old list of guests, and nobody here has to wait for that.
    const file = openSync(device, 'r+');
    close(file, () => {});
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? `${device} is missing` : `${device} does not open: ${message}`;
    return { mode: 'hybrid', reason };
  }
  if (!/^AF_VSOCK\s/m.test(readFileSync(protocols, 'utf8')))
    return { mode: 'hybrid', reason: `${device} opens, but the kernel has no AF_VSOCK sockets` };
  return { mode: 'kernel', reason: `${device} opens` };
}
