/** "sha256:<64 lower-case hex digits>", the only algorithm in use. */
export type Digest = `sha256:${string}`;

export const isDigest = (text: string): text is Digest => /^sha256:[0-9a-f]{64}$/.test(text);

export const digestOf = (hex: string): Digest => `sha256:${hex}`;

/** The 64 hex digits. */
export const hexOf = (digest: string): string => digest.slice('sha256:'.length);
