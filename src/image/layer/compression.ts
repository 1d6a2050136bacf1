import type { Transform } from 'node:stream';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { KataError } from '../../base/index.ts';
import { zstdFrames } from './zstd-frames.ts';

export type Compression = 'none' | 'gzip' | 'zstd';

/** By the first bytes: media types and file names lie. A zstd stream may start with a skippable frame. */
export function compressionOf(head: Uint8Array): Compression {
  if (head.length >= 2 && head[0] === 0x1f && head[1] === 0x8b) return 'gzip';
  if (head.length < 4) return 'none';
  const magic = Buffer.from(head.subarray(0, 4)).readUInt32LE();
  if (magic === 0xfd2fb528 || (magic & 0xfffffff0) >>> 0 === 0x184d2a50) return 'zstd';
  return 'none';
}

const CHUNK_BYTES = 256 * 1024;

/** Unpacks on libuv's threads. What is damaged or cut short ends with IMAGE_INVALID naming `what`. */
export async function* decompress(
  source: AsyncIterable<Uint8Array>,
  compression: Compression,
  what: string,
): AsyncGenerator<Uint8Array> {
  if (compression === 'none') {
    yield* source;
    return;
  }
  try {
    if (compression === 'gzip') yield* through(createGunzip({ chunkSize: CHUNK_BYTES }), source);
    else
      for await (const frame of zstdFrames(source))
        yield* through(createZstdDecompress({ chunkSize: CHUNK_BYTES }), frame);
  } catch (error) {
    const code = String((error as NodeJS.ErrnoException).code ?? '');
    if (error instanceof KataError || !/^(Z|ZSTD|ERR)_/.test(code)) throw error;
    throw new KataError('IMAGE_INVALID', `${what} is not whole ${compression} data: ${(error as Error).message}`, {
      phase: 'image',
      cause: error,
    });
  }
}

async function* through(unpack: Transform, source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const feed = feedInto(unpack, source);
  try {
    for await (const chunk of unpack) yield chunk as Buffer;
    await feed;
  } finally {
    unpack.destroy();
    await feed.catch(() => undefined);
  }
}

async function feedInto(unpack: Transform, source: AsyncIterable<Uint8Array>): Promise<void> {
  try {
    for await (const chunk of source) {
      if (unpack.destroyed || unpack.writableEnded) return;
      if (!unpack.write(chunk)) await writableAgain(unpack);
    }
    unpack.end();
  } catch (error) {
    unpack.destroy(error as Error);
    throw error;
  }
}

const writableAgain = (stream: Transform): Promise<void> =>
  new Promise((resolve) => {
    const done = (): void => {
      stream.off('drain', done);
      stream.off('close', done);
      resolve();
    };
    stream.on('drain', done);
    stream.on('close', done);
  });
