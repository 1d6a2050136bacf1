import { KataError } from '../../base/index.ts';
import { type Command, FLAG_JSON } from '../command.ts';
import type { Context } from '../context.ts';
import { ownVersion } from '../locations.ts';

const ENGINE_TIMEOUT_MS = 5000;

export const command: Command = {
  name: 'version',
  summary: 'Show versions of this command and of the engine, if one runs',
  usage: '[OPTIONS]',
  flags: [
    FLAG_JSON,
    { long: 'format', short: 'f', kind: 'string', value: 'TEMPLATE', help: "Print with a Go template, or 'json'" },
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata version', 'kata version --json', "kata version --format '{{.Client.Version}}'"],
  notes: ['It starts no engine: engine is there only when one runs.'],
  async run(context, flags) {
    const client = ownVersion();
    const engine = await engineVersion(context);
    const format = flags.string('format');
    if (flags.bool('json') || format === 'json') {
      const body = { version: client, node: process.version, ...(engine === undefined ? {} : { engine }) };
      await context.out(`${JSON.stringify(body, undefined, 2)}\n`);
      return 0;
    }
    if (format !== undefined) {
      const { compileTemplate } = await import('../template.ts');
      const server = engine === undefined ? null : { Version: engine.version, Pid: engine.pid, Root: engine.root };
      const view = { Client: { Version: client, Node: process.version }, Server: server };
      await context.out(`${compileTemplate(format).execute(view)}\n`);
      return 0;
    }
    await context.out(`kata ${client} (Node ${process.version})\n`);
    if (engine === undefined) await context.out('engine: not running\n');
    else
      await context.out(
        `engine: katad ${engine.version}, pid ${engine.pid}, root ${engine.root}, ${engine.sandboxes} sandboxes, since ${engine.startedAt}\n`,
      );
    return 0;
  },
};

async function engineVersion(context: Context) {
  const client = await context.runningClient();
  if (client === undefined) return undefined;
  try {
    const { version, apiVersion, engine } = await client.call('version', {}, { timeoutMs: ENGINE_TIMEOUT_MS });
    return { version, apiVersion, ...engine };
  } catch (error) {
    // It ended between the two questions.
    if (KataError.from(error).code === 'ENGINE_UNAVAILABLE') return undefined;
    throw error;
  }
}
