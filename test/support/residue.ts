import { spawnSync } from 'node:child_process';
import { type Dirent, existsSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** One thing that was left behind, and where. */
export interface Residue {
  /** call: what was to remove something and did not answer. */
  kind: 'process' | 'mount' | 'link' | 'filter' | 'netns' | 'cgroup' | 'socket' | 'file' | 'lock' | 'loop' | 'call';
  what: string;
}

export interface ResidueScope {
  /** State root of the engine or daemon under test; everything that names it belongs to the test. */
  root: string;
  runDir?: string;
  /** Name of the cgroup under which the engine makes its sandboxes' cgroups, unique to the test. */
  cgroupParent?: string;
  /**
   * The test has process, mount, network and cgroup namespaces of its own: whatever is in them belongs to it, but for itself
   * and the processes it descends from. Cgroups at the top are parents that configurations name, and may stay.
   */
  wholeNamespaces?: boolean;
  /** Processes of the test itself. */
  ignorePids?: readonly number[];
}

const text = (path: string): string => {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
};
const entries = (path: string): string[] => {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
};

/** Whether a line about a process, mount or socket is about the test. */
const isOwn = ({ root, wholeNamespaces }: ResidueScope, line: string): boolean =>
  wholeNamespaces === true || line.includes(root);

/** This process and those it descends from. */
function lineage(): Set<number> {
  const pids = new Set<number>();
  for (let pid = process.pid; pid > 0; pid = Number(/^PPid:\s*(\d+)/m.exec(text(`/proc/${pid}/status`))?.[1] ?? 0))
    pids.add(pid);
  return pids;
}

function processes(scope: ResidueScope): Residue[] {
  const found: Residue[] = [];
  const ignored = new Set([...(scope.ignorePids ?? []), ...(scope.wholeNamespaces ? lineage() : [process.pid])]);
  for (const name of entries('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || ignored.has(pid)) continue;
    const command = text(`/proc/${name}/cmdline`).replaceAll('\0', ' ').trim();
    // A process without a command line is a zombie, or gone by now.
    if (command !== '' && isOwn(scope, command))
      found.push({ kind: 'process', what: `${pid}: ${command.slice(0, 200)}` });
  }
  return found;
}

/** Mounts in this namespace and in every namespace that a process of the test still holds. */
function mounts(scope: ResidueScope): Residue[] {
  const seen = new Set<string>();
  const found = new Set<string>();
  for (const name of ['self', ...entries('/proc').filter((n) => /^\d+$/.test(n))]) {
    let namespace: string;
    try {
      namespace = readlinkSync(`/proc/${name}/ns/mnt`);
    } catch {
      continue;
    }
    if (seen.has(namespace)) continue;
    seen.add(namespace);
    for (const line of text(`/proc/${name}/mountinfo`).split('\n'))
      if (line !== '' && isOwn(scope, line)) found.add(line);
  }
  return [...found].map((what) => ({ kind: 'mount', what }));
}

/** From /proc, which shows the reader's own network namespace; sysfs shows the one of its mount. */
const links = (): Residue[] =>
  text('/proc/self/net/dev')
    .split('\n')
    .flatMap((line) => /^\s*([^\s:]+):/.exec(line)?.[1] ?? [])
    .filter((name) => name !== 'lo')
    .map((what) => ({ kind: 'link', what }));

/** The engines' tables in the packet filter. */
const filters = (): Residue[] =>
  (spawnSync('nft', ['list', 'tables'], { encoding: 'utf8' }).stdout ?? '')
    .split('\n')
    .filter((line) => line.includes(' kata_'))
    .map((what) => ({ kind: 'filter', what }));

const namespaces = (): Residue[] => entries('/run/netns').map((what) => ({ kind: 'netns', what }));

function cgroups({ cgroupParent, wholeNamespaces }: ResidueScope): Residue[] {
  const found: Residue[] = [];
  // The first version has a tree per controller, the second one for all.
  const below = existsSync('/sys/fs/cgroup/cgroup.controllers') ? 1 : 2;
  const walk = (directory: string, depth: number): void => {
    let children: Dirent[];
    try {
      children = readdirSync(directory, { withFileTypes: true });
    } catch {
      return;
    }
    for (const child of children) {
      if (!child.isDirectory()) continue;
      const path = join(directory, child.name);
      if (wholeNamespaces ? depth === below : path.includes(`/${cgroupParent}/`))
        found.push({ kind: 'cgroup', what: path });
      else if (depth < 4) walk(path, depth + 1);
    }
  };
  walk('/sys/fs/cgroup', 0);
  return found;
}

const sockets = (scope: ResidueScope): Residue[] =>
  text('/proc/net/unix')
    .split('\n')
    .filter((line) => line.includes(' /') && isOwn(scope, line))
    .map((what) => ({ kind: 'socket', what }));

function files({ root, runDir }: ResidueScope): Residue[] {
  const sandboxes = runDir === undefined ? '' : join(runDir, 's');
  const found: Residue[] = entries(sandboxes).map((uid) => ({ kind: 'file', what: join(sandboxes, uid) }));
  for (const id of entries(join(root, 'containers'))) found.push({ kind: 'file', what: join(root, 'containers', id) });
  return found;
}

function locks({ root, runDir }: ResidueScope): Residue[] {
  const inodes = new Map<string, string>();
  const add = (path: string): void => {
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat !== undefined) inodes.set(String(stat.ino), path);
  };
  for (const directory of [root, ...(runDir === undefined ? [] : [runDir])])
    for (const name of entries(directory)) add(join(directory, name));
  return text('/proc/locks')
    .split('\n')
    .flatMap((line) => {
      const inode = /[0-9a-f]+:[0-9a-f]+:(\d+) /.exec(line)?.[1];
      const path = inode === undefined ? undefined : inodes.get(inode);
      return path === undefined ? [] : [{ kind: 'lock' as const, what: path }];
    });
}

const loops = ({ root }: ResidueScope): Residue[] =>
  entries('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .filter((name) => text(`/sys/block/${name}/loop/backing_file`).includes(root))
    .map((what) => ({ kind: 'loop', what }));

/**
 * Everything that belongs to the engine of `scope` and still exists. Empty after every container was removed and the engine ended.
 * Runs inside the test's own mount and network namespaces, before they are torn down.
 */
export function collectResidue(scope: ResidueScope): Residue[] {
  return [
    ...processes(scope),
    ...mounts(scope),
    ...links(),
    ...filters(),
    ...namespaces(),
    ...cgroups(scope),
    ...sockets(scope),
    ...files(scope),
    ...locks(scope),
    ...loops(scope),
  ];
}
