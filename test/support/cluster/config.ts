import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { unpacked } from './pieces.ts';

/** containerd 1.6 is Debian's, with Debian's runc shim; 2 is built from its sources. Both use Debian's runc. */
export type ContainerdVersion = '1.6' | '2';

/** A runtime handler of the CRI plugin beside `runc`. */
export interface RuntimeHandler {
  name: string;
  /** `io.containerd.kata.v2` is looked for as containerd-shim-kata-v2 on containerd's PATH; a path names the file itself. */
  type: string;
  /** A configuration file for the shim. */
  configPath?: string;
  /** `shim`: containerd 2 drives the pod by the shim's sandbox service, without a pause container. */
  sandboxer?: 'shim';
}

export interface Settings {
  version: ContainerdVersion;
  directory: string;
  registry: string;
  handlers: readonly RuntimeHandler[];
  /** Below `directory`. */
  stateDirectory?: string;
}

export const BRIDGE = 'cni0';
const SANDBOX_IMAGE: Record<ContainerdVersion, string> = {
  '1.6': 'registry.k8s.io/pause:3.6',
  '2': 'registry.k8s.io/pause:3.10.2',
};

/** Writes everything that containerd reads below the directory; answers the path of its configuration. */
export function writeConfig(settings: Settings): string {
  const { directory, registry } = settings;
  for (const name of ['certs.d/_default', 'cni', 'opt']) mkdirSync(join(directory, name), { recursive: true });
  const host = `[host."${registry}"]\n  capabilities = ["pull", "resolve"]\n`;
  writeFileSync(join(directory, 'certs.d/_default/hosts.toml'), `server = "${registry}"\n${host}`);
  const network = {
    cniVersion: '0.4.0',
    name: 'test',
    plugins: [
      {
        type: 'bridge',
        bridge: BRIDGE,
        isGateway: true,
        ipMasq: true,
        hairpinMode: true,
        ipam: { type: 'host-local', ranges: [[{ subnet: '10.88.0.0/24' }]], routes: [{ dst: '0.0.0.0/0' }] },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  };
  writeFileSync(join(directory, 'cni/10-test.conflist'), JSON.stringify(network));
  const path = join(directory, 'config.toml');
  writeFileSync(path, toml(settings));
  return path;
}

function toml({ version, directory, handlers, stateDirectory = 'state' }: Settings): string {
  const isSecond = version === '2';
  const cri = isSecond ? 'io.containerd.cri.v1.runtime' : 'io.containerd.grpc.v1.cri';
  const image = isSecond ? 'io.containerd.cri.v1.images' : cri;
  const q = JSON.stringify;
  const plugins = unpacked('containernetworking-plugins', 'usr/lib/cni');
  const runtime = ({ name, type, configPath, sandboxer }: RuntimeHandler): string[] => [
    `[plugins.${q(cri)}.containerd.runtimes.${name}]`,
    `runtime_type = ${q(type)}`,
    'pod_annotations = ["io.katacontainers.*"]',
    'privileged_without_host_devices = true',
    ...(sandboxer === undefined ? [] : [`sandboxer = ${q(sandboxer)}`, 'disable_pause_image_pull = true']),
    ...(configPath === undefined
      ? []
      : [`[plugins.${q(cri)}.containerd.runtimes.${name}.options]`, `ConfigPath = ${q(configPath)}`]),
  ];
  return [
    `version = ${isSecond ? 3 : 2}`,
    `root = ${q(join(directory, 'root'))}`,
    `state = ${q(join(directory, stateDirectory))}`,
    '[grpc]',
    `address = ${q(join(directory, 'c.sock'))}`,
    '[ttrpc]',
    `address = ${q(join(directory, 'c.sock.ttrpc'))}`,
    '[plugins."io.containerd.internal.v1.opt"]',
    `path = ${q(join(directory, 'opt'))}`,
    `[plugins.${q(cri)}]`,
    // A root without CAP_SYS_RESOURCE may not lower the score, and no pod would start.
    'restrict_oom_score_adj = true',
    ...(isSecond
      ? [`[plugins.${q(image)}.pinned_images]`, `sandbox = ${q(SANDBOX_IMAGE[version])}`]
      : [`sandbox_image = ${q(SANDBOX_IMAGE[version])}`]),
    `[plugins.${q(image)}.registry]`,
    `config_path = ${q(join(directory, 'certs.d'))}`,
    `[plugins.${q(cri)}.cni]`,
    isSecond ? `bin_dirs = [${q(plugins)}]` : `bin_dir = ${q(plugins)}`,
    `conf_dir = ${q(join(directory, 'cni'))}`,
    `[plugins.${q(cri)}.containerd]`,
    'default_runtime_name = "runc"',
    `[plugins.${q(cri)}.containerd.runtimes.runc]`,
    'runtime_type = "io.containerd.runc.v2"',
    ...handlers.flatMap(runtime),
    '',
  ].join('\n');
}
