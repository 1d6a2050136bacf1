import * as z from 'zod';
import { KataError } from '../base/index.ts';
import { isDigest } from '../oci/index.ts';

/** JSON of images and archives, from anywhere. Go writes `null` for what is empty; unknown members are let be. */
const orAbsent = <T extends z.ZodType>(schema: T) => schema.nullish().transform((value) => value ?? undefined);
const text = z.string();
const digest = text.refine(isDigest, 'is not sha256: and 64 hex digits');
const textMap = z.record(text, text);

const Platform = z.object({ os: text, architecture: text, variant: orAbsent(text) });

const Descriptor = z.object({
  mediaType: orAbsent(text).transform((type) => type ?? ''),
  digest,
  size: z.number().int().min(0),
  annotations: orAbsent(textMap),
  platform: orAbsent(Platform),
  artifactType: orAbsent(text),
});
export type ParsedDescriptor = z.infer<typeof Descriptor>;

export const Index = z.object({
  mediaType: orAbsent(text),
  manifests: z.array(Descriptor),
});

export const Manifest = z.object({
  mediaType: orAbsent(text),
  config: Descriptor,
  subject: orAbsent(Descriptor),
  layers: orAbsent(z.array(Descriptor)).transform((layers) => layers ?? []),
});
export type ParsedManifest = z.infer<typeof Manifest>;

const nanos = z.number().nonnegative();
const RuntimeConfig = z.object({
  User: orAbsent(text),
  Env: orAbsent(z.array(text)),
  Entrypoint: orAbsent(z.array(text)),
  Cmd: orAbsent(z.array(text)),
  WorkingDir: orAbsent(text),
  Labels: orAbsent(textMap),
  Volumes: orAbsent(z.record(text, z.looseObject({}))),
  ExposedPorts: orAbsent(z.record(text, z.looseObject({}))),
  StopSignal: orAbsent(text),
  Healthcheck: orAbsent(
    z.object({
      Test: orAbsent(z.array(text)),
      Interval: orAbsent(nanos),
      Timeout: orAbsent(nanos),
      StartPeriod: orAbsent(nanos),
      StartInterval: orAbsent(nanos),
      Retries: orAbsent(z.number().int().nonnegative()),
    }),
  ),
  Shell: orAbsent(z.array(text)),
});

export const Config = z.object({
  created: orAbsent(text),
  author: orAbsent(text),
  architecture: text,
  os: text,
  variant: orAbsent(text),
  config: orAbsent(RuntimeConfig),
  rootfs: z.object({ type: z.literal('layers'), diff_ids: orAbsent(z.array(digest)).transform((ids) => ids ?? []) }),
});
export type ParsedConfig = z.infer<typeof Config>;

/** manifest.json of `docker save`: one element an image; paths are members of the archive. */
export const DockerManifest = z.array(
  z.object({ Config: text, RepoTags: orAbsent(z.array(text)), Layers: orAbsent(z.array(text)) }),
);

/** Parses `bytes` as `schema`; IMAGE_INVALID names the document and every problem. */
export function parseJson<T extends z.ZodType>(schema: T, bytes: Uint8Array, what: string): z.infer<T> {
  const invalid = (why: string) =>
    new KataError('IMAGE_INVALID', `${what} ${why}`, { phase: 'image', hint: 'get the image again or build it anew' });
  let data: unknown;
  try {
    data = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw invalid(`is not JSON: ${(error as Error).message}`);
  }
  const parsed = schema.safeParse(data);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.slice(0, 10).map((issue) => `${issue.path.join('.')} ${issue.message}`);
  throw invalid(`is not what it should be: ${problems.join('; ')}`);
}
