import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { PathFacts, RootfsMount } from '../os/index.ts';
import type { Keeper } from '../sandbox/index.ts';
import { diskMount } from '../storage/index.ts';
import { type BundleSpec, parseSpec } from './runtime-spec.ts';

/** What a bundle's annotations say of its place: containerd's, CRI-O's, and those of dockershim. */
export type Role = { kind: 'sandbox' } | { kind: 'single' } | { kind: 'container'; sandboxId: string };

export interface Bundle {
  /** Absolute. */
  dir: string;
  spec: BundleSpec;
  role: Role;
  annotations: Readonly<Record<string, string>>;
  /** By source, of every bind mount and of a root file system that is a disk. */
  facts: ReadonlyMap<string, PathFacts>;
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

export interface BundleSources {
  /** Where the caller's file system is seen: "/proc/PID/root" of a process in its mount namespace, or a copy of that; '': this process's own. */
  root: string;
  /** What the caller sees now, also where the copy has it not. */
  look: Keeper['look'];
  rootfs: readonly RootfsMount[];
}

/** Reads a bundle. NOT_FOUND names the mount whose source is missing. */
export async function readBundle(dir: string, { root, look, rootfs }: BundleSources): Promise<Bundle> {
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
  const wanted = new Map<string, string>();
  const disk = diskMount(rootfs);
  if (disk !== undefined) wanted.set(disk.source, '/');
  for (const { type, source, options, destination } of spec.mounts)
    if (type === 'bind' || options.includes('bind') || options.includes('rbind')) wanted.set(source, destination);
  const facts = new Map<string, PathFacts>();
  const seen = wanted.size === 0 ? [] : await look([...wanted.keys()]);
  for (const [index, [source, destination]] of [...wanted].entries()) {
    const found = seen[index];
    if (found === undefined || 'error' in found)
      throw new KataError(
        'NOT_FOUND',
        `the source ${source} of the mount at ${destination}: ${found?.error ?? 'nothing is known of it'}`,
        { phase: 'bundle' },
      );
    facts.set(source, found);
  }
  return { dir, spec, role: roleOf(spec.annotations), annotations: spec.annotations, facts };
}
