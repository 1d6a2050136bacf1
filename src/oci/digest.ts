/** Digests are "sha256:<64 lower-case hex digits>"; no other algorithm is in use. */
export const isDigest = (text: string): boolean => /^sha256:[0-9a-f]{64}$/.test(text);

export const digestOf = (hex: string): string => `sha256:${hex}`;

/** The 64 hex digits. */
export const hexOf = (digest: string): string => digest.slice('sha256:'.length);
