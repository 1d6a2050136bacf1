import { KataError } from '../base/index.ts';
import { type Configuration, shownValue } from './configuration.ts';
import { HONOURED, type Honoured, honoured, type Values } from './honoured.ts';
import { matches, matchesGlob } from './pattern.ts';
import { type SandboxConfig, sandboxConfig } from './sandbox-config.ts';
import { REFUSED, unhonoured } from './unhonoured.ts';

const PREFIX = 'io.katacontainers.';
const SECTION = /^config\.(hypervisor|agent|runtime)\./;
/** A pod does not choose them, whatever is allowed: they name files of the host. */
const NEVER: Readonly<Record<string, string>> = {
  config_path: 'a pod does not choose its configuration',
  'config.runtime.sandbox_bind_mounts': 'a pod does not choose what of the host is mounted',
};
/** Paths of the host, and the key whose globs one of them must match. */
const PATHS: Readonly<Record<string, keyof Values | undefined>> = {
  'hypervisor.path': 'hypervisor.valid_hypervisor_paths',
  'hypervisor.jailer_path': 'hypervisor.valid_jailer_paths',
  'hypervisor.ctlpath': 'hypervisor.valid_ctlpaths',
  'hypervisor.virtio_fs_daemon': 'hypervisor.valid_virtio_fs_daemon_paths',
  'hypervisor.vhost_user_store_path': 'hypervisor.valid_vhost_user_store_paths',
  'hypervisor.entropy_source': 'hypervisor.valid_entropy_sources',
  'hypervisor.kernel': undefined,
  'hypervisor.image': undefined,
  'hypervisor.initrd': undefined,
  'hypervisor.firmware': undefined,
  'hypervisor.firmware_volume': undefined,
  'hypervisor.guest_hook_path': undefined,
  'hypervisor.prefetch_list_path': undefined,
};
const MAX_ANNOTATIONS = 64;

/** Annotation (without the prefix) of each key that a pod may be allowed to ask for. */
const KEYS: ReadonlyMap<string, string> = new Map(
  Object.entries<Honoured<unknown>>(HONOURED).flatMap(([key, { annotations }]) =>
    (annotations ?? [key]).map((name): [string, string] => [`config.${name}`, key]),
  ),
);
/** Names that `enable_annotations` can allow and that have an effect. */
export const HONOURED_ANNOTATIONS: readonly string[] = [...KEYS.keys()].map((name) => `${PREFIX}${name}`);

type Annotations = Readonly<Record<string, string>>;

export interface PodConfiguration {
  config: SandboxConfig;
  /** What the pod asked for, was allowed to, and does not get. */
  warnings: readonly string[];
}

/**
 * The configuration of one pod: the files', changed by those of its annotations that they allow. PERMISSION_DENIED for the first one that
 * is not allowed, INVALID_ARGUMENT for a value that is not. Other annotations than Kata's are none of its concern. Pure.
 */
export function podConfiguration(configuration: Configuration, annotations: Annotations): PodConfiguration {
  const asked = kataAnnotations(annotations);
  const values: Record<string, unknown> = { ...configuration.values };
  const warnings: string[] = [];
  for (const [name, value] of Object.entries(asked)) {
    const suffix = name.slice(PREFIX.length);
    requireAllowed(configuration, name);
    const key = KEYS.get(suffix);
    if (key !== undefined) {
      const entry = honoured(key);
      const check = entry?.pod ?? entry?.check;
      const read = check?.read(check.parse(value));
      if (read === undefined) throw wrong(name, value, check?.allowed ?? '');
      values[key] = read;
    } else warnings.push(notHonoured(configuration, name, value));
  }
  requireBounds(configuration, values as Values, asked);
  const config = sandboxConfig({ files: configuration.files, values: values as Values });
  return { config: { ...config, annotations: asked }, warnings };
}

/** Those of a container must be its pod's: the machine is there. Answers what its own ones ask for in vain. */
export function checkContainer(
  config: SandboxConfig,
  configuration: () => Configuration,
  annotations: Annotations,
): string[] {
  const warnings: string[] = [];
  for (const [name, value] of Object.entries(kataAnnotations(annotations))) {
    if (Object.hasOwn(config.annotations, name) && config.annotations[name] === value) continue;
    const file = configuration();
    requireAllowed(file, name);
    if (SECTION.test(name.slice(PREFIX.length)))
      throw new KataError('INVALID_ARGUMENT', `annotation ${name} of a container is not its pod's`, {
        phase: 'annotations',
        hint: 'set it for the pod: the machine is there when a container comes',
      });
    warnings.push(notHonoured(file, name, value));
  }
  return warnings;
}

function kataAnnotations(annotations: Annotations): Record<string, string> {
  const found = Object.entries(annotations).filter(([name]) => name.startsWith(PREFIX));
  if (found.length > MAX_ANNOTATIONS)
    throw new KataError(
      'INVALID_ARGUMENT',
      `${found.length} annotations ${PREFIX}*, at most ${MAX_ANNOTATIONS} are read`,
      {
        phase: 'annotations',
      },
    );
  return Object.fromEntries(found);
}

/** As `enable_annotations` has them: without prefix and section. */
const baseOf = (name: string): string => name.slice(PREFIX.length).replace(SECTION, '');

function requireAllowed({ files, values }: Configuration, name: string): void {
  const suffix = name.slice(PREFIX.length);
  const never = Object.hasOwn(NEVER, suffix) ? NEVER[suffix] : undefined;
  const patterns = values['hypervisor.enable_annotations'] ?? [];
  const base = baseOf(name);
  if (never === undefined && matches(patterns, base)) return;
  const shown = JSON.stringify(name.slice(0, 128));
  const file = files[0] ?? 'configuration.toml (there is none)';
  throw new KataError(
    'PERMISSION_DENIED',
    `annotation ${shown} is not allowed${never === undefined ? '' : `: ${never}`}`,
    {
      phase: 'annotations',
      evidence: [`enable_annotations of ${file}: ${shownValue(patterns)}`],
      hint:
        never === undefined
          ? `take it off the pod, or have the administrator add ${JSON.stringify(base.slice(0, 64))} to enable_annotations in [hypervisor.qemu]`
          : 'take it off the pod',
    },
  );
}

/** One line, after the checks that hold for it all the same. */
function notHonoured({ values }: Configuration, name: string, value: string): string {
  const suffix = name.slice(PREFIX.length);
  const key = suffix.replace(/^config\./, '');
  if (suffix !== key && Object.hasOwn(PATHS, key)) {
    const list = PATHS[key];
    const allowed = (list === undefined ? [] : (values[list] ?? [])) as readonly string[];
    const isPath = /^(\/[^/\0]+)+$/.test(value) && !value.split('/').some((part) => part === '..' || part === '.');
    if (!isPath || !allowed.some((glob) => matchesGlob(glob, value)))
      throw wrong(
        name,
        value,
        `a path that ${list === undefined ? 'is allowed, and none is' : `${list.slice('hypervisor.'.length)} allows`}`,
      );
  }
  if (REFUSED.includes(key) && value !== 'false' && value !== '')
    throw wrong(name, value, 'left out: it cannot be had here');
  const known = honoured(key) === undefined ? 'it is not known' : 'it is not for pods to choose';
  const reason = suffix === key ? undefined : unhonoured(key)?.reason;
  return `annotation ${name.slice(0, 128)} = ${shownValue(value)} is not honoured: ${reason ?? known}`;
}

/** A pod stays within the administrator's bounds. */
function requireBounds({ values: files }: Configuration, values: Values, asked: Annotations): void {
  const bounds = [
    ['default_memory', values['hypervisor.default_memory'], files['hypervisor.default_maxmemory'], 'MiB'],
    ['default_vcpus', values['hypervisor.default_vcpus'], files['hypervisor.default_maxvcpus'], 'processors'],
    ['default_max_vcpus', values['hypervisor.default_maxvcpus'], files['hypervisor.default_maxvcpus'], 'processors'],
  ] as const;
  for (const [name, value = 0, most = 0, unit] of bounds) {
    const annotation = `${PREFIX}config.hypervisor.${name}`;
    const isOver = value > most || value <= 0;
    if (Object.hasOwn(asked, annotation) && most > 0 && isOver)
      throw wrong(annotation, asked[annotation] ?? '', `from 1 to ${most} ${unit}, as the configuration says`);
  }
}

const wrong = (name: string, value: string, allowed: string): KataError =>
  new KataError('INVALID_ARGUMENT', `annotation ${name.slice(0, 128)} must be ${allowed}, it is ${shownValue(value)}`, {
    phase: 'annotations',
  });
