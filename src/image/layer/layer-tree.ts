import { splitXattrName } from '../erofs/format.ts';
import { Node, type NodeKind } from '../erofs/node.ts';
import {
  MAX_ENTRIES,
  MAX_LOOKUP_STEPS,
  MAX_METADATA_BYTES,
  MAX_NAME_BYTES,
  MAX_PATH_BYTES,
  MAX_SYMLINK_BYTES,
  MAX_SYMLINKS_FOLLOWED,
  MAX_XATTR_BYTES,
} from '../limits.ts';
import type { TarHeader } from '../tar/read-tar.ts';
import { printable, refuse } from './refuse.ts';

const WHITEOUT = '.wh.';
const WHITEOUT_META = '.wh..wh.';
const OPAQUE = '.wh..wh..opq';
const XATTR_RECORD = 'SCHILY.xattr.';
const OVERLAY_OPAQUE = 'trusted.overlay.opaque';
/** A directory of this depth has a path beyond PATH_MAX: nobody could name it. */
const MAX_DEPTH = MAX_PATH_BYTES / 2;

const KINDS: Readonly<Record<string, NodeKind>> = {
  file: 'file',
  'contiguous-file': 'file',
  directory: 'directory',
  symlink: 'symlink',
  'character-device': 'character-device',
  'block-device': 'block-device',
  fifo: 'fifo',
};

/**
 * Applies a layer's tar members to a tree in memory, as docker and umoci apply them to a directory, but nothing of it ever
 * exists on the host. Names are rooted in the tree; a parent that is a symlink is followed within the tree; missing parents are
 * made (root, 0755); a later member replaces an earlier one, a directory over a directory keeps its content.
 * Whiteouts become overlay's: a character device 0:0, or `trusted.overlay.opaque` on a directory.
 * What would lead out of the tree, or cannot be represented, is refused with IMAGE_INVALID naming the member.
 */
export class LayerTree {
  readonly root = new Node('directory');
  readonly #whiteouts = new Map<Node, Set<string>>();
  readonly #opaque = new Set<Node>();
  #entries = 0;
  #metadataBytes = 0;
  #lookupSteps = 0;

  /** Returns the node whose bytes follow in the stream: a regular file's. */
  add(header: TarHeader): Node | undefined {
    this.#count(header, header.name.length + (header.linkname?.length ?? 0));
    const path = cleanPath(header);
    const name = path.pop();
    if (path.concat(name ?? []).some((part) => part.startsWith(WHITEOUT_META) && part !== OPAQUE)) return undefined;
    if (path.some((part) => part.startsWith(WHITEOUT))) throw refuse(header, 'has a whiteout as a parent');
    if (name === undefined) {
      if (kindOf(header) !== 'directory') throw refuse(header, 'replaces the root directory');
      this.#setAttributes(this.root, header);
      return undefined;
    }
    const parent = this.#lookupDirectory(path, header);
    if (name.startsWith(WHITEOUT)) this.#addWhiteout(parent, name, header);
    else if (header.type === 'link') parent.children?.set(name, this.#linkTarget(header));
    else return this.#addNode(parent, name, header);
    return undefined;
  }

  /** The finished tree; whiteouts are put where the layer itself has nothing of the name. */
  finish(): Node {
    for (const [directory, names] of this.#whiteouts)
      for (const name of names) {
        const own = directory.children?.get(name);
        if (own?.kind === 'directory') this.#opaque.add(own);
        if (own !== undefined) continue;
        const node = new Node('character-device');
        node.mode = 0;
        node.mtimeSeconds = directory.mtimeSeconds;
        node.mtimeNanos = directory.mtimeNanos;
        directory.children?.set(name, node);
      }
    for (const directory of this.#opaque) {
      directory.xattrs ??= new Map();
      directory.xattrs.set(OVERLAY_OPAQUE, Buffer.from('y'));
    }
    return this.root;
  }

  #addWhiteout(parent: Node, name: string, header: TarHeader): void {
    if (name === OPAQUE) {
      this.#opaque.add(parent);
      return;
    }
    const hidden = name.slice(WHITEOUT.length);
    if (hidden === '' || hidden === '.' || hidden === '..') throw refuse(header, 'is a whiteout of nothing');
    const names = this.#whiteouts.get(parent) ?? new Set();
    this.#whiteouts.set(parent, names.add(hidden));
  }

  #addNode(parent: Node, name: string, header: TarHeader): Node | undefined {
    const kind = kindOf(header);
    const existing = parent.children?.get(name);
    const node = kind === 'directory' && existing?.kind === 'directory' ? existing : new Node(kind);
    this.#setAttributes(node, header);
    if (kind === 'symlink') {
      node.target = header.linkname ?? '';
      if (node.target === '' || node.target.length > MAX_SYMLINK_BYTES || node.target.includes('\0'))
        throw refuse(header, 'is a symlink without a usable target');
    } else if (kind === 'character-device' || kind === 'block-device') {
      node.major = inRange(header, 'device number', header.devmajor ?? 0, 0xfff);
      node.minor = inRange(header, 'device number', header.devminor ?? 0, 0xfffff);
    }
    if (node !== existing) this.#attach(parent, name, node);
    return kind === 'file' ? node : undefined;
  }

  #attach(parent: Node, name: string, node: Node): void {
    node.parent = parent;
    parent.children?.set(name, node);
  }

  /** What a hard link names: any earlier member but a directory. Symlinks in the way are followed, a last one is not. */
  #linkTarget(header: TarHeader): Node {
    const path = cleanPath({ ...header, name: header.linkname ?? '' }, header);
    const name = path.pop();
    const target = name === undefined ? this.root : this.#lookupDirectory(path, header, false).children?.get(name);
    if (target === undefined)
      throw refuse(header, `is a hard link to ${printable(header.linkname)}, which does not exist`);
    if (target.kind === 'directory')
      throw refuse(header, `is a hard link to the directory ${printable(header.linkname)}`);
    return target;
  }

  /** Walks from the root as the kernel would inside a chroot. `make`: missing directories are made. */
  #lookupDirectory(path: readonly string[], header: TarHeader, make = true): Node {
    const rest = [...path].reverse();
    let at = this.root;
    let followed = 0;
    let depth = 0;
    for (let part = rest.pop(); part !== undefined; part = rest.pop()) {
      this.#lookupSteps += 1;
      if (this.#lookupSteps > MAX_LOOKUP_STEPS) throw refuse(header, 'makes the layer too costly to look up');
      if (part === '' || part === '.') continue;
      if (part === '..') {
        at = at.parent ?? at;
        depth = Math.max(0, depth - 1);
        continue;
      }
      let next = at.children?.get(part);
      if (next === undefined && make) next = this.#makeDirectory(at, part, header);
      if (next === undefined) throw refuse(header, `goes through ${printable(part)}, which does not exist`);
      if (next.kind === 'symlink') {
        followed += 1;
        if (followed > MAX_SYMLINKS_FOLLOWED) throw refuse(header, 'goes through a loop of symlinks');
        if (next.target.startsWith('/')) {
          at = this.root;
          depth = 0;
        }
        for (const step of next.target.split('/').reverse()) rest.push(step);
        if (rest.length > 2 * MAX_DEPTH) throw refuse(header, 'goes through a loop of symlinks');
        continue;
      }
      if (next.kind !== 'directory') throw refuse(header, `goes through ${printable(part)}, which is not a directory`);
      depth += 1;
      if (depth > MAX_DEPTH) throw refuse(header, `lies deeper than ${MAX_DEPTH} directories`);
      at = next;
    }
    return at;
  }

  #makeDirectory(parent: Node, name: string, header: TarHeader): Node {
    if (name.length > MAX_NAME_BYTES) throw refuse(header, `has a name over ${MAX_NAME_BYTES} bytes`);
    this.#count(header, name.length);
    const node = new Node('directory');
    this.#attach(parent, name, node);
    return node;
  }

  #setAttributes(node: Node, header: TarHeader): void {
    const { pax } = header;
    node.mode = inRange(header, 'mode', header.mode, Number.MAX_SAFE_INTEGER) & 0o7777;
    node.uid = inRange(header, 'owner', pax?.uid ? Number(pax.uid) : header.uid, 0xffffffff);
    node.gid = inRange(header, 'group', pax?.gid ? Number(pax.gid) : header.gid, 0xffffffff);
    const { seconds, nanos } = modificationTime(header);
    node.mtimeSeconds = seconds;
    node.mtimeNanos = nanos;
    node.xattrs = this.#xattrsOf(node, header);
  }

  /**
   * Attributes that docker would set: user.*, security.*, POSIX ACLs. Others are left out; trusted.* above all,
   * because trusted.overlay.* would steer the guest's overlay.
   */
  #xattrsOf(node: Node, header: TarHeader): Map<string, Buffer> | undefined {
    let xattrs: Map<string, Buffer> | undefined;
    let bytes = 0;
    for (const [key, value] of Object.entries(header.pax ?? {})) {
      if (!key.startsWith(XATTR_RECORD)) continue;
      const name = key.slice(XATTR_RECORD.length);
      const split = splitXattrName(name);
      if (split === undefined || name.startsWith('trusted.')) continue;
      if (!name.startsWith('security.') && node.kind !== 'file' && node.kind !== 'directory') continue;
      bytes += name.length + value.length;
      if (split.suffix.length > 255 || name.includes('\0') || bytes > MAX_XATTR_BYTES - 1)
        throw refuse(header, `has extended attributes over ${MAX_XATTR_BYTES} bytes or a name that is not valid`);
      xattrs ??= new Map();
      xattrs.set(name, Buffer.from(value, 'latin1'));
    }
    this.#metadataBytes += bytes;
    return xattrs;
  }

  #count(header: TarHeader, bytes: number): void {
    this.#entries += 1;
    this.#metadataBytes += bytes;
    if (this.#entries > MAX_ENTRIES) throw refuse(header, `is past the limit of ${MAX_ENTRIES} members of a layer`);
    if (this.#metadataBytes > MAX_METADATA_BYTES)
      throw refuse(header, `is past the limit of ${MAX_METADATA_BYTES} bytes of names and attributes of a layer`);
  }
}

/** Components below the tree's root, "." and inner ".." taken out; `named` is the member to blame. */
function cleanPath(header: TarHeader, named: TarHeader = header): string[] {
  const { name } = header;
  if (name === '') throw refuse(named, 'has an empty name or target');
  if (name.includes('\0')) throw refuse(named, 'has a NUL byte in its name');
  if (name.length > MAX_PATH_BYTES) throw refuse(named, `has a path over ${MAX_PATH_BYTES} bytes`);
  const path: string[] = [];
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue;
    if (part.length > MAX_NAME_BYTES) throw refuse(named, `has a name over ${MAX_NAME_BYTES} bytes`);
    if (part !== '..') path.push(part);
    else if (path.pop() === undefined) throw refuse(named, 'leads out of the layer with ".."');
  }
  return path;
}

function kindOf(header: TarHeader): NodeKind {
  const pax = header.pax ?? {};
  if (Object.keys(pax).some((key) => key.startsWith('GNU.sparse.')))
    throw refuse(header, 'is a sparse member, which is not supported');
  // Before POSIX a directory was a file whose name ended with a slash.
  if (header.type === 'file' && header.name.endsWith('/')) return 'directory';
  const kind = header.type === null ? undefined : KINDS[header.type];
  if (kind === undefined) throw refuse(header, 'is of an unknown or unsupported type (sparse, volume label, …)');
  return kind;
}

/** PAX times are decimal with a fraction and may be negative; the header's are whole seconds. */
function modificationTime(header: TarHeader): { seconds: number; nanos: number } {
  const text = header.pax?.mtime;
  const whole = Math.floor((header.mtime?.getTime() ?? 0) / 1000);
  if (!text) return { seconds: Number.isSafeInteger(whole) ? whole : 0, nanos: 0 };
  const match = /^(-?)(\d{1,15})(?:\.(\d*))?$/.exec(text);
  if (match === null) throw refuse(header, 'has a modification time that is not a number');
  const [, sign, digits = '0', fraction = ''] = match;
  const nanos = Number(fraction.slice(0, 9).padEnd(9, '0'));
  if (sign === '') return { seconds: Number(digits), nanos };
  return nanos === 0 ? { seconds: -Number(digits), nanos } : { seconds: -Number(digits) - 1, nanos: 1e9 - nanos };
}

function inRange(header: TarHeader, what: string, value: number | undefined, max: number): number {
  if (value === undefined || !Number.isInteger(value) || value < 0 || value > max)
    throw refuse(header, `has a ${what} out of range`);
  return value;
}
