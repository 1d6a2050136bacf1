export { checkContainer, HONOURED_ANNOTATIONS, type PodConfiguration, podConfiguration } from './annotations.ts';
export { type Configuration, configurationOf, readConfiguration } from './configuration.ts';
export { DEFAULT_PATHS, type Search, type Source } from './files.ts';
export { HONOURED, type Honoured } from './honoured.ts';
export { SandboxConfig, sandboxConfig } from './sandbox-config.ts';
export { UNHONOURED } from './unhonoured.ts';
