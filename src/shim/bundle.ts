import { constants } from 'node:fs';
import { readFile, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import { type BundleSpec, parseSpec } from './runtime-spec.ts';

/** What a bundle's annotations say of its place: containerd's, CRI-O's, and those of dockershim. */
export type Role = { kind: 'sandbox' } | { kind: 'single' } | { kind: 'container'; sandboxId: string };

/** What the host has at a bind mount's source. */
export interface MountFacts {
  kind: 'directory' | 'file' | 'character' | 'block' | 'socket' | 'fifo';
  /** The file system there is a tmpfs; its size in bytes. */
  tmpfsBytes?: number;
  /** Of a device. */
  device?: { major: number; minor: number };
}

export interface Bundle {
  /** Absolute. */
  dir: string;
  spec: BundleSpec;
  role: Role;
  annotations: Readonly<Record<string, string>>;
  /** By source, of every bind mount. */
  facts: ReadonlyMap<string, MountFacts>;
}

const ROLES = [
  { type: 'io.kubernetes.cri.container-type', id: 'io.kubernetes.cri.sandbox-id', sandbox: 'sandbox' },
  { type: 'io.kubernetes.cri-o.ContainerType', id: 'io.kubernetes.cri-o.SandboxID', sandbox: 'sandbox' },
  { type: 'io.kubernetes.docker.type', id: 'io.kubernetes.sandbox.id', sandbox: 'podsandbox' },
] as const;

/** INVALID_ARGUMENT for a container that names no sandbox, or a type that nobody knows. */
export function roleOf(annotations: Readonly<Record<string, string>>): Role {
  for (const { type, id, sandbox } of ROLES) {
    const value = annotations[type];
    if (value === undefined) continue;
    if (value === sandbox) return { kind: 'sandbox' };
    const sandboxId = annotations[id] ?? '';
    if (value !== 'container' || sandboxId === '')
      throw new KataError('INVALID_ARGUMENT', `annotation ${type} is "${value}", ${id} is "${sandboxId}"`, {
        phase: 'bundle',
      });
    return { kind: 'container', sandboxId };
  }
  return { kind: 'single' };
}

/**
 * Reads a bundle. `root` is where the caller's file system is seen ("/proc/PID/root" of a process in its mount namespace; '': this
 * process's own). NOT_FOUND names the bind mount whose source is missing.
 */
export async function readBundle(dir: string, root = ''): Promise<Bundle> {
  const path = join(root, dir, 'config.json');
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    throw new KataError('NOT_FOUND', `the bundle cannot be read: ${(cause as Error).message}`, {
      phase: 'bundle',
      cause,
    });
  }
  const spec = parseSpec(text);
  const facts = new Map<string, MountFacts>();
  for (const { type, source, options, destination } of spec.mounts) {
    const isBind = type === 'bind' || options.includes('bind') || options.includes('rbind');
    if (!isBind || facts.has(source)) continue;
    try {
      facts.set(source, await factsOf(join(root, source)));
    } catch (cause) {
      throw new KataError(
        'NOT_FOUND',
        `the source ${source} of the mount at ${destination}: ${(cause as Error).message}`,
        {
          phase: 'bundle',
          cause,
        },
      );
    }
  }
  return { dir, spec, role: roleOf(spec.annotations), annotations: spec.annotations, facts };
}

const TMPFS_MAGIC = 0x01021994;

async function factsOf(path: string): Promise<MountFacts> {
  // Not realpath(3): under /proc/PID/root only the kernel follows into the other mount namespace.
  const { mode, rdev } = await stat(path);
  const kind = KINDS[mode & constants.S_IFMT];
  if (kind === undefined) throw new Error('it is neither file, directory, device, socket nor FIFO');
  if (kind === 'character' || kind === 'block') return { kind, device: { major: majorOf(rdev), minor: minorOf(rdev) } };
  const { type, blocks, bsize } = await statfs(path);
  return { kind, ...(type === TMPFS_MAGIC ? { tmpfsBytes: blocks * bsize } : {}) };
}

const KINDS: Readonly<Record<number, MountFacts['kind']>> = {
  [constants.S_IFDIR]: 'directory',
  [constants.S_IFREG]: 'file',
  [constants.S_IFCHR]: 'character',
  [constants.S_IFBLK]: 'block',
  [constants.S_IFSOCK]: 'socket',
  [constants.S_IFIFO]: 'fifo',
};

// The kernel's encoding of a 64-bit dev_t (glibc's sys/sysmacros.h).
const majorOf = (rdev: number): number => Math.floor(rdev / 256) % 4096;
const minorOf = (rdev: number): number => (rdev % 256) + (Math.floor(rdev / 2 ** 20) % 4096) * 256;
