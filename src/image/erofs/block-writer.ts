import type { FileHandle } from 'node:fs/promises';
import { BLOCK_BYTES } from './format.ts';

const BUFFER_BYTES = 2 ** 20;

/** Appends to a file through one buffer of 1 MiB, counting 4 KiB blocks. Not for concurrent use. */
export class BlockWriter {
  readonly #file: FileHandle;
  readonly #buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  #used = 0;
  /** Where the buffer's first byte goes. */
  #base: number;

  constructor(file: FileHandle, firstBlock: number) {
    this.#file = file;
    this.#base = firstBlock * BLOCK_BYTES;
  }

  get position(): number {
    return this.#base + this.#used;
  }

  /** The block that the next byte goes to; the position is at its start after `pad`. */
  get block(): number {
    return this.position / BLOCK_BYTES;
  }

  async append(data: Uint8Array): Promise<void> {
    for (let from = 0; from < data.length; ) {
      const count = Math.min(data.length - from, BUFFER_BYTES - this.#used);
      this.#buffer.set(data.subarray(from, from + count), this.#used);
      this.#used += count;
      from += count;
      if (this.#used === BUFFER_BYTES) await this.flush();
    }
  }

  /** Zeros up to `position`, which must not lie before the present one. */
  async padTo(position: number): Promise<void> {
    while (this.position < position) {
      const count = Math.min(position - this.position, BUFFER_BYTES - this.#used);
      this.#buffer.fill(0, this.#used, this.#used + count);
      this.#used += count;
      if (this.#used === BUFFER_BYTES) await this.flush();
    }
  }

  pad(): Promise<void> {
    return this.padTo(Math.ceil(this.position / BLOCK_BYTES) * BLOCK_BYTES);
  }

  async flush(): Promise<void> {
    for (let from = 0; from < this.#used; ) {
      const { bytesWritten } = await this.#file.write(this.#buffer, from, this.#used - from, this.#base + from);
      from += bytesWritten;
    }
    this.#base += this.#used;
    this.#used = 0;
  }
}
