import { KataError } from '../base/index.ts';

/** Who passes connections on to registries: its address, and the names that are reached without it (NO_PROXY's form). */
export interface ProxyServer {
  /** `http://[user:password@]host[:port]`, or https. */
  https: string;
  except?: string | undefined;
}

/** What a command's environment says: HTTPS_PROXY and NO_PROXY, in capitals or not. An empty one is none. */
export function proxyOf(env: NodeJS.ProcessEnv): ProxyServer | undefined {
  const https = env.HTTPS_PROXY || env.https_proxy;
  const except = env.NO_PROXY || env.no_proxy;
  return https ? { https, ...(except ? { except } : {}) } : undefined;
}

/**
 * For the constructor of a node agent. This host's own registries are reached directly. Throws INVALID_ARGUMENT, without what the address
 * holds: it may be a password.
 */
export function proxyEnv(proxy: ProxyServer | undefined, isLoopback: boolean): { proxyEnv?: NodeJS.ProcessEnv } {
  if (proxy === undefined || isLoopback) return {};
  const url = URL.parse(proxy.https);
  if (url === null || !['http:', 'https:'].includes(url.protocol))
    throw new KataError('INVALID_ARGUMENT', 'HTTPS_PROXY is not the address of a proxy', {
      phase: 'registry',
      hint: 'write it as http://HOST:PORT',
    });
  return { proxyEnv: { HTTPS_PROXY: url.href, ...(proxy.except === undefined ? {} : { NO_PROXY: proxy.except }) } };
}
