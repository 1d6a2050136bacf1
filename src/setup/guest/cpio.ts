/**
 * Writes an initramfs: the "newc" cpio format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
 * The same entries give the same bytes: sorted by path, no times, inode numbers in sequence, owner root.
 */
export type CpioEntry =
  | { path: string; kind: 'directory'; mode?: number }
  | { path: string; kind: 'file'; mode: number; data: Uint8Array }
  | { path: string; kind: 'symlink'; target: string }
  | { path: string; kind: 'character-device'; mode: number; major: number; minor: number };

const TYPE_BITS = { directory: 0o040000, file: 0o100000, symlink: 0o120000, 'character-device': 0o020000 } as const;
const MAX_FIELD = 0xffffffff;

/** The archive, uncompressed. Paths are relative ("etc/modules.list"); parents that are missing are added as 0755 directories. */
export function writeCpio(entries: readonly CpioEntry[]): Buffer {
  const chunks: Uint8Array[] = [];
  let inode = 0;
  for (const entry of withParents(entries)) {
    inode += 1;
    chunks.push(...member(entry, inode));
  }
  chunks.push(header({ inode: 0, mode: 0, links: 1, size: 0, major: 0, minor: 0 }, 'TRAILER!!!'));
  return Buffer.concat(chunks);
}

function withParents(entries: readonly CpioEntry[]): CpioEntry[] {
  const byPath = new Map<string, CpioEntry>();
  for (const entry of entries) {
    if (!/^[^/\0]+(\/[^/\0]+)*$/.test(entry.path) || entry.path.split('/').includes('..'))
      throw new RangeError(`not a relative path: "${entry.path}"`);
    if (byPath.has(entry.path)) throw new RangeError(`"${entry.path}" is there twice`);
    byPath.set(entry.path, entry);
  }
  for (const { path } of entries) {
    const parts = path.split('/');
    for (let length = 1; length < parts.length; length += 1) {
      const parent = parts.slice(0, length).join('/');
      const present = byPath.get(parent);
      if (present === undefined) byPath.set(parent, { path: parent, kind: 'directory' });
      else if (present.kind !== 'directory')
        throw new RangeError(`"${parent}" is not a directory but "${path}" is below it`);
    }
  }
  return [...byPath.values()].sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path)));
}

function member(entry: CpioEntry, inode: number): Uint8Array[] {
  const data =
    entry.kind === 'file' ? entry.data : entry.kind === 'symlink' ? Buffer.from(entry.target) : Buffer.alloc(0);
  const permissions = entry.kind === 'symlink' ? 0o777 : (entry.mode ?? 0o755);
  const device = entry.kind === 'character-device' ? entry : { major: 0, minor: 0 };
  const fields = {
    inode,
    mode: TYPE_BITS[entry.kind] | permissions,
    links: entry.kind === 'directory' ? 2 : 1,
    size: data.length,
    major: device.major,
    minor: device.minor,
  };
  return [header(fields, entry.path), data, padding(data.length)];
}

function header(
  fields: { inode: number; mode: number; links: number; size: number; major: number; minor: number },
  path: string,
): Buffer {
  const name = Buffer.from(`${path}\0`);
  const words = [
    fields.inode,
    fields.mode,
    0, // uid
    0, // gid
    fields.links,
    0, // mtime
    fields.size,
    0, // device of the archive's file system
    0,
    fields.major,
    fields.minor,
    name.length,
    0, // checksum: "newc" has none
  ];
  const text = words.map((word) => {
    if (word > MAX_FIELD) throw new RangeError(`"${path}": ${word} does not fit a cpio header`);
    return word.toString(16).padStart(8, '0').toUpperCase();
  });
  const fixed = Buffer.from(`070701${text.join('')}`, 'latin1');
  return Buffer.concat([fixed, name, padding(fixed.length + name.length)]);
}

const padding = (length: number): Buffer => Buffer.alloc((4 - (length % 4)) % 4);
