import { type Command, FLAG_JSON } from '../command.ts';
import { escapeControls } from '../escape.ts';

export const command: Command = {
  name: 'config',
  summary: 'Show what configuration.toml makes of a pod, and what of it does nothing',
  usage: '[OPTIONS]',
  flags: [
    { long: 'file', kind: 'string', value: 'FILE', help: "Read this one, as containerd's option ConfigPath names it" },
    { ...FLAG_JSON, help: 'Print JSON: {files, effective, values: [{key, value, place}], warnings}' },
  ],
  minArguments: 0,
  maxArguments: 0,
  completes: 'files',
  examples: ['kata config', 'kata config --file /etc/kata-containers/configuration.toml --json'],
  notes: [
    'Without --file: KATA_CONF_FILE, then the places of docs/configuration.md. Exits 1 when the configuration is not valid: ' +
      'then no pod that uses it starts. A file changes pods that are made afterwards; no engine is needed to read it.',
  ],
  async run(context, flags) {
    const { readConfiguration, sandboxConfig } = await import('../../config/index.ts');
    const { resolve } = await import('node:path');
    const file = flags.string('file');
    const configuration = readConfiguration({
      path: file === undefined ? undefined : resolve(file),
      environment: context.env.KATA_CONF_FILE,
    });
    const { files, places, warnings } = configuration;
    const values = Object.entries(configuration.values).map(([key, value]) => ({ key, value, place: places.get(key) }));
    if (flags.bool('json')) {
      const { version: _, files: __, annotations: ___, ...effective } = sandboxConfig(configuration);
      await context.out(`${JSON.stringify({ files, effective, values, warnings }, undefined, 2)}\n`);
      return 0;
    }
    const lines = [
      ...(files.length === 0 ? ['no configuration: everything is as usual'] : files.map((one) => `file: ${one}`)),
      ...values.map(({ key, value, place }) => `${key} = ${JSON.stringify(value)}  (${place})`),
      ...warnings.map((warning) => `warning: ${warning}`),
    ];
    await context.out(lines.map((line) => `${escapeControls(line)}\n`).join(''));
    return 0;
  },
};
