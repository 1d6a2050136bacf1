import type { FileHandle } from 'node:fs/promises';
import { setImmediate as yieldToOthers } from 'node:timers/promises';
import { BlockWriter } from './block-writer.ts';
import {
  BLOCK_BYTES,
  COMPACT_INODE_BYTES,
  directorySize,
  EXTENDED_INODE_BYTES,
  encodeDirectory,
  encodeInode,
  encodeSuperblock,
  needsExtended,
  type Placement,
  SLOT_BYTES,
  sortedNames,
  xattrSize,
} from './format.ts';
import type { Node } from './node.ts';

interface Placed {
  node: Node;
  place: Placement;
}

interface Layout {
  order: Placed[];
  places: Map<Node, Placement>;
  metaBlock: number;
  buildSeconds: number;
  buildNanos: number;
}

/** So many inodes are laid out before other work of the process gets its turn: some milliseconds. */
const INODES_PER_TURN = 2048;

const blocksOf = (bytes: number): number => Math.ceil(bytes / BLOCK_BYTES);
const alignTo = (value: number, unit: number): number => Math.ceil(value / unit) * unit;

/**
 * Writes an EROFS image in one pass: files' bytes first, as they arrive, each at a block's start; then, with the tree known,
 * large directories, the inodes, and the superblock last. The same tree and bytes in the same order give the same image.
 *
 * Usage: `addFile` for every file's bytes in any order, then `finish` once. The file handle stays the caller's.
 */
export class ErofsWriter {
  readonly #file: FileHandle;
  readonly #out: BlockWriter;

  constructor(file: FileHandle) {
    this.#file = file;
    this.#out = new BlockWriter(file, 1);
  }

  /** Stores `data` as the bytes of `node` and sets its size and place. */
  async addFile(node: Node, data: AsyncIterable<Uint8Array>): Promise<void> {
    node.firstBlock = this.#out.block;
    const start = this.#out.position;
    for await (const chunk of data) await this.#out.append(chunk);
    node.sizeBytes = this.#out.position - start;
    await this.#out.pad();
  }

  /** @param uuid 16 bytes. Returns the image's size in bytes, a multiple of 4096. */
  async finish(root: Node, uuid: Uint8Array): Promise<number> {
    const layout = await layOut(root, this.#out.block);
    for (const { node, place } of layout.order)
      if (!place.inline && hasOwnData(node)) {
        await this.#out.append(contentOf(node, layout.places));
        await this.#out.pad();
      }
    const base = layout.metaBlock * BLOCK_BYTES;
    for (const { node, place } of layout.order) {
      if (place.inode % INODES_PER_TURN === 0) await yieldToOthers();
      await this.#out.padTo(base + place.nid * SLOT_BYTES);
      await this.#out.append(encodeInode(node, place));
      if (place.inline) await this.#out.append(contentOf(node, layout.places));
    }
    await this.#out.pad();
    await this.#out.flush();
    const superblock = encodeSuperblock({
      rootNid: layout.places.get(root)?.nid ?? 0,
      inodes: layout.order.length,
      blocks: this.#out.block,
      metaBlock: layout.metaBlock,
      buildSeconds: layout.buildSeconds,
      buildNanos: layout.buildNanos,
      uuid,
    });
    await this.#file.write(superblock, 0, superblock.length, 0);
    return this.#out.position;
  }
}

/** Directories and symlinks: their data comes from the tree and not from `addFile`. */
const hasOwnData = (node: Node): boolean => node.kind === 'directory' || node.kind === 'symlink';

function contentOf(node: Node, places: ReadonlyMap<Node, Placement>): Buffer {
  if (node.kind === 'symlink') return Buffer.from(node.target, 'latin1');
  const entries = sortedNames(node).map((name) => {
    const child = name === '.' ? node : name === '..' ? (node.parent ?? node) : (node.children?.get(name) as Node);
    return { name, nid: places.get(child)?.nid ?? 0, kind: child.kind };
  });
  return encodeDirectory(entries, places.get(node)?.sizeBytes ?? 0);
}

/** Gives every inode its place. The root is first: the superblock has 16 bits for its number. */
async function layOut(root: Node, firstFreeBlock: number): Promise<Layout> {
  const links = await collect(root);
  const build = commonestTime(links.keys());
  const places = new Map<Node, Placement>();
  const order: Placed[] = [];
  let block = firstFreeBlock;
  // Not 0: the number is what stat(2) shows, and readdir(3) leaves out what has the inode number 0.
  let meta = EXTENDED_INODE_BYTES;
  for (const [node, count] of links) {
    if (order.length % INODES_PER_TURN === 0) await yieldToOthers();
    const sizeBytes = ownSize(node);
    const extended = needsExtended(node, count, sizeBytes, build);
    const head = (extended ? EXTENDED_INODE_BYTES : COMPACT_INODE_BYTES) + xattrSize(node);
    const inline = hasOwnData(node) && sizeBytes > 0 && head + sizeBytes <= BLOCK_BYTES;
    const length = head + (inline ? sizeBytes : 0);
    // Inline data must not cross a block's end; an inode that does not cross one either costs a single read.
    if (length > BLOCK_BYTES - (meta % BLOCK_BYTES)) meta = alignTo(meta, BLOCK_BYTES);
    const place: Placement = {
      nid: meta / SLOT_BYTES,
      inode: order.length + 1,
      extended,
      links: count,
      sizeBytes,
      inline,
      firstBlock: node.firstBlock,
    };
    if (hasOwnData(node) && !inline) {
      place.firstBlock = block;
      block += blocksOf(sizeBytes);
    }
    meta = alignTo(meta + length, SLOT_BYTES);
    places.set(node, place);
    order.push({ node, place });
  }
  return { order, places, metaBlock: block, ...build };
}

function ownSize(node: Node): number {
  if (node.kind === 'directory') return directorySize(sortedNames(node));
  return node.kind === 'symlink' ? node.target.length : node.sizeBytes;
}

/** Every inode once, parents before children and names in order, with its number of links. Not recursive: trees can be deep. */
async function collect(root: Node): Promise<Map<Node, number>> {
  const links = new Map<Node, number>([[root, 2]]);
  const pending: Node[] = [root];
  let nextTurn = INODES_PER_TURN;
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    if (links.size > nextTurn) {
      nextTurn = links.size + INODES_PER_TURN;
      await yieldToOthers();
    }
    const below: Node[] = [];
    for (const name of [...(directory.children?.keys() ?? [])].sort()) {
      const child = directory.children?.get(name) as Node;
      if (child.kind === 'directory') {
        links.set(child, 2);
        links.set(directory, (links.get(directory) ?? 2) + 1);
        below.push(child);
      } else links.set(child, (links.get(child) ?? 0) + 1);
    }
    for (const child of below.reverse()) pending.push(child);
  }
  return links;
}

/** The time that most inodes share: those are stored compactly. Of equals the one met first. */
function commonestTime(nodes: Iterable<Node>): { buildSeconds: number; buildNanos: number } {
  const counts = new Map<string, { node: Node; count: number }>();
  let best: { node: Node; count: number } | undefined;
  for (const node of nodes) {
    const key = `${node.mtimeSeconds}.${node.mtimeNanos}`;
    const entry = counts.get(key) ?? { node, count: 0 };
    entry.count += 1;
    counts.set(key, entry);
    if (best === undefined || entry.count > best.count) best = entry;
  }
  return { buildSeconds: best?.node.mtimeSeconds ?? 0, buildNanos: best?.node.mtimeNanos ?? 0 };
}
