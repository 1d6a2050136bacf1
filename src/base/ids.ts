import { randomBytes } from 'node:crypto';

/** A sandbox's internal identity, 12 hex digits: every host resource is named from it. */
export const newSandboxUid = (): string => randomBytes(6).toString('hex');

/** A container's id, 64 hex digits as docker's. */
export const newContainerId = (): string => randomBytes(32).toString('hex');

/** Names of containers and volumes, as docker restricts them. */
export const NAME_PATTERN = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$/;
