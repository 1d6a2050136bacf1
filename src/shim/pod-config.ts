import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname as hostsName } from 'node:os';
import { basename, join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { PathFacts } from '../os/index.ts';
import type { Any } from '../rpc/containerd.ts';
import { NamespaceMode, PodSandboxConfig } from '../rpc/cri.ts';
import type { Bundle } from './bundle.ts';
import { refuseHostNamespace } from './plan.ts';

/** The Any's name of k8s.io/cri-api's message; what else containerd's clients give to a sandbox is not looked at. */
const CRI_CONFIG = 'runtime.v1.PodSandboxConfig';
const KATA_ANNOTATION = 'io.katacontainers.';
/** Files that a container has from its pod, where it brings none of its own. */
const POD_FILES = ['hostname', 'hosts', 'resolv.conf'] as const;
type PodFiles = Record<(typeof POD_FILES)[number], string>;
const MAX_FILE_BYTES = 1024 * 1024;

/** What a pod is, where no container says it: containerd's runtime has `sandboxer = "shim"`. */
export interface PodConfig {
  hostname: string;
  /** As the CRI plugin would give them to the pod's own container. */
  annotations: Record<string, string>;
  files: PodFiles;
  cgroupsPath: string;
}

/** INVALID_ARGUMENT for what a virtual machine cannot be. `root`: where the host's files are seen; `id`: the sandbox's. */
export function podConfig(options: Any | undefined, root: string, id: string): PodConfig {
  const { hostname, dns_config, annotations, linux } = decoded(options);
  const namespaces = linux?.security_context?.namespace_options;
  for (const type of ['network', 'pid', 'ipc'] as const)
    if (namespaces?.[type] === NamespaceMode.NODE) refuseHostNamespace(type);
  if (namespaces?.userns_options?.mode === NamespaceMode.POD && namespaces.userns_options !== undefined)
    refuseHostNamespace('user');
  const { memory_limit_in_bytes = 0n, cpu_quota = 0n, cpu_period = 0n } = linux?.resources ?? {};
  const sums = { memory: memory_limit_in_bytes, 'cpu-quota': cpu_quota, 'cpu-period': cpu_period };
  const name = hostname === '' ? hostsName() : hostname;
  const dns = [
    ...words('search', dns_config?.searches ?? []),
    ...(dns_config?.servers ?? []).flatMap((server) => words('nameserver', [server])),
    ...words('options', dns_config?.options ?? []),
  ];
  return {
    cgroupsPath: cgroupsPathOf(linux?.cgroup_parent ?? '', id),
    hostname: name,
    annotations: {
      ...Object.fromEntries(Object.entries(annotations).filter(([key]) => key.startsWith(KATA_ANNOTATION))),
      ...Object.fromEntries(
        Object.entries(sums).flatMap(([key, sum]) =>
          sum > 0n ? [[`io.kubernetes.cri.sandbox-${key}`, `${sum}`]] : [],
        ),
      ),
    },
    files: {
      hostname: `${name}\n`,
      hosts: hostFile(root, 'hosts'),
      'resolv.conf': dns.length > 0 ? dns.map((line) => `${line}\n`).join('') : hostFile(root, 'resolv.conf'),
    },
  };
}

/** As the CRI plugin writes it for the pod's own container. */
function cgroupsPathOf(parent: string, id: string): string {
  if (parent === '') return '';
  return parent.includes('.slice') ? `${basename(parent)}:cri-containerd:${id}` : join(parent, id);
}

function decoded(options: Any | undefined): PodSandboxConfig {
  if (options?.type_url !== CRI_CONFIG) return PodSandboxConfig.fromPartial({});
  try {
    return PodSandboxConfig.decode(options.value);
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `the pod's configuration cannot be read: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** One line of resolv.conf, or none. */
function words(keyword: string, values: readonly string[]): string[] {
  for (const value of values)
    if (!/^[!-~]+$/.test(value))
      throw new KataError('INVALID_ARGUMENT', `dns: ${JSON.stringify(value)} is not a word`, { phase: 'sandbox' });
  return values.length === 0 ? [] : [[keyword, ...values].join(' ')];
}

/** Empty where the host has none. */
function hostFile(root: string, name: string): string {
  try {
    return readFileSync(join(root, 'etc', name), 'utf8').slice(0, MAX_FILE_BYTES);
  } catch {
    return '';
  }
}

const directory = (runDir: string): string => join(runDir, 'etc');

export function writePodFiles(runDir: string, files: PodFiles): void {
  mkdirSync(directory(runDir), { recursive: true, mode: 0o755 });
  for (const name of POD_FILES) writeFileSync(join(directory(runDir), name), files[name], { mode: 0o644 });
}

/** A container's bundle with its pod's /etc/hostname, /etc/hosts and /etc/resolv.conf, where it has no mounts there. */
export function withPodFiles(bundle: Bundle, runDir: string): Bundle {
  const taken = bundle.spec.mounts.map(({ destination }) => destination);
  const facts = new Map<string, PathFacts>(bundle.facts);
  const access = bundle.spec.root.readonly ? 'ro' : 'rw';
  const mounts = POD_FILES.filter((name) => !taken.includes(`/etc/${name}`)).map((name) => {
    const source = join(directory(runDir), name);
    facts.set(source, { kind: 'file' });
    return { destination: `/etc/${name}`, type: 'bind', source, options: ['rbind', access] };
  });
  return { ...bundle, spec: { ...bundle.spec, mounts: [...bundle.spec.mounts, ...mounts] }, facts };
}
