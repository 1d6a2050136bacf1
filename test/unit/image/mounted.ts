import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';

/** Why the kernel's own EROFS cannot be asked here; false when it can. */
export const cannotMount: string | false =
  process.getuid?.() !== 0
    ? 'needs root'
    : !existsSync('/dev/loop-control')
      ? 'needs loop devices'
      : spawnSync('unshare', ['-m', 'true']).status === 0
        ? false
        : 'needs mount namespaces';

/**
 * Runs a shell script in a mount namespace of its own after mounting each image read-only at its directory; the namespace's end
 * unmounts all. Returns what the script prints.
 */
export function withMounted(images: readonly { image: string; at: string }[], script: string): Buffer {
  const mounts = images.map(({ image, at }) => `mount -t erofs -o loop,ro '${image}' '${at}'`);
  return execFileSync('unshare', ['-m', 'sh', '-euc', [...mounts, script].join('\n')], {
    maxBuffer: 64 * 2 ** 20,
    timeout: 60_000,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
}

/**
 * Everything of a tree that a container can see, but inode numbers, directory sizes and directory link counts (file systems
 * differ there): one NUL-ended record per file, then contents' digests, then extended attributes.
 */
export const describeTree = (dir: string): string => `
cd '${dir}'
find . -mindepth 1 -type d -printf '%P %y %m %U %G %T@\\0' -o -mindepth 1 ! -type d ! -type l -printf '%P %y %m %U %G %T@ %n %s\\0' -o -mindepth 1 -type l -printf '%P %y %U %G %T@ %n %l\\0' | sort -z
find . \\( -type c -o -type b \\) -print0 | sort -z | xargs -0r stat --printf '%n %t %T\\0'
find . -type f -print0 | sort -z | xargs -0r sha256sum -bz
find . -mindepth 1 ! -type l -print0 | sort -z | xargs -0r getfattr -h -d -m - -e hex 2>&1
cd /
`;
