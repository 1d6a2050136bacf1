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
 * What a new sandbox uses on this host: the kernel's vsock where its device opens, unless `wish`, KATA_VSOCK's value, is "hybrid".
 * INVALID_ARGUMENT for the wish "kernel" where it is not there, and for other wishes than these and "auto".
 */
export function chooseVsock(
  wish: string | undefined,
  { device = DEVICE, protocols = PROTOCOLS }: { device?: string; protocols?: string } = {},
): VsockChoice {
  if (wish === 'hybrid') return { mode: 'hybrid', reason: 'KATA_VSOCK=hybrid' };
  if (wish !== undefined && wish !== '' && !WISHES.includes(wish))
    throw new KataError('INVALID_ARGUMENT', `KATA_VSOCK=${wish}: it is one of ${WISHES.join(', ')}`, {
      hint: 'unset KATA_VSOCK',
    });
  const missing = missingInKernel(device, protocols);
  if (missing === undefined) return { mode: 'kernel', reason: `${device} opens` };
  if (wish === 'kernel')
    throw new KataError('INVALID_ARGUMENT', `KATA_VSOCK=kernel, but ${missing}`, {
      hint: 'load the module vhost_vsock, or unset KATA_VSOCK',
    });
  return { mode: 'hybrid', reason: missing };
}

function missingInKernel(device: string, protocols: string): string | undefined {
  try {
    // Only this tells whether it works: a device cgroup may forbid it, and opening it loads the module. Closing it waits for the
    // kernel's readers of the old list of guests, and nobody here has to wait for that.
    const file = openSync(device, 'r+');
    close(file, () => {});
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    return code === 'ENOENT' ? `${device} is missing` : `${device} does not open: ${message}`;
  }
  const hasSockets = /^AF_VSOCK\s/m.test(readFileSync(protocols, 'utf8'));
  return hasSockets ? undefined : `${device} opens, but the kernel has no AF_VSOCK sockets`;
}
