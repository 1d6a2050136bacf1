/** The parts of CRI's PodSandboxConfig and ContainerConfig that tests set, as crictl reads them. */
export interface PodConfig {
  metadata: { name: string; namespace: string; uid: string; attempt: number };
  hostname?: string;
  log_directory: string;
  annotations?: Record<string, string>;
  labels?: Record<string, string>;
  /** The protocol's number in CRI: TCP (not given), 1 UDP, 2 SCTP. */
  port_mappings?: { protocol?: 1 | 2; container_port: number; host_port: number }[];
  dns_config?: { servers?: string[]; searches?: string[]; options?: string[] };
  linux: Record<string, unknown>;
}

export interface ContainerConfig {
  metadata: { name: string; attempt: number };
  image: { image: string };
  command?: string[];
  args?: string[];
  working_dir?: string;
  envs?: { key: string; value: string }[];
  mounts?: { container_path: string; host_path: string; readonly?: boolean; propagation?: number }[];
  devices?: { container_path: string; host_path: string; permissions: string }[];
  annotations?: Record<string, string>;
  labels?: Record<string, string>;
  log_path: string;
  stdin?: boolean;
  stdin_once?: boolean;
  tty?: boolean;
  linux: Record<string, unknown>;
}

/** Everything of a pod that is not given has a value that fits most tests. */
export type PodOptions = { name: string } & Partial<Omit<PodConfig, 'metadata' | 'log_directory'>>;
export type ContainerOptions = { name: string; image: string } & Partial<
  Omit<ContainerConfig, 'metadata' | 'image' | 'log_path'>
>;

/** CRI's NamespaceMode NODE: the pod uses the host's network. */
export const HOST_NETWORK = { security_context: { namespace_options: { network: 2 } } };

export const podConfig = ({ name, ...rest }: PodOptions, logDirectory: string): PodConfig => ({
  metadata: { name, namespace: 'test', uid: `uid-${name}`, attempt: 0 },
  hostname: name,
  log_directory: logDirectory,
  linux: {},
  ...rest,
});

export const containerConfig = ({ name, image, ...rest }: ContainerOptions): ContainerConfig => ({
  metadata: { name, attempt: 0 },
  image: { image },
  log_path: `${name}.log`,
  linux: {},
  ...rest,
});
