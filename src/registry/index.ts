/** The command line has no other way to the names of images. */
export { canonicalName, familiarName, parseReference, type Reference } from '../oci/index.ts';
export type { Credentials } from './auth.ts';
export type { Document } from './client.ts';
export { DockerConfig, type Login } from './docker-config.ts';
export { Hosts } from './hosts.ts';
export { type ProxyServer, proxyOf } from './proxy.ts';
export { Repository } from './repository.ts';
