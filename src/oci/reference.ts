import { KataError } from '../base/index.ts';
import { isDigest } from './digest.ts';

/** A docker-style image name taken apart; "busybox" is docker.io, library/busybox, latest. */
export interface Reference {
  domain: string;
  /** Below the domain: "library/busybox". */
  path: string;
  /** Absent only where a digest is given without a tag. */
  tag?: string;
  digest?: string;
}

const DEFAULT_DOMAIN = 'docker.io';
const OFFICIAL = 'library/';
const DEFAULT_TAG = 'latest';
/** The grammar of the distribution project: names of 255 bytes at most, tags of 128. */
const DOMAIN =
  /^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$/;
const COMPONENT = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$/;
const TAG = /^\w[\w.-]{0,127}$/;
const MAX_NAME = 255;

/** Reads an image name as docker does. Throws INVALID_ARGUMENT saying what is wrong with it. */
export function parseReference(text: string): Reference {
  const refuse = (why: string) =>
    new KataError('INVALID_ARGUMENT', `"${text.slice(0, 300)}" is not an image name: ${why}`, {
      hint: 'write name, name:tag or registry/name:tag in lower case',
    });
  const at = text.indexOf('@');
  const digest = at < 0 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) throw refuse('the digest is not sha256: and 64 hex digits');
  const rest = at < 0 ? text : text.slice(0, at);
  const colon = rest.lastIndexOf(':');
  const hasTag = colon > rest.lastIndexOf('/');
  const tag = hasTag ? rest.slice(colon + 1) : undefined;
  const name = hasTag ? rest.slice(0, colon) : rest;
  if (tag !== undefined && !TAG.test(tag)) throw refuse(`the tag "${tag.slice(0, 140)}" is not valid`);
  if (/^[0-9a-f]{64}$/.test(name)) throw refuse('64 hex digits are an id, not a name');
  const { domain, path } = splitDomain(name);
  if (!DOMAIN.test(domain)) throw refuse(`the registry "${domain.slice(0, 80)}" is not valid`);
  if (!path.split('/').every((part) => COMPONENT.test(part)))
    throw refuse(/[A-Z]/.test(path) ? 'names are lower case' : 'the name has a character or a separator out of place');
  if (domain.length + 1 + path.length > MAX_NAME) throw refuse(`it is over ${MAX_NAME} characters`);
  return {
    domain,
    path,
    ...(tag !== undefined ? { tag } : digest === undefined ? { tag: DEFAULT_TAG } : {}),
    ...(digest === undefined ? {} : { digest }),
  };
}

/** The part before the first "/" is a registry when it has a "." or ":", is "localhost" or has a capital. */
function splitDomain(name: string): { domain: string; path: string } {
  const slash = name.indexOf('/');
  const first = slash < 0 ? '' : name.slice(0, slash);
  const isDomain = slash >= 0 && (/[.:]/.test(first) || first === 'localhost' || first !== first.toLowerCase());
  const domain = !isDomain || first === 'index.docker.io' ? DEFAULT_DOMAIN : first;
  const path = isDomain ? name.slice(slash + 1) : name;
  return { domain, path: domain === DEFAULT_DOMAIN && !path.includes('/') ? OFFICIAL + path : path };
}

/** "docker.io/library/busybox:latest": the key under which a tag is kept. */
export function canonicalName(ref: Reference): string {
  return `${ref.domain}/${ref.path}${ref.tag === undefined ? '' : `:${ref.tag}`}${ref.digest === undefined ? '' : `@${ref.digest}`}`;
}

/** As people write it: "busybox:latest", "registry.example/app:1". */
export function familiarName(ref: Reference): string {
  const path =
    ref.domain !== DEFAULT_DOMAIN
      ? `${ref.domain}/${ref.path}`
      : ref.path.startsWith(OFFICIAL) && !ref.path.slice(OFFICIAL.length).includes('/')
        ? ref.path.slice(OFFICIAL.length)
        : ref.path;
  return `${path}${ref.tag === undefined ? '' : `:${ref.tag}`}${ref.digest === undefined ? '' : `@${ref.digest}`}`;
}
