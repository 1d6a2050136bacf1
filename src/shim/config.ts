import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import {
  type Configuration,
  checkContainer,
  podConfiguration,
  readConfiguration,
  SandboxConfig,
  sandboxConfig,
} from '../config/index.ts';
import type { MachineTuning } from '../model/index.ts';
import * as rpc from '../rpc/containerd.ts';
import { StateFile } from '../sandbox/index.ts';
import type { ShimServices } from './services.ts';

type Annotations = Readonly<Record<string, string>>;

export interface DoorConfigOptions {
  /** The sandbox's directory. */
  runDir: string;
  services: Pick<ShimServices, 'rootOf' | 'configFile' | 'configPaths'>;
  /** Of `start`: a serialised Any in base64, or nothing. */
  startOptions: string;
  /** Texts of warnings that this engine has logged: each is told once, not once a pod. */
  told: Set<string>;
  log(message: string): void;
}

/** What containerd's options say of the configuration. Options of another type are another runtime's. */
const RUNTIME_OPTIONS = 'runtimeoptions.v1.Options';
const MAX_TOLD = 4096;

/**
 * A sandbox's part of configuration.toml: read when its machine is asked for, and kept in `config.json` beside its other files, because
 * the files may be changed while it lives.
 */
export class DoorConfig {
  readonly #options: DoorConfigOptions;
  readonly #file: StateFile<SandboxConfig>;
  #current: SandboxConfig | undefined;

  constructor(options: DoorConfigOptions) {
    this.#options = options;
    this.#file = new StateFile(join(options.runDir, 'config.json'), SandboxConfig);
    this.#current = this.#file.read();
  }

  /** What nobody has configured, until `resolve`. */
  get current(): SandboxConfig {
    return this.#current ?? sandboxConfig({ files: [], values: {} });
  }

  /** For the pod with these annotations. Throws what is wrong with files or annotations. */
  resolve(keeperPid: number, annotations: Annotations, options: rpc.Any | undefined): SandboxConfig {
    const configuration = this.#read(keeperPid, options);
    const { config, warnings } = podConfiguration(configuration, annotations);
    for (const warning of warnings) this.#options.log(warning);
    this.#file.write(config);
    this.#current = config;
    return config;
  }

  /** Throws for annotations that a container must not have. */
  checkContainer(keeperPid: number, annotations: Annotations, options: rpc.Any | undefined): void {
    for (const warning of checkContainer(this.current, () => this.#read(keeperPid, options), annotations))
      this.#options.log(warning);
  }

  #read(keeperPid: number, options: rpc.Any | undefined): Configuration {
    const { services, startOptions, told, log } = this.#options;
    const named = optionsOf(options) ?? optionsOf(startAny(startOptions));
    const configuration = readConfiguration({
      path: named?.config_path,
      body: named === undefined ? undefined : new TextDecoder().decode(named.config_body),
      environment: services.configFile,
      root: services.rootOf(keeperPid),
      ...(services.configPaths && { defaults: services.configPaths }),
    });
    if (told.size > MAX_TOLD) told.clear();
    for (const warning of configuration.warnings) {
      if (told.has(warning)) continue;
      told.add(warning);
      log(`configuration: ${warning}`);
    }
    return configuration;
  }
}

const startAny = (base64: string): rpc.Any | undefined =>
  base64 === '' ? undefined : decoded(() => rpc.Any.decode(Buffer.from(base64, 'base64')));

const optionsOf = (any: rpc.Any | undefined): rpc.RuntimeOptions | undefined =>
  any?.type_url.endsWith(RUNTIME_OPTIONS) ? decoded(() => rpc.RuntimeOptions.decode(any.value)) : undefined;

function decoded<T>(read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw new KataError('INVALID_ARGUMENT', `the runtime's options cannot be read: ${(cause as Error).message}`, {
      phase: 'configuration',
      cause,
    });
  }
}

export function tuningOf(config: SandboxConfig): MachineTuning {
  const { kernelParams, kernelDebug, agentLog, cpuFeatures, sharedFs, bootTimeoutMs } = config;
  const cmdline = [...kernelParams, ...(kernelDebug ? ['debug'] : []), ...(agentLog ? [`agent.log=${agentLog}`] : [])];
  return { cmdline, cpuFeatures, sharedFs, bootTimeoutMs };
}
