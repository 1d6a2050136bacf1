import { KataError } from '../../base/index.ts';
import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import type { Context } from '../context.ts';
import { reportError } from '../each.ts';
import { type Flags, UsageError } from '../flags.ts';
import { containerInspect, imageInspect, networkInspect, volumeInspect } from '../inspect-view.ts';
import { compileTemplate, toJson, type Value } from '../template.ts';

const TYPES = ['container', 'image', 'volume', 'network'] as const;
type Type = (typeof TYPES)[number];

/** Docker's view for templates and default output, and the API's body for --json. */
interface Found {
  view: Value;
  raw: unknown;
}

export const command: Command = {
  name: 'inspect',
  summary: 'Show everything about containers, images, volumes and networks',
  usage: '[OPTIONS] NAME|ID [NAME|ID...]',
  flags: [
    { ...FLAG_FORMAT, short: 'f', help: "Print with a Go template, or 'json'" },
    { long: 'type', kind: 'string', value: 'TYPE', help: 'Only objects of this type', choices: TYPES },
    { long: 'size', short: 's', kind: 'bool', help: 'Accepted: .SizeRw is always there' },
    FLAG_JSON,
  ],
  minArguments: 1,
  completes: 'containers',
  examples: [
    'kata inspect web',
    "kata inspect -f '{{.State.ExitCode}} {{.State.OOMKilled}}' job",
    "kata inspect -f '{{range .Mounts}}{{.Source}} -> {{.Destination}}{{println}}{{end}}' web",
    "kata inspect -f '{{json .kata.sandbox}}' web",
  ],
  notes: [
    "The paths are docker's (.Id .Name .State .Config .HostConfig .Mounts .NetworkSettings .LogPath); .kata holds the sandbox, " +
      'the cause of the exit and the start-up phases. --json prints the bodies of the HTTP API instead.',
  ],
  run: (context, flags) => inspectObjects(context, flags, readType(flags)),
};

function readType(flags: Flags): Type | undefined {
  const text = flags.string('type');
  if (text === undefined || text === '') return undefined;
  const type = TYPES.find((known) => known === text);
  if (type === undefined) throw new UsageError(`--type: "${text}" is not one of ${TYPES.join(', ')}`, undefined);
  return type;
}

/** Prints what is found and reports what is not; exit code 1 when something is missing, as docker. */
export async function inspectObjects(context: Context, flags: Flags, type: Type | undefined): Promise<number> {
  const format = flags.string('format');
  const template = format === undefined || format === 'json' ? undefined : compileTemplate(format);
  const found: Found[] = [];
  let failed = false;
  for (const name of flags.args) {
    try {
      const object = await find(context, name, type);
      found.push(object);
      if (template !== undefined) await context.out(`${template.execute(object.view)}\n`);
    } catch (error) {
      if (KataError.from(error).code !== 'NOT_FOUND') throw error;
      failed = true;
      await reportError(context, error);
    }
  }
  if (flags.bool('json'))
    await context.out(
      `${JSON.stringify(
        found.map(({ raw }) => raw),
        undefined,
        2,
      )}\n`,
    );
  else if (template === undefined) {
    const views = found.map(({ view }) => view);
    await context.out(`${toJson(views, format === 'json' ? '' : '    ')}\n`);
  }
  return failed ? 1 : 0;
}

async function find(context: Context, name: string, type: Type | undefined): Promise<Found> {
  for (const candidate of type === undefined ? TYPES : [type]) {
    try {
      return await findTyped(context, name, candidate);
    } catch (error) {
      if (KataError.from(error).code !== 'NOT_FOUND') throw error;
    }
  }
  throw new KataError('NOT_FOUND', `no such ${type ?? 'object'}: ${name}`, {
    hint: 'kata ps -a; kata images; kata volume ls; kata network ls',
  });
}

async function findTyped(context: Context, name: string, type: Type): Promise<Found> {
  if (type === 'container') {
    const raw = await context.call('inspectContainer', { path: { id: name } });
    return { raw, view: containerInspect(raw) };
  }
  if (type === 'image') {
    const raw = await context.call('inspectImage', { path: { reference: name } });
    return { raw, view: imageInspect(raw) };
  }
  if (type === 'network') {
    const raw = await context.call('inspectNetwork', { path: { name } });
    return { raw, view: networkInspect(raw) };
  }
  const raw = await context.call('inspectVolume', { path: { name } });
  return { raw, view: volumeInspect(raw) };
}
