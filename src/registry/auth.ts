import { type Challenge, parseChallenges } from './challenge.ts';
import { misbehaves, refused, saidBy } from './errors.ts';
import { type Exchange, type HttpClient, isLoopback, readBody } from './http.ts';
import { MAX_ANSWER_BYTES, MAX_TOKEN_CHARACTERS } from './limits.ts';

/** What a person may prove to a registry. */
export type Credentials = { username: string; password: string } | { identityToken: string };

interface Bearer {
  realm: URL;
  service: string | undefined;
}

const EARLY_MS = 5000;
const DEFAULT_LIFETIME_S = 60;

/**
 * Answers one registry's challenges: Basic with the credentials as they are, Bearer with tokens that are kept while they
 * are valid. Knows nothing before the first challenge, and so sends nothing.
 */
export class Authorizer {
  readonly #http: HttpClient;
  readonly #origin: URL;
  readonly #credentials: Credentials | undefined;
  #mode: 'none' | 'basic' | Bearer = 'none';
  readonly #tokens = new Map<string, { token: Promise<string>; expiresMs: number }>();

  constructor(http: HttpClient, origin: URL, credentials: Credentials | undefined) {
    this.#http = http;
    this.#origin = origin;
    this.#credentials = credentials;
  }

  /** The Authorization header for `scope`; undefined before a challenge. */
  async header(scope: string, signal: AbortSignal): Promise<string | undefined> {
    if (this.#mode === 'none') return undefined;
    if (this.#mode === 'basic') return this.#basic();
    return `Bearer ${await this.#token(this.#mode, scope, signal)}`;
  }

  /** Takes up a 401's challenge. Throws REGISTRY_DENIED when it cannot be answered. */
  challenged(header: string | undefined, scope: string): void {
    const challenges = parseChallenges(header ?? '');
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer');
    this.#tokens.delete(scope);
    if (bearer !== undefined) this.#mode = this.#bearer(bearer);
    else if (challenges.some(({ scheme }) => scheme === 'basic') && this.#basic() !== undefined) this.#mode = 'basic';
    else throw refused(`${this.#origin.host} wants a login`);
  }

  #basic(): string | undefined {
    const credentials = this.#credentials;
    if (credentials === undefined || 'identityToken' in credentials) return undefined;
    return `Basic ${Buffer.from(`${credentials.username}:${credentials.password}`).toString('base64')}`;
  }

  #bearer({ parameters }: Challenge): Bearer {
    const realm = URL.parse(parameters.get('realm') ?? '');
    if (realm === null) throw misbehaves(`${this.#origin.host} names no token server`);
    // A registry of the network cannot make the engine ask a service of this host.
    const isLocal = isLoopback(realm);
    if ((realm.protocol !== 'https:' && !isLocal) || (isLocal && !isLoopback(this.#origin)))
      throw misbehaves(`${this.#origin.host} names a token server that is not asked: ${realm.origin}`);
    return { realm, service: parameters.get('service') };
  }

  async #token(bearer: Bearer, scope: string, signal: AbortSignal): Promise<string> {
    const known = this.#tokens.get(scope);
    if (known !== undefined && known.expiresMs > Date.now()) return known.token;
    // Several layers begin at once and share the first one's token.
    const entry = { token: Promise.resolve(''), expiresMs: Number.POSITIVE_INFINITY };
    entry.token = this.#fetch(bearer, scope, signal).then(({ token, lifetimeS }) => {
      entry.expiresMs = Date.now() + lifetimeS * 1000 - EARLY_MS;
      return token;
    });
    this.#tokens.set(scope, entry);
    try {
      return await entry.token;
    } catch (error) {
      if (this.#tokens.get(scope) === entry) this.#tokens.delete(scope);
      throw error;
    }
  }

  async #fetch({ realm, service }: Bearer, scope: string, signal: AbortSignal) {
    const fields = new URLSearchParams();
    if (service !== undefined) fields.set('service', service);
    if (scope !== '') fields.set('scope', scope);
    const answer = await this.#http.send(this.#tokenRequest(realm, fields, signal));
    const text = (await readBody(answer, MAX_ANSWER_BYTES)).toString('utf8');
    if (answer.status === 401 || answer.status === 403 || answer.status === 400)
      throw refused(`${realm.host} gives no token${this.#credentials === undefined ? ' without a login' : ''}`, {
        evidence: saidBy(text),
      });
    if (answer.status !== 200)
      throw misbehaves(`${realm.host} answers ${answer.status} to the wish for a token`, { evidence: saidBy(text) });
    return tokenOf(text, realm.host);
  }

  #tokenRequest(realm: URL, fields: URLSearchParams, signal: AbortSignal): Exchange {
    const credentials = this.#credentials;
    if (credentials !== undefined && 'identityToken' in credentials) {
      fields.set('grant_type', 'refresh_token');
      fields.set('client_id', 'kata-ts');
      fields.set('refresh_token', credentials.identityToken);
      const body = Buffer.from(fields.toString());
      const headers = {
        'content-type': 'application/x-www-form-urlencoded',
        'content-length': String(body.length),
      };
      return { method: 'POST', url: realm, headers, body, signal };
    }
    const url = new URL(realm);
    if (credentials !== undefined) fields.set('account', credentials.username);
    for (const [name, value] of fields) url.searchParams.append(name, value);
    const authorization = this.#basic();
    const headers: Record<string, string> = authorization === undefined ? {} : { authorization };
    return { method: 'GET', url, headers, signal };
  }
}

function tokenOf(text: string, host: string): { token: string; lifetimeS: number } {
  let answer: { token?: unknown; access_token?: unknown; expires_in?: unknown } | null;
  try {
    answer = JSON.parse(text);
  } catch (cause) {
    throw misbehaves(`the token server ${host} does not answer JSON`, { cause });
  }
  const token = answer?.token ?? answer?.access_token;
  if (typeof token !== 'string' || token.length > MAX_TOKEN_CHARACTERS || !/^[\x21-\x7e]+$/.test(token))
    throw misbehaves(`the token server ${host} answers no token`);
  const lifetimeS = Number(answer?.expires_in ?? DEFAULT_LIFETIME_S);
  return { token, lifetimeS: Number.isFinite(lifetimeS) ? Math.min(Math.max(lifetimeS, 0), 86_400) : 0 };
}
