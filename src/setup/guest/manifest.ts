import { readFile } from 'node:fs/promises';
import * as z from 'zod';
import { KataError } from '../../base/index.ts';
import { sha256 } from '../tools.ts';

const digest = z.string().regex(/^[0-9a-f]{64}$/);
const file = z.strictObject({ sha256: digest, sizeBytes: z.int().positive() });
const packageName = z.string().regex(/^[a-z0-9][a-z0-9.+-]*$/);

const manifestSchema = z.strictObject({
  version: z.literal(1),
  digest,
  vmlinux: file,
  initrd: file,
  kernel: z.strictObject({
    /** "6.1.0-56-cloud-amd64" */
    release: z.string(),
    /** The Debian package that it comes from, kept in <assets>/cache/<sha256>.deb. */
    package: packageName,
    packageVersion: z.string(),
    packageSha256: digest,
  }),
  agent: z.strictObject({ sha256: digest, version: z.string(), builtWith: z.string() }),
  /** In the order in which the agent loads them at boot. */
  modules: z.array(z.string()),
  /** By file system: what the agent loads, in this order, before it first mounts one. */
  onDemand: z.record(z.string(), z.array(z.string())).default({}),
  /** What guest/image.json said. */
  recipe: z.lazy(() => recipeSchema),
});

const relativePath = z.string().regex(/^[\w.-]+(\/[\w.-]+)*$/);
const moduleName = z.string().regex(/^[\w-]+$/);
const recipeSchema = z.strictObject({
  version: z.literal(1),
  /** A Debian package: a kernel image, or one that depends on the current one. */
  kernelPackage: packageName,
  modules: z.array(moduleName),
  /** File systems, each named as its module is, that are loaded when the guest first mounts one. */
  onDemand: z.array(moduleName).default([]),
  directories: z.array(relativePath),
  symlinks: z.record(relativePath, z.string()),
});

/** What a guest image is made of. It is a part of the image's directory and never changes. */
export type GuestManifest = z.infer<typeof manifestSchema>;
export type GuestRecipe = z.infer<typeof recipeSchema>;

/** Both files decide what boots, so both decide the image's name. */
export const imageDigest = (vmlinuxSha256: string, initrdSha256: string): string =>
  sha256(`vmlinux ${vmlinuxSha256}\ninitrd ${initrdSha256}\n`);

export const readManifest = (path: string): Promise<GuestManifest> => read(path, manifestSchema);
export const readRecipe = (path: string): Promise<GuestRecipe> => read(path, recipeSchema);

async function read<T>(path: string, schema: z.ZodType<T>): Promise<T> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    throw invalid(path, [(error as Error).message]);
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success)
    throw invalid(
      path,
      parsed.error.issues.map(({ path: at, message }) => `${at.join('.')}: ${message}`),
    );
  return parsed.data;
}

const invalid = (path: string, evidence: readonly string[]): KataError =>
  new KataError('GUEST_IMAGE_INVALID', `${path} cannot be used`, {
    phase: 'guest-image',
    evidence: evidence.slice(0, 10),
    hint: `run 'kata guest build'`,
  });
