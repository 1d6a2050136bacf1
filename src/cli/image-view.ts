import { matchesGlob } from 'node:path/posix';
import type { ImageSummary } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { humanSize, shortId } from './container-view.ts';
import type { Row } from './list-output.ts';
import { formatCreatedAt, humanDuration } from './time.ts';

export const IMAGE_HEADERS: Readonly<Record<string, string>> = {
  ID: 'IMAGE ID',
  Repository: 'REPOSITORY',
  Tag: 'TAG',
  Digest: 'DIGEST',
  CreatedSince: 'CREATED',
  CreatedAt: 'CREATED AT',
  Size: 'SIZE',
};

type Filters = Readonly<Record<string, string[]>>;

/** One row per tag, as docker images; an image without a tag has one row. Newest first. */
export function imageRows(
  images: readonly ImageSummary[],
  filters: Filters,
  options: { truncate: boolean; nowMs: number },
): { rows: Row[]; raw: ImageSummary[] } {
  const chosen = [...images]
    .sort((a, b) => ((a.createdAt ?? '') < (b.createdAt ?? '') ? 1 : -1))
    .filter((image) => isBetween(image, images, filters));
  const rows: Row[] = [];
  const raw: ImageSummary[] = [];
  for (const image of chosen) {
    const tags = (image.tags.length === 0 ? [undefined] : image.tags).filter((tag) => tagMatches(tag, filters));
    if (tags.length === 0) continue;
    raw.push(image);
    for (const tag of tags) rows.push(row(image, tag, options));
  }
  return { rows, raw };
}

function row(
  image: ImageSummary,
  tag: string | undefined,
  { truncate, nowMs }: { truncate: boolean; nowMs: number },
): Row {
  const { repository, version } = splitTag(tag);
  // Builds that can be repeated date their images to the start of Unix time: no date at all.
  const created = Date.parse(image.createdAt ?? '') > 0 ? image.createdAt : undefined;
  return {
    ID: truncate ? shortId(image.id) : image.id,
    Repository: repository,
    Tag: version,
    Digest: digestFor(image, repository),
    CreatedSince: created === undefined ? 'N/A' : `${humanDuration(nowMs - Date.parse(created))} ago`,
    CreatedAt: created === undefined ? 'N/A' : formatCreatedAt(created),
    Size: humanSize(image.sizeBytes),
  };
}

/** What the repository calls the image; images that no registry has seen have none. */
function digestFor({ repoDigests = [] }: ImageSummary, repository: string): string {
  const known =
    repoDigests.find((one) => one.startsWith(`${repository}@`)) ??
    (repository === '<none>' ? repoDigests[0] : undefined);
  return known === undefined ? '<none>' : known.slice(known.indexOf('@') + 1);
}

/** The colon of a tag is the last one after the last slash: a registry may have a port. */
function splitTag(tag: string | undefined): { repository: string; version: string } {
  if (tag === undefined) return { repository: '<none>', version: '<none>' };
  const colon = tag.indexOf(':', tag.lastIndexOf('/') + 1);
  return colon < 0
    ? { repository: tag, version: 'latest' }
    : { repository: tag.slice(0, colon), version: tag.slice(colon + 1) };
}

function tagMatches(tag: string | undefined, filters: Filters): boolean {
  const { dangling, reference } = filters;
  if (dangling !== undefined && !dangling.some((value) => (value === 'true' || value === '1') === (tag === undefined)))
    return false;
  if (reference === undefined) return true;
  return tag !== undefined && reference.some((pattern) => referenceMatches(tag, pattern));
}

/** A pattern without a tag matches all tags; docker's default registry and namespace may be left out. */
function referenceMatches(tag: string, pattern: string): boolean {
  const { repository } = splitTag(tag);
  const hasTag = pattern.indexOf(':', pattern.lastIndexOf('/') + 1) >= 0;
  const full = hasTag ? tag : repository;
  const names = [full, full.replace(/^docker\.io\//, ''), full.replace(/^docker\.io\/library\//, '')];
  return names.some((name) => matchesGlob(name, pattern));
}

function isBetween(image: ImageSummary, images: readonly ImageSummary[], filters: Filters): boolean {
  const timeOf = (name: string | undefined) => {
    if (name === undefined) return undefined;
    const bare = name.replace(/^sha256:/, '');
    const found = images.find(
      (i) => i.id.replace(/^sha256:/, '').startsWith(bare) || i.tags.some((tag) => referenceMatches(tag, name)),
    );
    if (found === undefined) throw new KataError('NOT_FOUND', `no such image: ${name}`);
    return found.createdAt ?? '';
  };
  const before = timeOf(filters.before?.at(-1));
  const since = timeOf(filters.since?.at(-1));
  const created = image.createdAt ?? '';
  return (before === undefined || created < before) && (since === undefined || created > since);
}
