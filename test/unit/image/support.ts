import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { ErrorCode, KataError } from '../../../src/base/index.ts';
import { ImageStore } from '../../../src/image/index.ts';
import { tar } from '../../support/images.ts';

export async function temporary(t: TestContext): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'kata-image-test-'));
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

/** A layer of one file that holds its own name. */
export const layer = (text: string): Buffer => tar([{ name: text, data: text }]);

/** An empty store below a temporary directory. */
export async function storeIn(t: TestContext, usedBy: (id: string) => string[] = () => []) {
  const dir = await temporary(t);
  const images = join(dir, 'images');
  return { dir, images, store: await ImageStore.open(images, { usedBy }) };
}

/** For assert.rejects. */
export const isRefused = (code: ErrorCode, text: RegExp) => (error: KataError) => {
  assert.equal(error.code, code, error.stack);
  assert.match(error.message, text);
  return true;
};
