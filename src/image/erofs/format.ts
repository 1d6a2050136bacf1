/**
 * The on-disk structures of EROFS as Linux documents them (fs/erofs/erofs_fs.h, Documentation/filesystems/erofs.rst): uncompressed,
 * 4 KiB blocks, little-endian. Only what Linux 5.4 already reads is used, with the superblock's checksum (5.5).
 */
import { crc32c } from './crc32c.ts';
import type { Node, NodeKind } from './node.ts';

export const BLOCK_BYTES = 4096;
/** An inode's number is its place in the metadata area in units of this. */
export const SLOT_BYTES = 32;
export const COMPACT_INODE_BYTES = 32;
export const EXTENDED_INODE_BYTES = 64;
const SUPER_OFFSET = 1024;
const SUPER_MAGIC = 0xe0f5e1e2;
const COMPAT_CHECKSUM = 0x1;
const COMPAT_MTIME = 0x2;
const DIRENT_BYTES = 12;
const XATTR_HEADER_BYTES = 12;
const XATTR_ENTRY_BYTES = 4;
/** Data in blocks of its own; data (all of it less than a block) right behind the inode. */
const LAYOUT_PLAIN = 0;
const LAYOUT_INLINE = 2;
const NO_BLOCK = 0xffffffff;

const FILE_TYPES: Record<NodeKind, { dirent: number; mode: number }> = {
  file: { dirent: 1, mode: 0o100000 },
  directory: { dirent: 2, mode: 0o040000 },
  'character-device': { dirent: 3, mode: 0o020000 },
  'block-device': { dirent: 4, mode: 0o060000 },
  fifo: { dirent: 5, mode: 0o010000 },
  symlink: { dirent: 7, mode: 0o120000 },
};

/** Prefixes that are stored as one byte. Attributes of other namespaces cannot be stored. */
const XATTR_PREFIXES: readonly (readonly [string, number])[] = [
  ['user.', 1],
  ['system.posix_acl_access', 2],
  ['system.posix_acl_default', 3],
  ['trusted.', 4],
  ['security.', 6],
];

export interface Superblock {
  rootNid: number;
  inodes: number;
  blocks: number;
  metaBlock: number;
  /** Compact inodes have this modification time. */
  buildSeconds: number;
  buildNanos: number;
  uuid: Uint8Array;
}

/** Block 0 of the image. */
export function encodeSuperblock(sb: Superblock): Buffer {
  const block = Buffer.alloc(BLOCK_BYTES);
  const at = SUPER_OFFSET;
  block.writeUInt32LE(SUPER_MAGIC, at);
  block.writeUInt32LE(COMPAT_CHECKSUM | COMPAT_MTIME, at + 8);
  block.writeUInt8(Math.log2(BLOCK_BYTES), at + 12);
  block.writeUInt16LE(sb.rootNid, at + 14);
  block.writeBigUInt64LE(BigInt(sb.inodes), at + 16);
  block.writeBigInt64LE(BigInt(sb.buildSeconds), at + 24);
  block.writeUInt32LE(sb.buildNanos, at + 32);
  block.writeUInt32LE(sb.blocks, at + 36);
  block.writeUInt32LE(sb.metaBlock, at + 40);
  block.set(sb.uuid.subarray(0, 16), at + 48);
  block.writeUInt32LE(crc32c(block.subarray(at)), at + 4);
  return block;
}

/** Where a node's inode is and what stands around it; made by the layout, consumed by `encodeInode`. */
export interface Placement {
  nid: number;
  /** Shown by stat(2) as the inode's number on 32 bits; here its rank. */
  inode: number;
  extended: boolean;
  links: number;
  /** Length of the directory's entries, the symlink's target or the file. */
  sizeBytes: number;
  inline: boolean;
  /** First data block where the data is not inline. */
  firstBlock: number;
}

/** The inode with its extended attributes; inline data follows right behind. */
export function encodeInode(node: Node, place: Placement): Buffer {
  const xattrBytes = xattrSize(node);
  const head = place.extended ? EXTENDED_INODE_BYTES : COMPACT_INODE_BYTES;
  const out = Buffer.alloc(head + xattrBytes);
  out.writeUInt16LE((place.extended ? 1 : 0) | ((place.inline ? LAYOUT_INLINE : LAYOUT_PLAIN) << 1), 0);
  out.writeUInt16LE(xattrBytes === 0 ? 0 : (xattrBytes - XATTR_HEADER_BYTES) / 4 + 1, 2);
  out.writeUInt16LE(FILE_TYPES[node.kind].mode | node.mode, 4);
  if (place.extended) {
    out.writeBigUInt64LE(BigInt(place.sizeBytes), 8);
    out.writeUInt32LE(addressOf(node, place), 16);
    out.writeUInt32LE(place.inode, 20);
    out.writeUInt32LE(node.uid, 24);
    out.writeUInt32LE(node.gid, 28);
    out.writeBigInt64LE(BigInt(node.mtimeSeconds), 32);
    out.writeUInt32LE(node.mtimeNanos, 40);
    out.writeUInt32LE(place.links, 44);
  } else {
    out.writeUInt16LE(place.links, 6);
    out.writeUInt32LE(place.sizeBytes, 8);
    out.writeUInt32LE(addressOf(node, place), 16);
    out.writeUInt32LE(place.inode, 20);
    out.writeUInt16LE(node.uid, 24);
    out.writeUInt16LE(node.gid, 26);
  }
  if (xattrBytes > 0) encodeXattrs(node, out, head);
  return out;
}

/** A compact inode has no time of its own and 16 bits for owner and links. */
export const needsExtended = (
  node: Node,
  links: number,
  sizeBytes: number,
  sb: { buildSeconds: number; buildNanos: number },
) =>
  node.uid > 0xffff ||
  node.gid > 0xffff ||
  links > 0xffff ||
  sizeBytes > 0xffffffff ||
  node.mtimeSeconds !== sb.buildSeconds ||
  node.mtimeNanos !== sb.buildNanos;

function addressOf(node: Node, place: Placement): number {
  if (node.kind === 'character-device' || node.kind === 'block-device')
    // The kernel's new_encode_dev(): 12 bits of major around 20 bits of minor.
    return ((node.minor & 0xff) | (node.major << 8) | ((node.minor & ~0xff) << 12)) >>> 0;
  if (node.kind === 'fifo' || place.inline) return 0;
  return place.sizeBytes === 0 ? NO_BLOCK : place.firstBlock;
}

const align4 = (size: number): number => (size + 3) & ~3;

/** Splits an attribute's name; undefined where EROFS cannot hold it. */
export function splitXattrName(name: string): { index: number; suffix: string } | undefined {
  for (const [prefix, index] of XATTR_PREFIXES) {
    const whole = !prefix.endsWith('.');
    if (whole ? name === prefix : name.startsWith(prefix) && name.length > prefix.length)
      return { index, suffix: name.slice(prefix.length) };
  }
  return undefined;
}

/** Bytes of the extended attributes behind the inode; a multiple of 4. */
export function xattrSize(node: Node): number {
  if (node.xattrs === undefined || node.xattrs.size === 0) return 0;
  let size = XATTR_HEADER_BYTES;
  for (const [name, value] of node.xattrs)
    size += align4(XATTR_ENTRY_BYTES + (splitXattrName(name)?.suffix.length ?? 0) + value.length);
  return size;
}

function encodeXattrs(node: Node, out: Buffer, offset: number): void {
  let at = offset + XATTR_HEADER_BYTES;
  for (const name of [...(node.xattrs?.keys() ?? [])].sort()) {
    const value = node.xattrs?.get(name) ?? Buffer.alloc(0);
    const { index, suffix } = splitXattrName(name) ?? { index: 0, suffix: '' };
    out.writeUInt8(suffix.length, at);
    out.writeUInt8(index, at + 1);
    out.writeUInt16LE(value.length, at + 2);
    out.write(suffix, at + XATTR_ENTRY_BYTES, 'latin1');
    out.set(value, at + XATTR_ENTRY_BYTES + suffix.length);
    at += align4(XATTR_ENTRY_BYTES + suffix.length + value.length);
  }
}

/** A directory's names with "." and "..", in the order that the kernel's binary search wants. */
export const sortedNames = (directory: Node): string[] => ['.', '..', ...(directory.children?.keys() ?? [])].sort();

/** Length of the directory's entries: every block but the last is a full one. */
export function directorySize(names: readonly string[]): number {
  let blocks = 0;
  let used = 0;
  for (const name of names) {
    const need = DIRENT_BYTES + name.length;
    if (used + need > BLOCK_BYTES) {
      blocks += 1;
      used = 0;
    }
    used += need;
  }
  return blocks * BLOCK_BYTES + used;
}

export interface Dirent {
  name: string;
  nid: number;
  kind: NodeKind;
}

/** The entries' blocks: in each one the fixed-size records, then the names. */
export function encodeDirectory(entries: readonly Dirent[], sizeBytes: number): Buffer {
  const out = Buffer.alloc(sizeBytes);
  let start = 0;
  for (let block = 0; start < entries.length; block += BLOCK_BYTES) {
    let used = 0;
    let end = start;
    for (let entry = entries[end]; entry !== undefined; entry = entries[end]) {
      if (used + DIRENT_BYTES + entry.name.length > BLOCK_BYTES) break;
      used += DIRENT_BYTES + entry.name.length;
      end += 1;
    }
    let nameAt = (end - start) * DIRENT_BYTES;
    entries.slice(start, end).forEach((entry, rank) => {
      const at = block + rank * DIRENT_BYTES;
      out.writeBigUInt64LE(BigInt(entry.nid), at);
      out.writeUInt16LE(nameAt, at + 8);
      out.writeUInt8(FILE_TYPES[entry.kind].dirent, at + 10);
      out.write(entry.name, block + nameAt, 'latin1');
      nameAt += entry.name.length;
    });
    start = end;
  }
  return out;
}
