/**
 * A file system tree in memory: everything but the files' bytes. Names and symlink targets are "binary strings", one character
 * per byte (latin1), because a file name is bytes in no particular encoding; so JavaScript's string order is EROFS's order.
 */
export type NodeKind = 'file' | 'directory' | 'symlink' | 'character-device' | 'block-device' | 'fifo';

export class Node {
  readonly kind: NodeKind;
  /** Permission bits with setuid, setgid and sticky. */
  mode = 0o755;
  uid = 0;
  gid = 0;
  /** Whole seconds since 1970, may be negative; the rest in nanoseconds. */
  mtimeSeconds = 0;
  mtimeNanos = 0;
  xattrs: Map<string, Buffer> | undefined = undefined;
  /** Of a file: its length and the block of the image where its bytes start. */
  sizeBytes = 0;
  firstBlock = 0;
  /** Of a symlink. */
  target = '';
  /** Of a device. */
  major = 0;
  minor = 0;
  /** Of a directory. */
  readonly children: Map<string, Node> | undefined;
  parent: Node | undefined = undefined;

  constructor(kind: NodeKind) {
    this.kind = kind;
    this.children = kind === 'directory' ? new Map() : undefined;
  }
}
