/** The words of `virtio_fs_extra_args` that are taken, and nothing else: they become fields, never arguments as they were written. */
export interface FsArguments {
  threads?: number;
  posixAcl?: true;
  writeback?: true;
  directIo?: true;
}

const MAX_THREADS = 64;
const FIELDS: Readonly<Record<string, FsArguments>> = {
  '--posix-acl': { posixAcl: true },
  '--writeback': { writeback: true },
  '--allow-direct-io': { directIo: true },
  // Always so.
  '--announce-submounts': {},
  '--xattr': {},
};
const OLD: Readonly<Record<string, string>> = {
  announce_submounts: '--announce-submounts',
  xattr: '--xattr',
  posix_acl: '--posix-acl',
  writeback: '--writeback',
  allow_direct_io: '--allow-direct-io',
};

/** Undefined: one of them is not taken. Both "--option=value" and "--option", "value"; `-o name` is virtiofsd's older spelling. */
export function readFsArguments(value: unknown): FsArguments | undefined {
  if (!Array.isArray(value) || value.length > 32 || !value.every((one) => typeof one === 'string')) return undefined;
  const found: FsArguments = {};
  const rest = value.flatMap((one: string) => (/^(--thread-pool-size|-o)=/.test(one) ? one.split(/=(.*)/s, 2) : [one]));
  while (rest.length > 0) {
    const word = rest.shift() as string;
    if (word === '--thread-pool-size') {
      const threads = rest.shift() ?? '';
      if (!/^\d{1,2}$/.test(threads) || Number(threads) > MAX_THREADS) return undefined;
      found.threads = Number(threads);
      continue;
    }
    const old = word === '-o' ? (rest.shift() ?? '') : undefined;
    const name = old === undefined ? word : Object.hasOwn(OLD, old) ? (OLD[old] as string) : '';
    if (!Object.hasOwn(FIELDS, name)) return undefined;
    Object.assign(found, FIELDS[name]);
  }
  return found;
}
