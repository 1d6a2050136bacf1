import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import type { LogEntry, LogParser } from './log-entry.ts';

/** The writer keeps four rotated files; more are read when somebody kept more. */
const MAX_ROTATED = 64;
const OPEN_ATTEMPTS = 20;
const BLOCK_BYTES = 256 * 1024;
/** Over the writer's parts of 16 KiB with room to spare: what is longer is no line of a log. */
export const MAX_LOG_LINE_BYTES = 1024 * 1024;
/** How far a line that began long ago is followed back for its parts, once enough lines are found. */
const PART_LOOKBACK_BYTES = 2 ** 20;

export interface LogFile {
  fd: number;
  inode: bigint;
}

/** A place in a set of files. */
export interface LogPosition {
  file: number;
  offset: number;
}

export const inodeOf = (path: string): bigint | undefined =>
  statSync(path, { bigint: true, throwIfNoEntry: false })?.ino;

/**
 * Opens a log and its rotated files, oldest first. The set is of one moment: a rotation meanwhile is noticed by the inodes
 * and the opening repeated, so that nothing is missed or read twice. Empty when there is no log.
 */
export function openLogFiles(path: string): LogFile[] {
  for (let attempt = 0; ; attempt++) {
    const files = openOnce(path);
    const newest = files.at(-1)?.inode;
    const oldest = files[0]?.inode;
    const stable = newest === inodeOf(path) && (files.length < 2 || oldest === inodeOf(`${path}.${files.length - 1}`));
    if (stable || attempt === OPEN_ATTEMPTS) return files;
    closeLogFiles(files);
  }
}

function openOnce(path: string): LogFile[] {
  const files: LogFile[] = [];
  for (let at = 0; at <= MAX_ROTATED; at++) {
    const name = at === 0 ? path : `${path}.${at}`;
    try {
      const fd = openSync(name, 'r');
      files.unshift({ fd, inode: fstatSync(fd, { bigint: true }).ino });
    } catch (error) {
      // Between the two renames of a rotation the current file is absent and its successors are there.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      if (at > 0) break;
    }
  }
  return files;
}

export function closeLogFiles(files: readonly LogFile[]): void {
  for (const { fd } of files) closeSync(fd);
}

/** Reads from `offset` into chunks; answers where it stopped. The chunk is overwritten by the next one. */
export function* readForward(fd: number, offset: number): Generator<Buffer, number> {
  const block = Buffer.allocUnsafe(BLOCK_BYTES);
  let at = offset;
  for (;;) {
    const count = readSync(fd, block, 0, block.length, at);
    if (count === 0) return at;
    at += count;
    yield block.subarray(0, count);
  }
}

/** Entries of a file from its end to its start, with their offsets. A rest without newline is left out. */
function* readBackward(fd: number, size: number, parse: LogParser): Generator<{ offset: number; entry: LogEntry }> {
  let rest = Buffer.alloc(0);
  let complete = false;
  for (let end = size; end > 0; ) {
    const start = Math.max(0, end - BLOCK_BYTES);
    const block = Buffer.allocUnsafe(end - start);
    const count = readSync(fd, block, 0, block.length, start);
    let bytes = Buffer.concat([block.subarray(0, count), rest]);
    if (!complete) {
      const last = bytes.lastIndexOf(0x0a);
      bytes = bytes.subarray(0, last + 1);
      complete = last >= 0;
    }
    while (bytes.length > 0) {
      const before = bytes.lastIndexOf(0x0a, bytes.length - 2);
      if (bytes.length === 1 || (before < 0 && start > 0)) break;
      const entry = parse(bytes.subarray(before + 1, bytes.length - 1));
      if (entry !== undefined && entry !== 'other') yield { offset: start + before + 1, entry };
      bytes = bytes.subarray(0, before + 1);
      if (before < 0) break;
    }
    rest = complete && bytes.length <= MAX_LOG_LINE_BYTES ? bytes : Buffer.alloc(0);
    end = start;
  }
}

type Stream = 'stdout' | 'stderr';

/**
 * Where the last `count` lines begin, for each stream: what lies before belongs to older lines. A line may consist of
 * parts, and the lines of the two streams may be interleaved. Reads from the end and no more than it needs.
 */
export function findTail(files: readonly LogFile[], count: number, parse: LogParser): Record<Stream, LogPosition> {
  const sizes = files.map(({ fd }) => fstatSync(fd).size);
  const end: LogPosition = { file: Math.max(files.length - 1, 0), offset: sizes.at(-1) ?? 0 };
  const starts: Record<Stream, LogPosition> = { stdout: end, stderr: end };
  const newest: Partial<Record<Stream, 'taken' | 'left'>> = {};
  let lines = 0;
  let lookedBack = 0;
  for (let file = files.length - 1; file >= 0; file--) {
    for (const { offset, entry } of readBackward(files[file]?.fd ?? -1, sizes[file] ?? 0, parse)) {
      if (entry.stream === 'system') continue;
      const stream: Stream = entry.stream;
      if (entry.tag === 'F' || newest[stream] === undefined) {
        newest[stream] = lines < count ? 'taken' : 'left';
        if (lines < count) lines++;
      }
      if (newest[stream] === 'taken') starts[stream] = { file, offset };
      if (lines < count) continue;
      lookedBack += entry.text.length;
      const wholly = newest.stdout !== 'taken' && newest.stderr !== 'taken';
      if (wholly || lookedBack > PART_LOOKBACK_BYTES) return starts;
    }
  }
  return starts;
}
