/** Web Crypto is loaded by its first use: a command that makes no id does without. */
const randomHex = (bytes: number): string =>
  Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(bytes))).toString('hex');

/** A sandbox's internal identity, 12 hex digits: every host resource is named from it. */
export const newSandboxUid = (): string => randomHex(6);

/** A container's id, 64 hex digits as docker's. */
export const newContainerId = (): string => randomHex(32);

/** Names of containers and volumes, as docker restricts them. */
export const NAME_PATTERN = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/;
