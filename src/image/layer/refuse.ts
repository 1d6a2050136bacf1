import { KataError } from '../../base/index.ts';

/** A binary string as people may read it: UTF-8, quoted, control characters escaped, bounded. */
export const printable = (name: string | null | undefined): string =>
  JSON.stringify(
    Buffer.from(name ?? '', 'latin1')
      .toString()
      .slice(0, 200),
  );

/** IMAGE_INVALID that names the member of the layer's tar. */
export const refuse = (header: { name: string }, why: string): KataError =>
  new KataError('IMAGE_INVALID', `the layer's member ${printable(header.name)} ${why}`, {
    phase: 'image',
    hint: 'build the image anew, or load a copy from where you trust',
  });

/** IMAGE_DIGEST_MISMATCH that names the blob. */
export const digestMismatch = (name: string, wanted: string, actual: string): KataError =>
  new KataError('IMAGE_DIGEST_MISMATCH', `${printable(name)} should be ${wanted} and is ${actual}`, {
    phase: 'image',
    hint: 'the image was altered or damaged: get it again',
  });
