import { containerPath } from './container-path.ts';
import { imageEnv } from './environment.ts';
import type { ImageConfig } from './image-spec.ts';

/** What docker's inspect calls the container's Config: the image's, with the user's options over it. */
export interface EffectiveConfig {
  /** Empty: none. */
  entrypoint: string[];
  cmd: string[];
  /** The user's, then the image's that the user does not set or unset. */
  env: string[];
  user: string;
  workdir: string;
  volumes: string[];
  stopSignal: string;
}

interface Options {
  args?: readonly string[];
  entrypoint?: readonly string[];
  env?: readonly string[];
  workdir?: string;
  user?: string;
  stopSignal?: string;
  /** Where the user has anonymous volumes. */
  volumes?: readonly string[];
}

/** Docker's merge: an entrypoint of the user's, even an empty one, also clears the image's command. */
export function effectiveConfig({ config = {} }: ImageConfig, options: Options): EffectiveConfig {
  const { args = [], env = [] } = options;
  const inheritsCommand = args.length === 0 && options.entrypoint === undefined;
  const known = new Set(env.map(nameOf));
  return {
    entrypoint: [...(options.entrypoint ?? config.Entrypoint ?? [])],
    cmd: [...(inheritsCommand ? (config.Cmd ?? []) : args)],
    env: [...env, ...imageEnv(config.Env).filter((entry) => !known.has(nameOf(entry)))],
    user: options.user ?? config.User ?? '',
    workdir: options.workdir ?? config.WorkingDir ?? '',
    volumes: [...new Set([...imageVolumes({ config }), ...(options.volumes ?? [])])].sort(),
    stopSignal: options.stopSignal ?? config.StopSignal ?? '',
  };
}

const nameOf = (entry: string): string => entry.split('=', 1)[0] ?? '';

/** Absolute paths where the image declares volumes, normalised and sorted; what is not an absolute path is left out. */
export const imageVolumes = (image: Pick<ImageConfig, 'config'>): string[] =>
  [
    ...new Set(
      Object.keys(image.config?.Volumes ?? {})
        .filter((path) => path.startsWith('/'))
        .map(containerPath)
        .filter((path) => path !== '/'),
    ),
  ].sort();
