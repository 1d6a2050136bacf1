import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import { hostPlaces, placeText } from '../ports-view.ts';

export const command: Command = {
  name: 'port',
  summary: 'Show the published ports of a container',
  usage: 'CONTAINER [PORT[/PROTOCOL]]',
  flags: [],
  minArguments: 1,
  maxArguments: 2,
  completes: 'containers',
  examples: ['kata port web', 'kata port web 80'],
  async run(context, flags) {
    const [id = '', wanted] = flags.args;
    const { network, status } = await context.call('inspectContainer', { path: { id } });
    const ports = status === 'running' || status === 'paused' ? (network?.ports ?? []) : [];
    if (wanted === undefined) {
      for (const port of ports)
        for (const place of hostPlaces(port))
          await context.out(`${port.port}/${port.protocol} -> ${placeText(place)}\n`);
      return 0;
    }
    const [number = '', protocol = 'tcp'] = wanted.split('/');
    if (!/^\d{1,5}$/.test(number)) throw new KataError('INVALID_ARGUMENT', `invalid port: ${wanted}`);
    const found = ports.filter((port) => port.port === Number(number) && port.protocol === protocol);
    if (found.length === 0)
      throw new KataError('NOT_FOUND', `no public port '${number}/${protocol}' published for ${id}`);
    for (const port of found) for (const place of hostPlaces(port)) await context.out(`${placeText(place)}\n`);
    return 0;
  },
};
