/** Debian packages, unpacked side by side and not installed: no service is set up, nothing of the machine changes. */
export const UNPACKED = [
  'containerd',
  'runc',
  'containernetworking-plugins',
  // For the images.
  'busybox-static',
  'busybox',
  'libc6',
  'nginx',
  'libcrypt1',
  'libpcre2-8-0',
  'libssl3',
  'zlib1g',
] as const;

const CONTAINERD = 'github.com/containerd/containerd/v2';
const CRI_TOOLS = 'sigs.k8s.io/cri-tools';

interface Build {
  /** Directory below test/cluster/tools whose go.mod and go.sum pin it. */
  module: (typeof MODULES)[number];
  command: readonly string[];
  flags: readonly string[];
  programs: readonly string[];
}

export const MODULES = ['containerd', 'cri-tools'] as const;
const criTools = {
  module: 'cri-tools',
  flags: [`-ldflags=-s -w -X ${CRI_TOOLS}/pkg/version.Version=1.36.0`],
} as const;

/** One after the other: a second compiler would only take the first one's processors. */
export const BUILDS: readonly Build[] = [
  {
    module: 'containerd',
    command: ['build'],
    flags: ['-tags=no_btrfs no_devmapper no_zfs no_aufs', `-ldflags=-s -w -X ${CONTAINERD}/version.Version=2.4.2`],
    programs: ['containerd', 'ctr', 'containerd-shim-runc-v2'].map((name) => `${CONTAINERD}/cmd/${name}`),
  },
  { ...criTools, command: ['build'], programs: [`${CRI_TOOLS}/cmd/crictl`] },
  { ...criTools, command: ['test', '-c'], programs: [`${CRI_TOOLS}/cmd/critest`] },
];
