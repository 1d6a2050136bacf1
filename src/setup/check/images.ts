import { join } from 'node:path';
import { checkStore } from '../../image/check.ts';
import { type Check, failed, ok } from './types.ts';

/** Sizes are always compared; bytes are read for so long. */
const READ_MS = 10_000;
const MAX_EVIDENCE = 20;

/** The stored images, whatever ended the engine or the host while it wrote them. */
export const images: Check = {
  name: 'images',
  timeoutMs: 60_000,
  async probe({ root }) {
    const { images, layers, blobs, verified, problems } = await checkStore(join(root, 'images'), READ_MS);
    if (problems.length > 0)
      return failed(
        'image',
        `${problems.length} files of the stored images are not whole`,
        'remove the images (kata rmi), then pull or load them again',
        problems.slice(0, MAX_EVIDENCE),
      );
    return ok(`${images} images, ${layers} layers, ${blobs} blobs, of which ${verified} were read and verified`);
  },
};
