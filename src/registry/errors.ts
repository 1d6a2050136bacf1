import { KataError } from '../base/index.ts';

const PHASE = 'registry';

export const refused = (message: string, details: { hint?: string; cause?: unknown; evidence?: string[] } = {}) =>
  new KataError('REGISTRY_DENIED', message, {
    phase: PHASE,
    hint: 'log in with an account that may do this: kata login',
    ...details,
  });

/** The registry says something that it must not say. */
export const misbehaves = (message: string, details: { cause?: unknown; evidence?: string[] } = {}) =>
  new KataError('REGISTRY_PROTOCOL', message, {
    phase: PHASE,
    hint: 'check the name of the registry, and what stands between it and this host',
    ...details,
  });

export const unreachable = (message: string, details: { cause?: unknown; evidence?: string[]; hint?: string } = {}) =>
  new KataError('REGISTRY_UNREACHABLE', message, {
    phase: PHASE,
    hint: 'check the name, the network and the registry; what was fetched is kept, and the next attempt goes on there',
    ...details,
  });

export const cancelled = (): KataError => new KataError('CANCELLED', 'the transfer was given up', { phase: PHASE });

/** OpenSSL's and node's names for a certificate that is not to be trusted. */
const UNTRUSTED =
  /^(DEPTH_ZERO_SELF_SIGNED_CERT|SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_|CERT_|ERR_TLS_CERT|CRL_|INVALID_CA|INVALID_PURPOSE|HOSTNAME_MISMATCH|PATH_LENGTH_EXCEEDED)/;
/** Names for a peer that does not speak TLS, or not with this side. */
const NO_TLS = /^(EPROTO$|ERR_SSL_)/;

export const isNoTls = (error: unknown): boolean => {
  const cause = error instanceof KataError ? error.cause : error;
  return NO_TLS.test(String((cause as NodeJS.ErrnoException | undefined)?.code ?? ''));
};

/** What broke a connection, in the terms of the closed table. */
export function connectionError(error: unknown, host: string): KataError {
  if (error instanceof KataError) return error;
  const { code = '', message } = error as NodeJS.ErrnoException;
  if (UNTRUSTED.test(code))
    return new KataError('REGISTRY_UNTRUSTED', `the certificate of ${host} is not trusted: ${message} (${code})`, {
      phase: PHASE,
      cause: error,
      hint: `put the authority's certificate into certs.d/${host}/ca.crt (docs/registries.md)`,
    });
  if (NO_TLS.test(code))
    return new KataError('REGISTRY_UNTRUSTED', `${host} does not speak TLS as it should: ${message}`, {
      phase: PHASE,
      cause: error,
      hint: 'plain http is for localhost only',
    });
  return unreachable(`${host} cannot be reached: ${message || code}`, { cause: error });
}

/** Worth another attempt: the connection broke, or the server said that it is not able to just now. */
export function isTransient(error: unknown): boolean {
  if (!(error instanceof KataError) || error.code !== 'REGISTRY_UNREACHABLE') return false;
  const { code = '' } = (error.cause ?? {}) as NodeJS.ErrnoException;
  return ![
    'ENOTFOUND',
    'EAI_AGAIN',
    'ECONNREFUSED',
    'ENETUNREACH',
    'EHOSTUNREACH',
    'EACCES',
    'ERR_PROXY_TUNNEL',
  ].includes(code);
}

/** The registry's own words, bounded and without control characters. */
export function saidBy(body: string): string[] {
  const clean = (text: string): string => text.replace(/[\p{Cc}]+/gu, ' ').slice(0, 300);
  try {
    const { errors } = JSON.parse(body) as { errors?: { code?: unknown; message?: unknown }[] };
    if (Array.isArray(errors))
      return errors.slice(0, 5).map((one) => clean(`${String(one?.code ?? '')}: ${String(one?.message ?? '')}`));
  } catch {
    // Not the distribution's error format: the text itself says what it can.
  }
  return body.trim() === '' ? [] : [clean(body)];
}
